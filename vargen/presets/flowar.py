"""FlowAR as published: three sizes, their files, and the recipes with their sources.

Sizes and settings are those of the copy that DiSA's authors run (Qinyu-Allen-Zhao/DiSA, commit 283fa59b, FlowAR_DiSA),
whose README has them for plain decoding and for DiSA. The autoencoder is MAR's.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vargen.core import checkpoints, hub
from vargen.core.layout import Layout
from vargen.core.preset import Preset, Recipe, Sources
from vargen.models import flowar
from vargen.models.flowar import FlowAR, FlowARConfig
from vargen.presets import fitted, mar
from vargen.presets.llamagen import imagenet
from vargen.tokenizers.kl import KLTokenizer

if TYPE_CHECKING:
    from vargen.pipelines.continuous import ContinuousPipeline

REPOSITORY = "OliverRen/FlowAR"
REVISION = "main"  # no revision is known to us: the branch
SHAPES = {
    "flowar-s": FlowARConfig(),
    "flowar-l": FlowARConfig(8, 16, 1024, head_depth=12, cross=True),
    "flowar-h": FlowARConfig(15, 16, 1536, head_depth=12, head_width=1536, cross=True),
}
GUIDANCE = {"flowar-s": 4.3, "flowar-l": 2.4, "flowar-h": 2.4}
DISA_GUIDANCE = GUIDANCE | {"flowar-s": 4.2}
STEPS = {"flowar-s": 25, "flowar-l": 25, "flowar-h": 50}
GUIDANCE_HIGH = {"flowar-s": 0.9, "flowar-l": 0.9, "flowar-h": 0.7}
FID = {"flowar-l": 1.90, "flowar-h": 1.65}


def file_of(name: str) -> str:
    """The name under which a model's weights were published."""
    return f"FlowAR-{name[-1].upper()}.pth"


def find(repository: str, file: str, given: Path | None) -> Path:
    """A weights file: the one given, in the folder given, or downloaded."""
    if given is None:
        return hub.fetch(repository, file, REVISION)
    path = given / file if given.is_dir() else given
    if not path.is_file():
        raise ValueError(f"no weights file {path}")
    return path


def files(repository: str, file: str, sources: Sources, device: torch.device) -> tuple[Path, KLTokenizer | None]:
    """The weights file, and the autoencoder. A path that was given is looked at first; a long download comes last."""
    if sources.checkpoint is not None:
        return find(repository, file, sources.checkpoint), mar.autoencoder(sources, device)
    images = mar.autoencoder(sources, device)
    return find(repository, file, None), images


def load(transformer: nn.Module, weights: Path, layout: Layout, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A transformer built on the meta device, with its weights, in evaluation mode."""
    checkpoints.load_into(transformer, weights, layout, dtype=dtype, device=device)
    return transformer.eval().requires_grad_(False)


def shapes(name: str, path: Path | None, sources: Sources) -> FlowARConfig:
    """The shapes of a preset with the numbers of a file."""
    return fitted.flow(SHAPES[name], path, flowar.LAYOUT, sources.numbers, name, SHAPES)


def adapted(name: str, sources: Sources) -> Preset:
    """A preset with the numbers of the file that is named."""
    given = sources.checkpoint
    config = shapes(name, None if given is None else find(REPOSITORY, file_of(name), given), sources)
    return fitted.preset(PRESETS[name], SHAPES[name], config, FlowAR)


def build(name: str, sources: Sources, device: torch.device, dtype: torch.dtype) -> "ContinuousPipeline":
    """The pipeline of a preset, from the official files or from `sources`."""
    from vargen.pipelines.continuous import ContinuousPipeline

    weights, images = files(REPOSITORY, file_of(name), sources, device)
    config = shapes(name, weights, sources)
    with torch.device("meta"):
        transformer = FlowAR(config)
    loaded = load(transformer, weights, flowar.LAYOUT, device, dtype)
    preset = fitted.preset(PRESETS[name], SHAPES[name], config, FlowAR)
    return ContinuousPipeline(loaded, images, preset=preset)


def recipes(name: str) -> dict[str, Recipe]:
    """`fid` has the README's settings of plain decoding, `disa` those of DiSA; either has the steps of both methods."""
    steps, high = STEPS[name], {"guidance_high": GUIDANCE_HIGH[name]}
    settings = {"flowar": {"steps": steps, **high}, "disa": {"upper": steps, "lower": 15, **high}}
    published = {"fid": FID[name]} if name in FID else {}
    return {
        "fid": Recipe(GUIDANCE[name], settings=settings, published=published),
        "disa": Recipe(DISA_GUIDANCE[name], settings=settings),
    }


def _preset(name: str) -> Preset:
    summary = f"FlowAR {name[-1].upper()} on ImageNet's classes at 256 pixels."
    spec, make = SHAPES[name].spec, partial(build, name)
    how: Any = {"skeleton": partial(FlowAR, SHAPES[name]), "reads": partial(adapted, name), "layout": flowar.LAYOUT}
    how |= {"repository": REPOSITORY, "file": file_of(name)}
    return Preset(name, summary, recipes(name), spec.classes, make, imagenet, mar.EXAMPLES, spec, **how)


PRESETS = {name: _preset(name) for name in SHAPES}
