"""`vargen sample` and scripts/sample.py: what is drawn, from flags."""

import argparse
from pathlib import Path
from typing import Any, get_type_hints

from vargen.commands import drawing, flags, like, outputs
from vargen.commands.models import listing
from vargen.core import registry


def command(argv: list[str]) -> None:
    """Draw images into a grid, single files and, if asked, a trace."""
    named = wanted_method(argv)
    options = parser(named).parse_args(argv)
    if options.list:
        print(listing())
        return
    outputs.check(options.out)
    if options.like:
        like.command(options, parser())
        return
    settings = {name: value for name in _settings(named) if (value := getattr(options, name)) is not None}
    options.method = drawing.spelled(options.method or named, settings)
    flags.check(options, [(options.method, {})])
    preset = flags.preset(options)
    chosen = flags.subjects(options, preset)
    arguments = {**flags.law(options), **flags.repainting(options)}
    for name in ("negative_prompt", "num_inference_steps"):
        if (given := getattr(options, name)) is not None:
            arguments[name] = given
    count = options.num_images or 2 * len(chosen)
    options.batch_size = options.batch_size or batch_size(options, preset.kind)
    flags.check_memory(options, options.method, count)
    seeds = [options.seed + i for i in range(count)]
    drawing.draw(options, flags.load, drawing.Work(seeds, chosen, options.batch_size, arguments=arguments))


def wanted_method(argv: list[str]) -> str:
    """The method that the flags name, or else their model's; none where only help is wanted, which is to be quick."""
    early = flags.Parser(add_help=False)
    early.add_argument("--method")
    early.add_argument("--model", default=flags.DEFAULT_MODEL)
    found = early.parse_known_args(argv)[0]
    quick = {"-h", "--help", "--list"} & set(argv) and not found.method
    return "" if quick else found.method or registry.preset(found.model).method


def parser(method: str = "") -> flags.Parser:
    """The flags, those of the method's settings among them, if one is named."""
    made = flags.Parser(prog="vargen sample", description="Draw images.", conflict_handler="resolve")
    flags.add_options(made, "method")
    flags.add_subjects(made)
    flags.add_options(made, "negative_prompt")
    made.add_argument("--num-images", type=int, help="in all; classes or prompts take turns (default: two of each)")
    flags.add_options(made, "height", "width", "image_size", "image", "mask_image")
    made.add_argument("--num-inference-steps", type=int, metavar="N", help="of what denoises, where something does")
    made.add_argument("--like", type=Path, help="a picture to draw again, from what its file says")
    made.add_argument("--compare", action="store_true", help="draw by plain decoding too, and say what was saved")
    made.add_argument("--out", default="out/sample.png", help="the grid, images beside it; DIR/; {model}-{seed}.jpg")
    made.add_argument("--overwrite", action="store_true", help="files that are there, instead of numbering on")
    made.add_argument("--trace", type=Path, help="write what was measured as JSON")
    made.add_argument("--verbose", action="store_true", help="show how wide the blocks of the forwards were, too")
    made.add_argument("--list", action="store_true", help="show models and methods")
    flags.add_law(made)
    made.set_defaults(batch_size=None)
    name = method.split(":")[0]
    words = None if name else "flags too: --method NAME --help shows those of a method"
    group = made.add_argument_group(f"settings of {name or 'the method'}", words)
    for setting, default in _settings(name).items():
        said = registry.describe(_hint(name, setting))
        group.add_argument(f"--{setting.replace('_', '-')}", metavar="VALUE", help=f"{said} (default: {default})")
    return made


def _settings(method: str) -> dict[str, Any]:
    """A method's settings and their defaults, without the drafter, which has a flag of its own."""
    name = method.split(":")[0]
    fields = registry.settings_of(name) if name else []
    return {field.name: field.default for field in fields if field.name != "drafter"}


def _hint(method: str, setting: str) -> Any:
    return get_type_hints(registry.sampler(method).Settings)[setting]


def batch_size(options: argparse.Namespace, kind: str) -> int:
    """Images decoded together unless it is said: on a CPU a window saves most where a raster image is drawn alone."""
    from vargen.pipelines.loading import find_device

    return 1 if kind == "raster" and find_device(options.device).type == "cpu" else 16
