"""Drawing for `vargen sample`: in batches, into files, with a report."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vargen.commands import outputs
from vargen.core import registry
from vargen.core.atomic import write_atomically
from vargen.core.png import grid, save_picture, texts
from vargen.core.preset import PLAIN_METHODS

if TYPE_CHECKING:  # torch is slow to import
    from vargen.core.generation import Generation
    from vargen.core.trace import Trace


@dataclass
class Work:
    """What is drawn: a seed and a subject for each image, in batches of `batch_size`."""

    seeds: list[int]
    chosen: list[Any]  # classes or prompts, which take turns
    batch_size: int
    only: int | None = None  # the one image that is kept
    arguments: dict[str, Any] = field(default_factory=dict)  # of the pipeline, beside

    @property
    def count(self) -> int:
        """Images that are kept."""
        return len(self.seeds) if self.only is None else 1

    @property
    def batches(self) -> list[range]:
        """Numbers of images that are drawn together."""
        numbers, size = range(len(self.seeds)), self.batch_size
        return [numbers[start : start + size] for start in numbers[::size]]


def spelled(method: str, settings: dict[str, Any]) -> str:
    """A method with settings that flags give, which count where its name has others."""
    name, *parts = method.split(":")
    kept = [part for part in parts if part.partition("=")[0] not in settings]
    return ":".join([name, *kept, *(f"{key}={value}" for key, value in settings.items())])


def draw(options: argparse.Namespace, load: Callable[[Any], Any], work: Work) -> outputs.Outputs:
    """Draw what `sample` was asked for: a grid, single files, a trace. Where they went."""
    with named(options, work) as files:
        _draw(options, load, work, files)
        return files


def _draw(options: argparse.Namespace, load: Callable[[Any], Any], work: Work, files: outputs.Outputs) -> None:
    from vargen.commands import report
    from vargen.core.trace import Trace

    pipe = sized(load(options), options)
    side = options.image_size or pipe.preset.choose(options.preset).image_size
    outputs.check_grid(files.grid, work.count, (side, side) if side else pipe.size)
    images, traces, plain = [], [], []
    try:
        for out, beside in drawn(pipe, options, work):
            for row, image in enumerate(out.images if files.singles and work.only is None else []):
                save_picture(files.singles[len(images) + row], image, texts(out.trace, row))
            images += out.images
            traces.append(out.trace)
            plain += beside
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*outputs.kept(files.singles[: len(images)])) from None
    trace = Trace.merge(traces)
    _write(files, images, trace, work.only)
    print(report.report(trace, files.shown, pipe, options, Trace.merge(plain) if plain else None))
    if files.stale:
        print(f"note: of an earlier run: {len(files.stale)} images from {files.stale[0]} on")


def _write(files: outputs.Outputs, images: list[Any], trace: "Trace", only: int | None) -> None:
    """The grid, or the one image that is kept; the trace."""
    if only is not None:
        save_picture(files.paths[0], images[only], texts(trace, only))
    elif files.grid:
        save_picture(files.grid, grid(images, large=True), texts(trace, 0 if len(images) == 1 else None))
    if files.trace:
        write_atomically(files.trace, lambda path: path.write_text(trace.json(), encoding="utf-8"))


def drawn(pipe: Any, options: argparse.Namespace, work: Work) -> Any:
    """Each batch, and the traces of plain decoding beside it, if that is wanted; they take turns in being first."""
    prompts = not pipe.transformer.spec.classes
    image = work.arguments.pop("image", None) if prompts else None
    negative = work.arguments.pop("negative_prompt", None) if prompts else None
    wanted = inputs(pipe, work.chosen, image, negative)
    methods = [options.method]
    if options.compare:
        methods.append(PLAIN_METHODS[registry.preset(options.model).plan])
        for method in methods:  # what is done once is nobody's time
            _call(pipe, method, work, work.batches[0], wanted, options)
    for number, part in enumerate(work.batches):
        order = methods[::-1] if number % 2 else methods
        made = {method: _call(pipe, method, work, part, wanted, options) for method in order}
        out = made[options.method]
        if prompts:
            from vargen.pipelines.drawn import digest

            out.trace.drawn["prompt"] = [work.chosen[i % len(work.chosen)] for i in part]
            told = {"negative_prompt": negative, "image": digest("image", image)}
            out.trace.drawn |= {key: value for key, value in told.items() if value is not None}
        yield out, [made[method].trace for method in methods[1:]]


def _call(pipe: Any, method: str, work: Work, part: range, wanted: Any, options: argparse.Namespace) -> "Generation":
    return pipe(
        **wanted([i % len(work.chosen) for i in part]),
        method=method,
        seed=work.seeds[part.start : part.stop],
        batch_size=work.batch_size,
        image_size=options.image_size,
        **work.arguments,
    )


def named(options: argparse.Namespace, work: Work) -> AbstractContextManager[outputs.Outputs]:
    """Names for what is drawn, which no other process takes meanwhile."""
    preset = options.preset or next(iter(registry.preset(options.model).recipes))
    about = {"model": options.model, "method": options.method, "preset": preset}
    seeds = work.seeds if work.only is None else [work.seeds[work.only]]
    return outputs.choose(options.out, about, seeds, options.trace, overwrite=options.overwrite)


def sized(pipe: Any, options: argparse.Namespace) -> Any:
    """The pipeline for images of the size that the flags ask for."""
    if options.height is None and options.width is None:
        return pipe
    if pipe.kind == "next-scale":
        raise ValueError(f"{options.model} draws one size: --height and --width are for models with several")
    return pipe.at(options.height, options.width)


def inputs(
    pipe: Any, chosen: list[Any], image: Any = None, negative: str | None = None
) -> Callable[[list[int]], dict[str, Any]]:
    """A call's arguments for some of the `chosen` classes or prompts, by their numbers in that list.

    `image` goes with every prompt, `negative` against each. Prompts are all encoded now, and the text encoder's memory
    is given back before the first image is drawn; where a call alone knows all that is drawn of them, they are checked.
    """
    if pipe.transformer.spec.classes:
        return lambda some: {"class_labels": [chosen[i] for i in some]}
    pictures = {} if image is None else {"image": [image] * len(chosen)}
    if not pipe.reads_ahead:
        pipe.read_prompts(chosen, negative_prompt=negative)  # which says what is wrong with one
        return lambda some: {"prompt": [chosen[i] for i in some], "image": image and [image] * len(some)}
    states, mask = pipe.read_prompts(chosen, negative_prompt=negative, **pictures)
    pipe.release_text_encoder()
    return lambda some: {"prompt_embeds": states[some], "prompt_attention_mask": mask[some]}
