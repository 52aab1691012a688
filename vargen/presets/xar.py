"""xAR as published: three sizes, their files, and the recipes with their sources.

Sizes and settings are those of the official repository (OliverRensu/xAR, commit 121e9c93); those of DiSA are its
authors' (Qinyu-Allen-Zhao/DiSA, commit 283fa59b, xAR_DiSA). The autoencoder is MAR's.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vargen.core.preset import Preset, Recipe, Sources
from vargen.models import xar
from vargen.models.xar import XAR, XARConfig
from vargen.presets import fitted, flowar, mar
from vargen.presets.llamagen import imagenet

if TYPE_CHECKING:
    from vargen.pipelines.continuous import ContinuousPipeline

REPOSITORY = "OliverRen/xAR"  # of no revision known to us, as FlowAR's
SHAPES = {
    "xar-b": XARConfig(),
    "xar-l": XARConfig(16, 16, 1024),
    "xar-h": XARConfig(20, 16, 1280),
}
GUIDANCE = {"xar-b": 2.7, "xar-l": 2.3, "xar-h": 2.2}  # with DiSA the same
STEPS = {"xar-b": 40, "xar-l": 50, "xar-h": 50}
FID = {"xar-h": 1.24}  # README; those of the others are in the paper alone


def file_of(name: str) -> str:
    """The name under which a model's weights were published."""
    return f"xAR-{name[-1].upper()}.pth"


def shapes(name: str, path: Path | None, sources: Sources) -> XARConfig:
    """The shapes of a preset with the numbers of a file."""
    return fitted.flow(SHAPES[name], path, xar.LAYOUT, sources.numbers, name, SHAPES)


def adapted(name: str, sources: Sources) -> Preset:
    """A preset with the numbers of the file that is named."""
    given = sources.checkpoint
    config = shapes(name, None if given is None else flowar.find(REPOSITORY, file_of(name), given), sources)
    return fitted.preset(PRESETS[name], SHAPES[name], config, XAR)


def build(name: str, sources: Sources, device: torch.device, dtype: torch.dtype) -> "ContinuousPipeline":
    """The pipeline of a preset, from the official files or from `sources`."""
    from vargen.pipelines.continuous import ContinuousPipeline

    weights, images = flowar.files(REPOSITORY, file_of(name), sources, device)
    config = shapes(name, weights, sources)
    with torch.device("meta"):
        transformer = XAR(config)
    loaded = flowar.load(transformer, weights, xar.LAYOUT, device, dtype)
    return ContinuousPipeline(loaded, images, preset=fitted.preset(PRESETS[name], SHAPES[name], config, XAR))


def recipes(name: str) -> dict[str, Recipe]:
    """`fid` has the README's settings of plain decoding, `disa` those of DiSA; either has the steps of both methods."""
    settings = {"xar": {"steps": STEPS[name]}, "disa": {"upper": 50, "lower": 15}}
    published = {"fid": FID[name]} if name in FID else {}
    return {
        "fid": Recipe(GUIDANCE[name], settings=settings, published=published),
        "disa": Recipe(GUIDANCE[name], settings=settings),
    }


def _preset(name: str) -> Preset:
    summary = f"xAR {name[-1].upper()} on ImageNet's classes at 256 pixels."
    spec, make = SHAPES[name].spec, partial(build, name)
    how: Any = {"skeleton": partial(XAR, SHAPES[name]), "reads": partial(adapted, name), "layout": xar.LAYOUT}
    how |= {"repository": REPOSITORY, "file": file_of(name)}
    return Preset(name, summary, recipes(name), spec.classes, make, imagenet, mar.EXAMPLES, spec, **how)


PRESETS = {name: _preset(name) for name in SHAPES}
