"""Flags that several commands share, and what they ask for: a model, a law, what is drawn."""

import argparse
import difflib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vargen.core import registry
from vargen.core.numbers import Numbers
from vargen.core.preset import LAW
from vargen.pipelines.habits import REASONS
from vargen.pipelines.options import about

if TYPE_CHECKING:  # torch is slow to import, and many complaints need no model
    from vargen.core.preset import Preset

DEFAULT_MODEL = "pocket-llamagen"
MODEL = "name of a model, see vargen models"
DEVICE = "cpu or cuda (default: cuda where there is one)"
NUMBERS = {  # argument of `vargen.load`: the flags that the official scripts have for it
    "classes": ("--num-classes", "--class-num"),
    "codebook_size": ("--codebook-size",),
    "codebook_embed_dim": ("--codebook-embed-dim",),
    "downsample_size": ("--downsample-size",),
    "patch_nums": ("--pn", "--patch-nums"),
    "depth": ("--depth", "--model-depth"),  # the first is a setting of speculative-dynamic
}
MOST = {"num_images": 10_000, "batch_size": 10_000}  # of a command that holds its images


class Help(argparse.HelpFormatter):
    """Help that fits on a screen: a line a flag where the terminal is wide enough."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(shutil.get_terminal_size().columns, 120))

    def add_usage(self, usage: Any, actions: Iterable[Any], groups: Any, prefix: str | None = None) -> None:
        """The command, what stands behind it, and no flags, which are listed below."""
        named = [action for action in actions if not action.option_strings]
        super().add_usage(usage, named, [], prefix)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind: Any = action.type
        return {"int": "N", "float": "X", "Path": "FILE"}.get("" if kind is None else kind.__name__, "NAME")

    def _get_help_string(self, action: argparse.Action) -> str:
        """A flag's words, with its default where there is one and they do not say it themselves."""
        words, default = action.help or "", action.default
        told = default is None or default is False or default == argparse.SUPPRESS or "default" in words
        return words if told else f"{words} (default: %(default)s)"


def home(text: str) -> Path:
    """A path; a shell leaves the ~ in --out=~/a.png as it is."""
    return Path(os.path.expanduser(text))  # which does not mind where there is no home


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are one sentence, and whose help is short."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": Help, "allow_abbrev": False, **options})  # --cfg is no flag
        self.register("type", Path, home)

    def error(self, message: str) -> Any:
        """One sentence; of a flag that there is none of, the one most like it too."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        wrong = re.search(r"unrecognized arguments: (--[a-z0-9-]+)", message)
        like = _meant(wrong[1], flags) if wrong else []
        raise ValueError(f"{message}; did you mean {like[0]}?" if like else message)


def _meant(wrong: str, flags: list[str]) -> list[str]:
    """The flags that one of no parser may stand for: those that habits know, that it begins, or that are like it."""
    reason = re.fullmatch(r"it is (\w+)", REASONS.get(wrong[2:].replace("-", "_"), ""))
    known = [f"--{reason[1].replace('_', '-')}"] if reason else []
    begun = [flag for flag in flags if flag.startswith(wrong)]
    return [flag for flag in known if flag in flags] or begun or difflib.get_close_matches(wrong, flags, n=1)


def add_law(parser: argparse.ArgumentParser) -> None:
    """Flags that every sampling command has."""
    law = parser.add_argument_group("model and law")
    law.add_argument("--model", default=DEFAULT_MODEL, help=MODEL)
    add_options(law, "preset", *LAW)
    add_options(law, "seed", default=0)
    files = parser.add_argument_group("files, in the place of published ones")
    files.add_argument("--checkpoint", type=Path, help="weights of the transformer")
    files.add_argument("--tokenizer-checkpoint", type=Path, help="weights of the image tokenizer")
    files.add_argument("--text-encoder", help="folder or repository of a T5 encoder, or of a model's text tokenizer")
    files.add_argument("--no-ema", action="store_true", help="take a file's plain weights, not the averaged ones")
    files.add_argument("--drafter", help="model that drafts, or refines, where a method wants one (default: its own)")
    files.add_argument("--drafter-checkpoint", type=Path, help="its weights file")
    add_numbers(files)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help=DEVICE)
    dtypes, usual = ["float32", "bfloat16", "float16"], "of the transformer (default: float32 on a CPU, else bfloat16)"
    machine.add_argument("--dtype", choices=dtypes, help=usual)
    machine.add_argument("--fast", choices=["auto", "off", "triton"], default="auto", help="off: without kernels")
    machine.add_argument(
        "--quantize", choices=["int8", "int4"], help="store the layers' weights so; int4 on CUDA alone"
    )
    add_options(machine, "batch_size", default=16)


def add_numbers(parser: Any) -> None:
    """Flags for numbers that files have other than published ones: help shows the first and names the others."""
    rest = ", ".join(spelled[0] for spelled in list(NUMBERS.values())[1:])
    for name, spelled in NUMBERS.items():
        words = f"classes; also {rest}" if name == "classes" else argparse.SUPPRESS
        kind = str if name == "patch_nums" else int
        parser.add_argument(*spelled, dest=f"number_{name}", type=kind, metavar="N", help=words)


def preset(options: argparse.Namespace) -> "Preset":
    """The preset that the flags name, with the numbers of the files that they name."""
    return registry.preset(options.model).of(sources(options))


def sources(options: argparse.Namespace) -> Any:
    """The files that the flags name."""
    from vargen.core.preset import Sources

    weights, images = (path and path.expanduser() for path in (options.checkpoint, options.tokenizer_checkpoint))
    numbers = Numbers(**said(options))
    return Sources(weights, images, options.text_encoder, not options.no_ema, numbers=numbers)


def said(options: argparse.Namespace) -> dict[str, Any]:
    """The numbers that the flags say, as `vargen.load` takes them."""
    return {name: getattr(options, f"number_{name}") for name in NUMBERS}


def add_options(parser: Any, *names: str, default: Any = None) -> None:
    """Flags for options of a call, as `pipelines/options.py` has them."""
    for name in names:
        known = about(name)
        assert known.text is not None, f"{name} is nothing that text can say"
        words, how = known.words, {"type": _values(known.text) if known.many else known.text}
        if known.repeat:
            words, how = f"{words}; repeat for several", {"action": "append"}
        if name in LAW:
            words = f"{words} (default: the preset's)"
        if name == "method":
            words = f"{words} (default: the model's)"
        flag = f"--{known.flag or name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, default=default, help=words, **how)


def _values(kind: type) -> Callable[[str], Any]:
    """Reads one number, or several with commas between them."""

    def read(text: str) -> Any:
        found = [kind(part) for part in text.split(",")]
        return found if len(found) > 1 else found[0]

    read.__name__ = kind.__name__  # as argparse's complaints call it
    return read


def add_subjects(parser: argparse.ArgumentParser) -> None:
    """Flags that say what is drawn."""
    add_options(parser, "class_labels", "prompt")


def load(options: argparse.Namespace) -> Any:
    """The pipeline that the flags ask for."""
    import vargen

    named = ("checkpoint", "tokenizer_checkpoint", "text_encoder", "drafter", "drafter_checkpoint")
    rest = {key: getattr(options, key) for key in (*named, "fast", "quantize")} | said(options)
    return vargen.load(options.model, device=options.device, dtype=options.dtype, ema=not options.no_ema, **rest)


def law(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of the pipeline from the flags of `add_law`."""
    return {"preset": options.preset, **{name: getattr(options, name) for name in LAW}}


def check(options: argparse.Namespace, methods: list[tuple[str, dict[str, Any]]]) -> None:
    """Refuse what can be refused before a model is loaded."""
    from vargen.pipelines import request, values

    named = preset(options)
    recipe = named.choose(options.preset)
    for name, settings in methods:
        request.asked(name, recipe, law(options), settings, named.spec)
    request.image_size(vars(options).get("image_size"), recipe.image_size)
    for flag, most in MOST.items():
        if getattr(options, flag) is not None:
            values.whole(getattr(options, flag), f"--{flag.replace('_', '-')}", least=1, most=most)


def check_memory(options: argparse.Namespace, method: str, count: int) -> None:
    """Refuse `count` images whose keys and values this machine cannot hold at a time, where that can be planned."""
    from vargen.core.machine import total_memory
    from vargen.pipelines.loading import find_device, usual_dtype
    from vargen.pipelines.plan import plan

    preset, device = registry.preset(options.model), find_device(options.device)
    there = total_memory(device)
    if preset.skeleton is None or there is None or options.checkpoint is not None:
        return  # a file that is named may have other shapes than those that were published
    needed = plan(
        preset.name,
        method=method,
        batch=min(options.batch_size, count),
        preset=options.preset,
        guidance_scale=options.guidance_scale,
        dtype=options.dtype or usual_dtype(device),
        height=vars(options).get("height"),
        width=vars(options).get("width"),
    )
    if needed.cache + (0 if options.quantize else needed.weights) > there:
        raise ValueError(f"{needed}; {device} has {there / 2**30:.2f} GiB: lower --batch-size")


def subjects(options: argparse.Namespace, preset: "Preset") -> list[Any]:
    """The class indices or the prompts that the flags ask for."""
    from vargen.pipelines import values

    if preset.classes:
        if options.prompt:
            raise ValueError(f"{preset.name} draws classes and takes no --prompt: give --class")
        names, least = preset.names(), 0 if preset.kind == "raster" else -1
        return [values.label(value, names, preset.classes, least) for value in options.class_labels or preset.examples]
    if preset.scenes and not options.class_labels and not options.prompt:
        from vargen.scenes.dataset import captions

        return list(captions(options.num_images or 10))
    if options.class_labels or not options.prompt:
        raise ValueError(f"{preset.name} draws what a prompt says: give --prompt" + " and no --class")
    return values.prompts(options.prompt)


def repainting(options: argparse.Namespace) -> dict[str, Any]:
    """The picture and the mask that the flags name, if they do."""
    from vargen.core.image_processor import read_mask, read_picture

    named = {key: path for key in ("image", "mask_image") if (path := getattr(options, key))}
    preset = registry.preset(options.model)
    reads = preset.kind == "raster" and not preset.classes and "mask_image" not in named
    if named and not reads and registry.preset(options.model).kind != "next-scale":
        raise ValueError(f"{options.model} repaints no pictures: next-scale models do, such as var-d36")
    if len(named) == 1 and not reads:
        raise ValueError("give both --image and --mask-image: what is repainted, and where")
    return {key: (read_picture if key == "image" else read_mask)(path) for key, path in named.items()}
