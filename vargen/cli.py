"""The command line: `vargen sample`, `bench`, `evaluate`, `models`; the scripts are doors to the same functions."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vargen import __version__, drawing, registry

if TYPE_CHECKING:  # torch is slow to import, and many complaints need no model
    from vargen.presets.contract import Preset


DEFAULT_MODEL = "pocket-llamagen"


def guarded(run: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends it with one sentence and status 2, Ctrl-C with status 130."""
    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # the reader of our output has gone; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"vargen: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("vargen: stopped; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are one sentence."""

    def error(self, message: str) -> Any:
        raise ValueError(message)


def add_law(parser: argparse.ArgumentParser) -> None:
    """Flags that every sampling command has."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name of a model, see --list")
    parser.add_argument("--checkpoint", type=Path, help="weights file to use instead of downloading the published one")
    parser.add_argument("--tokenizer-checkpoint", type=Path, help="the same for the image tokenizer")
    text = "folder or repository of a T5 encoder, or of a model's own text tokenizer, instead of the published one"
    parser.add_argument("--text-encoder", help=text)
    parser.add_argument("--no-ema", action="store_true", help="take a file's plain weights, not the averaged ones")
    parser.add_argument("--drafter", help="model that drafts, or refines, where a method wants one (default: its own)")
    parser.add_argument("--drafter-checkpoint", type=Path, help="its weights file")
    parser.add_argument("--preset", help="a published recipe of the model, see --list; default: the first")
    parser.add_argument(
        "--guidance-scale", type=float, help="classifier-free guidance; off at 1 (next-scale models: 0)"
    )
    parser.add_argument("--cfg-interval", type=int, help="last token (or scale) to be guided; -1: all")
    parser.add_argument("--temperature", type=_values(float), help="next-scale models: or a value for each, 1.1,1,1")
    parser.add_argument("--top-k", type=_values(int), help="0 is off; the same")
    parser.add_argument("--top-p", type=_values(float), help="the same")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; image i has seed + i")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the transformer")
    parser.add_argument("--fast", choices=["auto", "off", "triton"], default="auto", help="off: without kernels")
    parser.add_argument("--batch-size", type=int, default=16, help="images decoded together")


def _values(kind: type) -> Callable[[str], Any]:
    """Reads one number, or several with commas between them."""

    def read(text: str) -> Any:
        found = [kind(part) for part in text.split(",")]
        return found if len(found) > 1 else found[0]

    read.__name__ = kind.__name__  # as argparse's complaints call it
    return read


def add_subjects(parser: argparse.ArgumentParser) -> None:
    """Flags that say what is drawn."""
    parser.add_argument("--class", dest="classes", action="append", help="name or index; repeat for several")
    parser.add_argument("--prompt", action="append", help="for a model that takes text; repeat for several")


def load(options: argparse.Namespace) -> Any:
    """The pipeline that the flags ask for."""
    import torch

    import vargen

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    named = ("checkpoint", "tokenizer_checkpoint", "text_encoder", "drafter", "drafter_checkpoint")
    rest = {key: getattr(options, key) for key in (*named, "fast")}
    return vargen.load(options.model, device=options.device, dtype=dtype, ema=not options.no_ema, **rest)


def law(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of the pipeline from the flags of `add_law`."""
    from vargen.presets.contract import LAW

    return {"preset": options.preset, **{name: getattr(options, name) for name in LAW}}


def listing() -> str:
    """Every model, with its presets, and every method, a line each."""
    lines = ["models, and the presets of each:"]
    for preset in map(registry.preset, registry.MODELS):
        lines.append(f"  {preset.name:24} {preset.summary} [{', '.join(preset.recipes)}]")
    lines.append("methods:")
    lines += [f"  {name:24} {registry.summary(name)}" for name in registry.METHODS]
    return "\n".join(lines)


def sample(argv: list[str]) -> None:
    """Draw images into a grid, single files and, if asked, a trace."""
    first = Parser(add_help=False)
    first.add_argument("--method", help="a method with its settings, see --list (default: the model's)")
    early, rest = first.parse_known_args(argv)
    model = Parser(add_help=False)
    model.add_argument("--model", default=DEFAULT_MODEL)
    method = early.method or registry.preset(model.parse_known_args(rest)[0].model).method
    parser = Parser(prog="sample", description="Draw images.", parents=[first])
    add_law(parser)
    add_subjects(parser)
    parser.add_argument("--num-images", type=int, help="in all; classes or prompts take turns (default: two of each)")
    parser.add_argument("--height", type=int, help="in pixels, for a model with several sizes")
    parser.add_argument("--width", type=int, help="the same")
    parser.add_argument("--image-size", type=int, help="resize to so many pixels a side (default: as the preset says)")
    parser.add_argument(
        "--image", type=Path, help="a picture to repaint, with --mask-image, or to read with the prompt"
    )
    parser.add_argument("--mask-image", type=Path, help="where it is repainted (next-scale models): white; black stays")
    parser.add_argument("--out", type=Path, default=Path("out/sample.png"), help="the grid; single files beside it")
    parser.add_argument("--trace", type=Path, help="write what was measured as JSON")
    parser.add_argument("--list", action="store_true", help="show models and methods")
    parser.set_defaults(method=method)
    name = method.split(":")[0]
    group = parser.add_argument_group(f"settings of {name}")
    known = [setting for setting in registry.settings_of(name) if setting.name != "drafter"]  # it has its flag above
    for setting in known:
        words = registry.describe(_hint(name, setting.name))
        group.add_argument(f"--{setting.name.replace('_', '-')}", help=f"{words} (default: {setting.default})")
    options = parser.parse_args(argv)
    if options.list:
        print(listing())
        return
    settings = {s.name: value for s in known if (value := getattr(options, s.name)) is not None}
    check(options, [(options.method, settings)])
    chosen = subjects(options, registry.preset(options.model))
    if options.out.suffix not in ("", ".png"):
        raise ValueError(f"got --out {options.out}, expected a name that ends in .png")
    drawing.draw(options, load, {**law(options), **settings, **repainting(options)}, chosen)


def check(options: argparse.Namespace, methods: list[tuple[str, dict[str, Any]]]) -> None:
    """Refuse what can be refused before a model is loaded."""
    from vargen import request

    preset = registry.preset(options.model)
    recipe = preset.choose(options.preset)
    for name, settings in methods:
        request.asked(name, recipe, law(options), settings, preset.spec)
    request.image_size(getattr(options, "image_size", None), recipe)
    for flag in ("num_images", "batch_size"):
        if getattr(options, flag) is not None:
            request.whole(getattr(options, flag), f"--{flag.replace('_', '-')}", least=1)


def subjects(options: argparse.Namespace, preset: "Preset") -> list[Any]:
    """The class indices or the prompts that the flags ask for."""
    from vargen import request

    if preset.classes:
        if options.prompt:
            raise ValueError(f"{preset.name} draws classes and takes no --prompt: give --class")
        names, least = preset.names(), 0 if preset.kind == "raster" else -1
        return [request.label(value, names, preset.classes, least) for value in options.classes or preset.examples]
    if preset.captions and not options.classes and not options.prompt:
        return list(preset.captions(getattr(options, "num_images", None) or 10))
    if options.classes or not options.prompt:
        raise ValueError(f"{preset.name} draws what a prompt says: give --prompt" + " and no --class")
    return request.prompts(options.prompt)


def repainting(options: argparse.Namespace) -> dict[str, Any]:
    """The picture and the mask that the flags name, if they do."""
    from PIL import Image

    named = {key: path for key in ("image", "mask_image") if (path := getattr(options, key))}
    preset = registry.preset(options.model)
    reads = preset.kind == "raster" and not preset.classes and "mask_image" not in named
    if named and not reads and registry.preset(options.model).kind != "next-scale":
        raise ValueError(f"{options.model} repaints no pictures: next-scale models do, such as var-d36")
    if len(named) == 1 and not reads:
        raise ValueError("give both --image and --mask-image: what is repainted, and where")
    try:
        return {key: Image.open(path).copy() for key, path in named.items()}
    except OSError as error:
        raise ValueError(f"cannot read a picture: {error}") from None


def _hint(method: str, setting: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(registry.find(registry.METHODS, method, "method").Settings)[setting]


def bench(argv: list[str]) -> None:
    """Compare methods; see `vargen/bench.py`."""
    from vargen.bench import command

    command(argv)


def evaluate(argv: list[str]) -> None:
    """Draw, measure and compare; see `vargen/eval/command.py`."""
    from vargen.eval.command import command

    command(argv)


def models(argv: list[str]) -> None:
    """Show models and methods."""
    Parser(prog="models", description="Show models and methods.").parse_args(argv)
    print(listing())


def main() -> None:
    """The console script."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "sample": sample,
        "bench": bench,
        "evaluate": evaluate,
        "models": models,
    }
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"usage: vargen {{{','.join(commands)}}} [flags]; each takes --help")
        return
    if name == "--version":
        print(__version__)
        return

    def run(argv: list[str]) -> None:
        if name not in commands:
            raise ValueError(f"unknown command {name!r}; there are {', '.join(commands)}")
        commands[name](argv)

    guarded(run, sys.argv[2:])
