"""`vargen sample` and scripts/sample.py: draw in batches, write pictures, report."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vargen.commands import flags, outputs
from vargen.commands.models import listing
from vargen.core import registry
from vargen.core.atomic import check_writable, write_atomically
from vargen.core.png import grid, save_picture, texts

if TYPE_CHECKING:  # torch is slow to import
    from vargen.core.types import Trace


def command(argv: list[str]) -> None:
    """Draw images into a grid, single files and, if asked, a trace."""
    method = wanted_method(argv)
    options = parser(method).parse_args(argv)
    if options.list:
        print(listing())
        return
    known = _settings(method)
    settings = {name: value for name in known if (value := getattr(options, name)) is not None}
    flags.check(options, [(options.method, settings)])
    chosen = flags.subjects(options, flags.preset(options))
    outputs.check(options.out)
    flags.check_memory(options, options.method, options.num_images or 2 * len(chosen))
    draw(options, flags.load, {**flags.law(options), **settings, **flags.repainting(options)}, chosen)


def wanted_method(argv: list[str]) -> str:
    """The method that the flags name, or else their model's."""
    early = flags.Parser(add_help=False)
    early.add_argument("--method")
    early.add_argument("--model", default=flags.DEFAULT_MODEL)
    found = early.parse_known_args(argv)[0]
    return found.method or registry.preset(found.model).method


def parser(method: str = "sjd-coupled") -> flags.Parser:
    """The flags, those of the method's settings among them."""
    made = flags.Parser(prog="vargen sample", description="Draw images.", conflict_handler="resolve")
    flags.add_options(made, "method")
    flags.add_subjects(made)
    made.add_argument("--num-images", type=int, help="in all; classes or prompts take turns (default: two of each)")
    flags.add_options(made, "height", "width", "image_size")
    made.add_argument("--image", type=Path, help="a picture to repaint, with --mask-image, or to read with the prompt")
    flags.add_options(made, "mask_image")
    made.add_argument("--out", default="out/sample.png", help="the grid, images beside it; DIR/; {model}-{seed}.jpg")
    made.add_argument("--overwrite", action="store_true", help="files that are there, instead of numbering on")
    made.add_argument("--trace", type=Path, help="write what was measured as JSON")
    made.add_argument("--list", action="store_true", help="show models and methods")
    flags.add_law(made)
    name = method.split(":")[0]
    group = made.add_argument_group(f"settings of {name}")
    for setting, default in _settings(name).items():
        words = registry.describe(_hint(name, setting))
        group.add_argument(f"--{setting.replace('_', '-')}", metavar="VALUE", help=f"{words} (default: {default})")
    made.set_defaults(method=method)
    return made


def _settings(method: str) -> dict[str, Any]:
    """A method's settings and their defaults, without the drafter, which has a flag of its own."""
    return {
        field.name: field.default for field in registry.settings_of(method.split(":")[0]) if field.name != "drafter"
    }


def _hint(method: str, setting: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(registry.sampler(method).Settings)[setting]


def draw(options: argparse.Namespace, load: Callable[[Any], Any], arguments: dict[str, Any], chosen: list[Any]) -> None:
    """Draw what `sample` was asked for, with the pipeline's `arguments`: a grid, single files, a trace."""
    from vargen.core.types import Trace

    count = options.num_images or 2 * len(chosen)
    seeds = [options.seed + i for i in range(count)]
    files = named(options, seeds)
    check_writable(files.paths)
    pipe = sized(load(options), options)
    side = options.image_size or pipe.preset.choose(options.preset).image_size
    outputs.check_grid(files.grid, count, (side, side) if side else pipe.size)
    wanted = inputs(pipe, chosen, None if pipe.transformer.spec.classes else arguments.pop("image", None))
    images, traces = [], []
    for start in range(0, count, options.batch_size):
        part = range(start, min(start + options.batch_size, count))
        out = pipe(
            **wanted([i % len(chosen) for i in part]),
            method=options.method,
            seed=seeds[part.start : part.stop],
            batch_size=options.batch_size,
            image_size=options.image_size,
            **arguments,
        )
        for index, image, seed in zip(part, out.images, out.trace.seeds, strict=True):
            if files.singles:
                save_picture(files.singles[index], image, texts(out.trace, [seed]))
        images += out.images if files.grid else []
        traces.append(out.trace)
    trace = Trace.merge(traces)
    if files.grid:
        save_picture(files.grid, grid(images), texts(trace, trace.seeds))
    if files.trace:
        write_atomically(files.trace, lambda path: path.write_text(trace.json()))
    print(report(trace, files.shown))
    if files.stale:
        print(f"note: of an earlier run: {len(files.stale)} images from {files.stale[0]} on")


def named(options: argparse.Namespace, seeds: list[int]) -> outputs.Outputs:
    """Names for what is drawn."""
    preset = options.preset or next(iter(registry.preset(options.model).recipes))
    about = {"model": options.model, "method": options.method, "preset": preset}
    return outputs.choose(options.out, about, seeds, options.trace, overwrite=options.overwrite)


def sized(pipe: Any, options: argparse.Namespace) -> Any:
    """The pipeline for images of the size that the flags ask for."""
    if options.height is None and options.width is None:
        return pipe
    if pipe.kind == "next-scale":
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


def report(trace: "Trace", out: str) -> str:
    """One line on a run; the widths of its blocks show what an automatic window chose."""
    widths = ", ".join(f"{count} of width {width}" for width, count in sorted(trace.windows.items()))
    return (
        f"{out}: {trace.images} images by {trace.method}, {trace.forwards_per_image:.1f} forwards per image, "
        f"{trace.tokens_per_forward:.2f} tokens per forward, {trace.seconds['total']:.2f} s (blocks: {widths})"
    )
