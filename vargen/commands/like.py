"""`vargen sample --like picture.png`: draw a picture again from what its file says, none of it believed unread.

A file names a model, a method and a law as flags do, and is checked as they are; it never names files or addresses.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vargen.commands import drawing, flags
from vargen.core import registry, safe_json
from vargen.core.messages import quoted, shown
from vargen.core.png import FORMATS
from vargen.core.preset import LAW
from vargen.demo.limits import MOST as MOST_OF

MOST_TEXT = 1 << 20  # characters of one text of a picture
MOST_PROMPT = 10_000  # characters
MOST_SETTING = 4096  # of settings that are not bounded by name
TAKES = {"like", "out", "overwrite", "trace", "verbose", "device", "image", "mask_image", "compare"}
TAKES |= {"checkpoint", "tokenizer_checkpoint", "text_encoder", "no_ema", "drafter", "drafter_checkpoint"}
TAKES |= {f"number_{name}" for name in flags.NUMBERS}


@dataclass(frozen=True)
class Told:
    """What a picture's file says, checked."""

    weights: str
    device: str
    pictures: dict[str, str]  # digests of a picture and a mask
    work: drawing.Work
    clock: bool = False  # whether it was drawn by a window that nobody can choose again


def command(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Draw the picture that the flags name again, and say whether it is the same."""
    suffix = options.like.suffix.lower()
    if options.out == parser.get_default("out") and suffix in FORMATS:  # as it is, so that both can be compared
        options.out = str(Path(options.out).with_suffix(suffix))
    given = [name for name, value in vars(options).items() if name not in TAKES and value != parser.get_default(name)]
    if given:
        raise ValueError(f"--like draws a picture as it was drawn: it takes no --{given[0].replace('_', '-')}")
    told = read(options.like, options)
    flags.check(options, [(options.method, {})])
    flags.check_memory(options, options.method, len(told.work.seeds))
    told.work.arguments |= flags.law(options) | repainted(options, told)

    def load(asked: argparse.Namespace) -> Any:
        pipe = flags.load(asked)
        if told.device != pipe.transformer.device.type:
            print(f"note: it was drawn on {told.device}, here on {pipe.transformer.device.type}: last bits may differ")
        return pipe

    before = options.like.read_bytes()
    files = drawing.draw(options, load, told.work)
    print(verdict(options.like, before, files.paths[0], told))


def read(path: Path, options: argparse.Namespace) -> Told:
    """What a picture says, into the options, as flags would have said it. ValueError in one sentence."""
    from vargen.core.image_processor import open_picture
    from vargen.core.png import read_texts

    texts = read_texts(open_picture(path))
    if missing := [key for key in ("model", "method", "settings", "seed") if not texts.get(key)]:
        raise ValueError(f"{path} does not say how it was drawn: it names no {missing[0]}")
    if long := [key for key, text in texts.items() if len(text) > MOST_TEXT]:
        raise ValueError(f"{path} says {shown(long[0])} in {len(texts[long[0]])} characters: too long to be believed")
    try:
        return _read(texts, options)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path} does not say how it was drawn: {error}") from None


def _read(texts: dict[str, str], options: argparse.Namespace) -> Told:
    from vargen.pipelines import values

    preset, settings = registry.preset(texts["model"]), safe_json.parse(texts["settings"])
    if "free_size" in texts or not isinstance(settings, dict):
        raise ValueError("its size was chosen by the model" if "free_size" in texts else "its settings are no object")
    options.model, options.preset = preset.name, texts.get("preset")
    options.method, options.quantize = texts["method"], settings.get("quantize")
    own = by_keyword(options.method, settings, preset.choose(options.preset))
    for name in LAW:
        setattr(options, name, settings.get(name))
    for name, known in (("dtype", ("float32", "bfloat16", "float16")), ("fast", ("auto", "off", "triton"))):
        setattr(options, name, _among(name, texts.get(name, getattr(options, name)), known))
    device = _among("device", texts.get("device", "cpu"), ("cpu", "cuda"))
    if (wanted := options.quantize) not in (None, "int8", "int4"):
        raise ValueError(f"got quantize {quoted(wanted)}")
    if side := texts.get("image_size"):
        options.image_size = _whole(side, "image size")
    work = company(texts, preset)
    work.arguments |= own
    if (steps := settings.get("num_inference_steps")) is not None:
        work.arguments["num_inference_steps"] = values.whole(steps, "num_inference_steps", least=1, most=1000)
    options.batch_size = work.batch_size
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", texts.get("size", ""))
    if size and preset.kind == "raster" and not preset.classes:
        options.width, options.height = map(int, size.groups())
    if negative := texts.get("negative_prompt"):
        if negative.startswith("["):
            raise ValueError("its prompts had negative prompts of their own, which nobody can say again")
        work.arguments["negative_prompt"] = negative[:MOST_PROMPT]
    pictures = {name: texts[name] for name in ("image", "mask_image") if name in texts}
    sampler, chosen = registry.method(options.method, preset.choose(options.preset).settings, **own)
    return Told(texts.get("weights", ""), device, pictures, work, sampler.block_width(chosen) is None)


def _among(name: str, found: Any, known: tuple[str, ...]) -> Any:
    if found is not None and found not in known:
        raise ValueError(f"got {name} {quoted(found)}")
    return found


def by_keyword(method: str, settings: dict[str, Any], recipe: Any) -> dict[str, Any]:
    """Settings that a call was given beside its method: neither the method's text nor the recipe has them."""
    sampler, chosen = registry.method(method, recipe.settings)
    names = [field.name for field in registry.settings_of(method.split(":")[0]) if field.name != sampler.partner]
    more = {name: settings[name] for name in names if name in settings and settings[name] != vars(chosen)[name]}
    for key, value in vars(registry.method(method, recipe.settings, **more)[1]).items():
        if isinstance(value, int) and abs(value) > MOST_OF.get(key, MOST_SETTING):
            raise ValueError(f"got {key} {value}, expected at most {MOST_OF.get(key, MOST_SETTING)}")
    return more


def company(texts: dict[str, str], preset: Any) -> drawing.Work:
    """The images that it was drawn beside: their seeds and subjects, and which of them it is."""
    from vargen.pipelines import values

    kind = "class" if preset.classes else "prompt"
    told = safe_json.parse(texts["batch"]) if "batch" in texts else {"seeds": [texts["seed"]], kind: [texts.get(kind)]}
    if not isinstance(told, dict) or not all(isinstance(told.get(key), list) for key in ("seeds", kind)):
        raise ValueError("it names no images that it was drawn beside, as it should")
    if told[kind] == [None]:
        raise ValueError(f"it names no {kind}")
    seeds, subjects = [_whole(seed, "seed") for seed in told["seeds"]], told[kind]
    most = flags.MOST["num_images"]
    if not 0 < len(seeds) == len(subjects) <= most:
        raise ValueError(f"got {len(seeds)} seeds for {len(subjects)} images, expected as many, up to {most}")
    if preset.classes:
        chosen: list[Any] = [values.label(subject, preset.names(), preset.classes, -1) for subject in subjects]
    else:
        chosen = values.prompts(subjects)
        if max(map(len, chosen)) > MOST_PROMPT:
            raise ValueError(f"got a prompt of {max(map(len, chosen))} characters, expected at most {MOST_PROMPT}")
    size = values.whole(told.get("size", len(seeds)), "batch size", least=1, most=flags.MOST["batch_size"])
    only = told.get("index") if len(seeds) > 1 else None
    if only is not None:
        only = values.whole(only, "index", least=0, most=len(seeds) - 1)
    return drawing.Work(seeds, chosen, size, only)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"got {name} {quoted(value)}, expected a whole number")
    return value


def repainted(options: argparse.Namespace, told: Told) -> dict[str, Any]:
    """The pictures that it was made from, which are to be named again. ValueError where they are others."""
    from vargen.pipelines.drawn import digest

    found = flags.repainting(options)
    for name, wanted in told.pictures.items():
        flag = f"--{name.replace('_', '-')}"
        if name not in found:
            raise ValueError(f"{options.like} was made from a picture: give it by {flag} (digest {shown(wanted)})")
        if digest(name, found[name]) != wanted:
            raise ValueError(f"{options.like} was made from another {flag}: its digest is {shown(wanted)}")
    return found


def verdict(path: Path, before: bytes, drawn: Path, told: Told) -> str:
    """Whether the picture that was drawn is the one that was asked for."""
    from vargen.core.image_processor import open_picture
    from vargen.core.png import read_texts

    if drawn.read_bytes() == before:
        return f"{drawn} is {path}, byte for byte"
    old, new = open_picture(path), open_picture(drawn)
    if new.size == old.size and new.tobytes() == old.tobytes():
        return f"{drawn} has the pixels of {path}; what the files say differs"
    if FORMATS.get(path.suffix.lower()) != FORMATS.get(drawn.suffix.lower()):
        return f"note: {drawn} cannot be compared with {path}, which is of another format: name one such by --out"
    if told.clock:
        return f"note: {drawn} is another picture: the window of {path} followed the clock, and does not come again"
    if told.weights and read_texts(new).get("weights") != told.weights:
        return f"note: {drawn} is another picture: {path} was drawn by other weights, which --checkpoint may name"
    return f"note: {drawn} is another picture: {path} was drawn on another machine, by another version or in company"
