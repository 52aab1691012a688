"""MAR as published: three sizes, the KL autoencoder that others share, and the recipes with their sources.

Sizes are those of the released weights (README of the official repository, commit fe470ac2). The transformers' files
were published on Dropbox (its util/download.py), all under one name: give them by path. Of the autoencoder there is a
copy beside Harmon's weights, of no revision known to us: the branch is taken.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vargen.core import checkpoints, hub
from vargen.core.layout import Layout
from vargen.core.numbers import Numbers
from vargen.core.preset import Preset, Recipe, Sources
from vargen.models import mar
from vargen.models.mar import MAR, MARConfig
from vargen.presets import fitted
from vargen.presets.llamagen import imagenet
from vargen.tokenizers import kl
from vargen.tokenizers.kl import KLConfig, KLTokenizer

if TYPE_CHECKING:
    from vargen.pipelines.continuous import ContinuousPipeline

REPOSITORY, REVISION = "wusize/harmon", "main"
FILE, TOKENIZER_FILE = "checkpoint-last.pth", "kl16.ckpt"
SHAPES = {
    "mar-base": MARConfig(),
    "mar-large": MARConfig(layers=16, heads=16, width=1024, head_depth=8, head_width=1280),
    "mar-huge": MARConfig(layers=20, heads=16, width=1280, head_depth=12, head_width=1536),
}
TOKENIZERS = {"mar-kl-16": KLConfig()}
GUIDANCE = {"mar-base": 2.9, "mar-large": 3.0, "mar-huge": 3.2}  # README, 256 x 100
DISA_GUIDANCE = GUIDANCE | {"mar-huge": 3.3}
FID = {"mar-base": 2.31, "mar-large": 1.78, "mar-huge": 1.55}


def find(name: str, given: Path | None) -> Path:
    """The weights file of a model or of the autoencoder: the one given, in the folder given, or downloaded."""
    file = TOKENIZER_FILE if name in TOKENIZERS else FILE
    if given is None and name in TOKENIZERS:
        return hub.fetch(REPOSITORY, file, REVISION)
    if given is None:
        raise ValueError(f"{file} of {name} was not published on a hub: name a checkpoint, or a drafter's")
    inside = [given / file, given / name.replace("-", "_") / file]
    path = next((path for path in inside if path.is_file()), inside[0]) if given.is_dir() else given
    if not path.is_file():
        raise ValueError(f"no weights file {path}")
    return path


def tokenizer(name: str, checkpoint: Path | None, device: torch.device, numbers: Numbers | None = None) -> KLTokenizer:
    """The autoencoder, in float32 as it is used for figures, with the numbers that its file has."""
    path = find(name, checkpoint)
    config = fitted.kl(TOKENIZERS[name], path, kl.layout(TOKENIZERS[name]), numbers or Numbers(), name)
    with torch.device("meta"):
        module = KLTokenizer(config)
    checkpoints.load_into(module, path, kl.layout(config), device=device)
    return module.eval().requires_grad_(False)


def autoencoder(sources: Sources, device: torch.device) -> KLTokenizer | None:
    """KL-16 from its own file, from the folder in which the transformer's is, or downloaded; a drafter needs none."""
    if sources.drafts:
        return None
    given = sources.checkpoint
    folder = given if given and given.is_dir() and (given / TOKENIZER_FILE).is_file() else None
    return tokenizer("mar-kl-16", sources.tokenizer_checkpoint or folder, device)


def shapes(name: str, path: Path | None, sources: Sources) -> MARConfig:
    """The shapes of a preset with the numbers of a file."""
    return fitted.mar(SHAPES[name], path, _layout(sources), sources.numbers, name, SHAPES)


def _layout(sources: Sources) -> Layout:
    return mar.LAYOUT if sources.ema else replace(mar.LAYOUT, under=None)


def adapted(name: str, sources: Sources) -> Preset:
    """A preset with the numbers of the file that is named."""
    given = sources.checkpoint
    config = shapes(name, None if given is None else find(name, given), sources)
    return fitted.preset(PRESETS[name], SHAPES[name], config, MAR)


def build(name: str, sources: Sources, device: torch.device, dtype: torch.dtype) -> "ContinuousPipeline":
    """The pipeline of a preset, from the official files in `sources`."""
    from vargen.pipelines.continuous import ContinuousPipeline

    weights = find(name, sources.checkpoint)
    config = shapes(name, weights, sources)
    images = autoencoder(sources, device)
    with torch.device("meta"):
        transformer = MAR(config)
    checkpoints.load_into(transformer, weights, _layout(sources), dtype=dtype, device=device)
    transformer.eval().requires_grad_(False)
    return ContinuousPipeline(transformer, images, preset=fitted.preset(PRESETS[name], SHAPES[name], config, MAR))


def recipes(name: str) -> dict[str, Recipe]:
    """`fid` and `plain` have the settings of the README, `demo` those of demo/run_mar.ipynb, `disa` those of DiSA."""
    annealed = {"iterations": 64, "upper": 50, "lower": 5}
    published, flat = {"iterations": 256, "steps": 100}, {"iterations": 64, "schedule": "constant"}
    return {
        "fid": Recipe(GUIDANCE[name], settings={"mar": published}, published={"fid": FID[name]}),
        "demo": Recipe(
            4.0, settings={"mar": {**flat, "steps": 100}, "disa": {**annealed, "schedule": "constant"}, "csd": flat}
        ),
        "disa": Recipe(DISA_GUIDANCE[name], settings={"disa": annealed}),
        "plain": Recipe(1.0, temperature=0.95, settings={"mar": published}),
    }


EXAMPLES = (207, 360, 388, 113, 355, 980, 323, 979)  # the classes of demo/run_mar.ipynb


def _preset(name: str) -> Preset:
    summary = f"MAR {name.split('-')[1]} on ImageNet's classes at 256 pixels."
    small = "mar-base" if name != "mar-base" else None
    spec, make, law = SHAPES[name].spec, partial(build, name), recipes(name)
    how: Any = {"skeleton": partial(MAR, SHAPES[name]), "reads": partial(adapted, name)}
    how |= {"layout": mar.LAYOUT, "file": FILE}
    return Preset(name, summary, law, spec.classes, make, imagenet, EXAMPLES, spec, small, **how)


PRESETS = {name: _preset(name) for name in SHAPES}
