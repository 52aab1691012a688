"""The command line: `vargen sample`, `vargen bench`, `vargen models`; the scripts are doors to the same functions."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vargen import registry
from vargen.checkpoints import write_atomically
from vargen.core import Trace


def guarded(run: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends it with one sentence and status 2, Ctrl-C with status 130."""
    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except (ValueError, OSError) as error:
        print(f"vargen: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("vargen: stopped; finished images are kept", file=sys.stderr)
        raise SystemExit(130) from None


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are one sentence."""

    def error(self, message: str) -> Any:
        raise ValueError(message)


def add_law(parser: argparse.ArgumentParser) -> None:
    """Flags that every sampling command has."""
    parser.add_argument("--model", default="pocket-llamagen", help="name of a model, see --list")
    parser.add_argument("--checkpoint", type=Path, help="weights file to use instead of the published one")
    parser.add_argument("--guidance-scale", type=float, help="classifier-free guidance; 1 is off")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-k", type=int, help="0 is off")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int, default=0, help="of the first image; image i has seed + i")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the transformer")
    parser.add_argument("--batch-size", type=int, default=16, help="images decoded together")


def load(options: argparse.Namespace) -> Any:
    """The pipeline that the flags ask for."""
    import torch

    import vargen

    device = None if options.device is None else _device(options.device)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    return vargen.load(options.model, device=device, dtype=dtype, checkpoint=options.checkpoint)


def _device(name: str) -> str:
    import torch

    try:
        torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}, expected cpu, cuda or cuda:0") from None
    return name


def law(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of the pipeline from the flags of `add_law`."""
    return {name: getattr(options, name) for name in ("guidance_scale", "temperature", "top_k", "top_p")}


def listing() -> str:
    """Every model and method with a line each."""
    lines = ["models:"]
    for name in registry.MODELS:
        lines.append(f"  {name:24} {(registry.find(registry.MODELS, name, 'model').__doc__ or '').splitlines()[0]}")
    lines.append("methods:")
    lines += [f"  {name:24} {registry.summary(name)}" for name in registry.METHODS]
    return "\n".join(lines)


def sample(argv: list[str]) -> None:
    """Draw images into a grid, single files and, if asked, a trace."""
    first = Parser(add_help=False)
    first.add_argument("--method", default="sjd-coupled")
    method, _ = first.parse_known_args(argv)
    parser = Parser(prog="sample", description="Draw images.", parents=[first])
    add_law(parser)
    parser.add_argument("--class", dest="classes", action="append", help="name or index; repeat for several")
    parser.add_argument("--prompt", help="what to draw, for a model that takes text")
    parser.add_argument("--num-images", type=int, help="in all; the classes take turns (default: two of each)")
    parser.add_argument("--out", type=Path, default=Path("out/sample.png"), help="the grid; single files beside it")
    parser.add_argument("--trace", type=Path, help="write what was measured as JSON")
    parser.add_argument("--list", action="store_true", help="show models and methods")
    name = method.method.split(":")[0]
    group = parser.add_argument_group(f"settings of {name}")
    known = registry.settings_of(name)
    for setting in known:
        words = registry.describe(_hint(name, setting.name))
        group.add_argument(f"--{setting.name.replace('_', '-')}", help=f"{words} (default: {setting.default})")
    options = parser.parse_args(argv)
    if options.list:
        print(listing())
        return
    if options.num_images is not None and options.num_images < 1:
        raise ValueError(f"got --num-images {options.num_images}, expected at least 1")
    settings = {s.name: value for s in known if (value := getattr(options, s.name)) is not None}
    registry.method(options.method, **settings)  # refuse bad settings before anything is loaded
    for path in filter(None, (options.out, options.trace)):
        writable(path)
    _draw(options, settings)


def _hint(method: str, setting: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(registry.find(registry.METHODS, method, "method").Settings)[setting]


def _draw(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    pipe = load(options)
    classes = options.classes or (list(pipe.class_names) if options.prompt is None else None)
    count = options.num_images or 2 * len(classes or [0])
    labels = None if classes is None else [classes[i % len(classes)] for i in range(count)]
    if options.batch_size < 1:
        raise ValueError(f"got --batch-size {options.batch_size}, expected at least 1")
    images, traces = [], []
    for start in range(0, count, options.batch_size):
        part = slice(start, start + options.batch_size)
        seeds = [options.seed + i for i in range(count)][part]
        out = pipe(
            labels[part] if labels else None,
            prompt=options.prompt,
            method=options.method,
            seed=seeds,
            batch_size=options.batch_size,
            **law(options),
            **settings,
        )
        for index, image in enumerate(out.images, start):
            if count > 1:
                single = options.out.with_name(f"{options.out.stem}-{index}{options.out.suffix or '.png'}")
                save_png(single, image, _texts(out.trace, out.trace.seeds[index - start : index - start + 1]))
        images += out.images
        traces.append(out.trace)
    trace = Trace.merge(traces)
    save_png(options.out, grid(images), _texts(trace, trace.seeds))
    if options.trace:
        write_atomically(options.trace, lambda path: path.write_text(trace.json()))
    print(report(trace, options.out))


def report(trace: Trace, out: Path) -> str:
    """One line on a run."""
    return (
        f"{out}: {trace.images} images by {trace.method}, {trace.forwards_per_image:.1f} forwards per image, "
        f"{trace.tokens_per_forward:.2f} tokens per forward, {trace.seconds['total']:.2f} s"
    )


def _texts(trace: Trace, seeds: list[int]) -> dict[str, str]:
    seed = ",".join(map(str, seeds))
    return {"seed": seed, "model": trace.model, "method": trace.method, "settings": json.dumps(trace.settings)}


def grid(images: list[Any], columns: int = 10) -> Any:
    """PIL images of one size side by side, at most `columns` in a row."""
    from PIL import Image

    columns = min(columns, len(images))
    width, height = images[0].size
    sheet = Image.new("RGB", (width * columns, height * -(-len(images) // columns)), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


def save_png(path: Path, image: Any, texts: dict[str, str]) -> None:
    """Write a PNG with text chunks, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG", pnginfo=info))


def writable(path: Path) -> None:
    """Make the folder of `path`. ValueError where a file cannot be written there."""
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {path.parent}: {os.strerror(error.errno or 0)}") from None


def main() -> None:
    """The console script."""
    from vargen import bench

    commands: dict[str, Callable[[list[str]], None]] = {
        "sample": sample,
        "bench": bench.command,
        "models": lambda _: print(listing()),
    }
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"usage: vargen {{{','.join(commands)}}} [flags]; each takes --help")
        return

    def run(argv: list[str]) -> None:
        if name not in commands:
            raise ValueError(f"unknown command {name!r}; there are {', '.join(commands)}")
        commands[name](argv)

    guarded(run, sys.argv[2:])
