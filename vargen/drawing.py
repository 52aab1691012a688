"""What `vargen sample` does once its flags are read: it draws in batches, writes pictures, and reports."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vargen.files import check_writable, grid, save_png, write_atomically

if TYPE_CHECKING:  # torch is slow to import
    from vargen.core import Trace


def draw(options: argparse.Namespace, load: Callable[[Any], Any], arguments: dict[str, Any], chosen: list[Any]) -> None:
    """Draw what `sample` was asked for, with the pipeline's `arguments`: a grid, single files, a trace."""
    from vargen.core import Trace

    count = options.num_images or 2 * len(chosen)
    singles = [options.out.with_name(f"{options.out.stem}-{i}.png") for i in range(count if count > 1 else 0)]
    check_writable([path for path in (options.out, *singles, options.trace) if path])
    pipe = sized(load(options), options)
    wanted = inputs(pipe, chosen, None if pipe.transformer.spec.classes else arguments.pop("image", None))
    images, traces = [], []
    for start in range(0, count, options.batch_size):
        part = range(start, min(start + options.batch_size, count))
        out = pipe(
            **wanted([i % len(chosen) for i in part]),
            method=options.method,
            seed=[options.seed + i for i in part],
            batch_size=options.batch_size,
            image_size=options.image_size,
            **arguments,
        )
        for index, image, seed in zip(part, out.images, out.trace.seeds, strict=True):
            if singles:
                save_png(singles[index], image, _texts(out.trace, [seed]))
        images += out.images
        traces.append(out.trace)
    trace = Trace.merge(traces)
    save_png(options.out, grid(images), _texts(trace, trace.seeds))
    if options.trace:
        write_atomically(options.trace, lambda path: path.write_text(trace.json()))
    print(report(trace, options.out))


def sized(pipe: Any, options: argparse.Namespace) -> Any:
    """The pipeline for images of the size that the flags ask for."""
    if options.height is None and options.width is None:
        return pipe
    if not hasattr(pipe, "at"):
        raise ValueError(f"{options.model} draws one size: --height and --width are for models with several")
    return pipe.at(options.height, options.width)


def inputs(pipe: Any, chosen: list[Any], image: Any = None) -> Callable[[list[int]], dict[str, Any]]:
    """A call's arguments for some of the `chosen` classes or prompts, by their numbers in that list.

    `image` goes with every prompt. Prompts are all encoded now, and the text encoder's memory is given back before the
    first image is drawn.
    """
    if pipe.transformer.spec.classes:
        return lambda some: {"class_labels": [chosen[i] for i in some]}
    read = () if image is None else ([image] * len(chosen),)
    states, mask = pipe.encode_prompt(chosen, *read)
    pipe.release_text_encoder()
    return lambda some: {"prompt_embeds": states[some], "prompt_attention_mask": mask[some]}


def report(trace: "Trace", out: Path) -> str:
    """One line on a run; the widths of its blocks show what an automatic window chose."""
    widths = ", ".join(f"{count} of width {width}" for width, count in sorted(trace.windows.items()))
    return (
        f"{out}: {trace.images} images by {trace.method}, {trace.forwards_per_image:.1f} forwards per image, "
        f"{trace.tokens_per_forward:.2f} tokens per forward, {trace.seconds['total']:.2f} s (blocks: {widths})"
    )


def _texts(trace: "Trace", seeds: list[int]) -> dict[str, str]:
    seed = ",".join(map(str, seeds))
    return {"seed": seed, "model": trace.model, "method": trace.method, "settings": json.dumps(trace.settings)}
