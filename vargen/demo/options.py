"""The options of a call as the page offers them: those of `pipelines/options.py` that a visitor may say in text.

Nothing here knows an option by name but those that the page has parts of its own for: a new one shows up by itself.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from vargen.core import registry
from vargen.core.preset import LAW, Preset
from vargen.pipelines import request
from vargen.pipelines.continuous import ContinuousPipeline
from vargen.pipelines.next_scale import NextScalePipeline
from vargen.pipelines.options import KINDS, About, about
from vargen.pipelines.raster import RasterPipeline

# What the page has parts of its own for: model, class, prompt, method, images, seed, size, and the brush.
OWN = {"class_labels", "prompt", "method", "num_images_per_prompt", "seed", "height", "width", "image", "mask_image"}
SAYABLE = (bool, int, float, str)  # no paths: nobody names the machine's files
TYPES = {pipe.kind: pipe.options_type for pipe in (RasterPipeline, NextScalePipeline, ContinuousPipeline)}


@cache
def offered() -> dict[str, About]:
    """Every option that a page can ask for, by name."""
    names = dict.fromkeys(each.name for kind in KINDS for each in fields(kind))
    found = {name: about(name) for name in names if name not in OWN}
    return {name: known for name, known in found.items() if known.text in SAYABLE and not known.whole}


@cache
def taken(model: str) -> tuple[str, ...]:
    """The names of those that a model takes."""
    preset = registry.preset(model)
    own = {each.name for each in fields(TYPES[preset.kind])}
    return tuple(name for name in offered() if name in own and _takes(preset, name))


def _takes(preset: Preset, name: str) -> bool:
    if name == "preset":
        return len(preset.recipes) > 1  # a choice of one is none
    if name in LAW:  # the recipe's own value is refused where there is no such thing
        try:
            request.asked(preset.method, preset.recipe, {name: vars(preset.recipe)[name]}, {}, preset.spec)
        except ValueError:
            return False
    return "prompt" not in name or not preset.classes


def usual(model: str) -> dict[str, Any]:
    """What each is unless it is said: what the model's first recipe has, or nothing."""
    preset = registry.preset(model)
    known = {"preset": next(iter(preset.recipes)), **vars(preset.recipe)}
    return {name: known.get(name, _default(name)) for name in offered()}


def _default(name: str) -> Any:
    return next(each.default for kind in KINDS for each in fields(kind) if each.name == name)


def written(value: Any) -> str:
    """A value as text: nothing where it is None, and commas between several."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value).lower() if isinstance(value, bool) else value
    many = value if isinstance(value, list | tuple) else [value]
    return ",".join(f"{each:.17g}" if float(f"{each:g}") != each else f"{each:g}" for each in many)


def read(name: str, said: Any) -> Any:
    """The value of an option from text; None where it says nothing. ValueError names the option."""
    known = offered().get(name)
    if known is None:
        raise ValueError(registry.unknown("option", name, list(offered())))
    text = said.strip() if isinstance(said, str) else written(said)
    if text == "":
        return None
    parts = text.split(",") if known.many else [text]
    found = [registry.convert(part.strip(), known.text, name) for part in parts]
    return found[0] if len(found) == 1 else found


def chosen(model: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something, read; those that the model does not take are left out."""
    values = {name: read(name, text) for name, text in said.items() if name in taken(model)}
    known = usual(model)
    return {name: value for name, value in values.items() if value is not None and not _switch(value, known[name])}


def _switch(value: Any, usual: Any) -> bool:
    """Whether it is a box with a tick, or none, that nobody has touched."""
    return isinstance(value, bool) and value == usual
