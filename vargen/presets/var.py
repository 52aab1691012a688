"""VAR as published, and CoDe's pairs: every size, its files at a pinned revision, and its recipes with their sources.

Sizes are those of README.md and models/__init__.py of the official repository (commit 78b95394). CoDe's pairs are a
d30 (`code-drafter-N`, fine-tuned on the first N scales) and a d16 (`code-refiner-N`, on the others).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vargen.core import checkpoints, hub
from vargen.core.numbers import Numbers
from vargen.core.preset import Preset, Recipe, Sources
from vargen.models import var
from vargen.models.var import VAR, VARConfig
from vargen.presets import fitted
from vargen.presets.llamagen import imagenet
from vargen.tokenizers import multiscale_vq
from vargen.tokenizers.multiscale_vq import OFFICIAL_SIDES, MultiScaleVQConfig, MultiScaleVQTokenizer

if TYPE_CHECKING:
    from vargen.pipelines.next_scale import NextScalePipeline

REPOSITORY, REVISION = "FoundationVision/var", "367386cbd701447557c18f0ba8fb3ad7d761ba75"
# Of these no revision is known to us that has them all: the branch.
UNPINNED = {"var-d36": REPOSITORY, **dict.fromkeys(("code-drafter", "code-refiner"), "Zigeng/VAR_CoDe")}
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
TOKENIZER_FILE = "vae_ch160v4096z32.pth"  # the same file serves both sizes of image
TOKENIZERS = {
    "var-vq-256": MultiScaleVQConfig(),
    "var-vq-512": MultiScaleVQConfig(sides=SIDES_512),
}
FID = {"var-d16": 3.55, "var-d20": 2.95, "var-d24": 2.33, "var-d30": 1.97, "var-d36": 2.63}  # README's model table
CODE_FID = {6: 2.27, 7: 2.11, 8: 1.98, 9: 1.94}  # of the pairs, README of CoDe (commit 206b3b81)


def config(depth: int, sides: tuple[int, ...] = OFFICIAL_SIDES, *, shared: bool = False) -> VARConfig:
    """A depth is also the number of heads, of 64 channels each."""
    return VARConfig(layers=depth, heads=depth, width=64 * depth, sides=sides, shared=shared)


SHAPES = {
    **{f"var-d{depth}": config(depth) for depth in (16, 20, 24, 30)},
    "var-d36": config(36, SIDES_512, shared=True),
    **{f"code-drafter-{n}": config(30) for n in CODE_FID},
    **{f"code-refiner-{n}": config(16) for n in CODE_FID},
}


def file_of(name: str) -> str:
    """The name under which a model's weights were published."""
    family, *rest = name.split("-")
    return f"var_{rest[0]}.pth" if family == "var" else f"{rest[0]}_{rest[1]}.pth"


def published(name: str) -> tuple[str, str]:
    """The repository and revision of a model's or tokenizer's file."""
    loose = [repository for start, repository in UNPINNED.items() if name.startswith(start)]
    return (loose[0], "main") if loose else (REPOSITORY, REVISION)


def find(name: str, given: Path | None) -> Path:
    """The weights file of a model or tokenizer: the one given, in the folder given, or downloaded."""
    file = TOKENIZER_FILE if name in TOKENIZERS else file_of(name)
    if given is None:
        repository, revision = published(name)
        return hub.fetch(repository, file, revision)
    path = given / file if given.is_dir() else given
    if not path.is_file():
        raise ValueError(f"no weights file {path}")
    return path


def tokenizer(
    name: str, checkpoint: Path | None, device: torch.device, numbers: Numbers | None = None
) -> MultiScaleVQTokenizer:
    """An image tokenizer of `TOKENIZERS`, in float32 as published, with the numbers that its file has."""
    path, layout = find(name, checkpoint), multiscale_vq.layout(TOKENIZERS[name])
    config = fitted.multiscale_vq(TOKENIZERS[name], path, layout, numbers or Numbers(), name)
    with torch.device("meta"):
        module = MultiScaleVQTokenizer(config)
    checkpoints.load_into(module, path, multiscale_vq.layout(config), device=device)
    return module.eval().requires_grad_(False)


def shapes(name: str, path: Path | None, sources: Sources) -> VARConfig:
    """The shapes of a preset with the numbers of a file."""
    return fitted.var(SHAPES[name], path, var.LAYOUT, sources.numbers, name, SHAPES)


def adapted(name: str, sources: Sources) -> Preset:
    """A preset with the numbers of the file that is named."""
    given = sources.checkpoint
    config = shapes(name, None if given is None else find(name, given), sources)
    return fitted.preset(PRESETS[name], SHAPES[name], config, VAR)


def build(name: str, sources: Sources, device: torch.device, dtype: torch.dtype) -> "NextScalePipeline":
    """The pipeline of a preset, from the official files or from `sources`."""
    from vargen.pipelines.next_scale import NextScalePipeline

    given = sources.checkpoint
    weights = find(name, given)  # all files are found, and the small one loaded, before the large one
    folder = given if given and given.is_dir() and (given / TOKENIZER_FILE).is_file() else None
    config = shapes(name, weights, sources)
    size = "512" if SHAPES[name].sides == SIDES_512 else "256"
    numbers = replace(sources.numbers, patch_nums=config.sides)
    images = tokenizer(f"var-vq-{size}", sources.tokenizer_checkpoint or folder, device, numbers)
    fitted.check_pair(name, config.vocabulary, images.config.codes)
    fitted.check_pair(name, config.code_dim, images.config.code_dim, "numbers in a code")
    with torch.device("meta"):
        transformer = VAR(config)
    checkpoints.load_into(transformer, weights, var.LAYOUT, dtype=dtype, device=device)
    transformer.eval().requires_grad_(False)
    return NextScalePipeline(transformer, images, preset=fitted.preset(PRESETS[name], SHAPES[name], config, VAR))


def recipes(name: str) -> dict[str, Recipe]:
    """`demo` has the settings of demo_sample.ipynb, `fid` those of the README; `code` those of CoDe's sample_CoDe.py,
    where the temperature comes behind the truncation.
    """
    published = {"fid": FID[name]} if name in FID else {}
    pair = {"fid": CODE_FID[int(name[-1])]} if name.startswith("code-drafter") else {}
    code = Recipe(guidance_scale=1.5, top_k=600, top_p=0.96, temperature=(*[1.1] * 7, *[1.0] * 3), published=pair)
    plain = {
        "demo": Recipe(guidance_scale=4.0, top_k=900, top_p=0.95),
        "fid": Recipe(guidance_scale=1.5, top_k=900, top_p=0.96, published=published),
    }
    return {**plain, "code": code} if name.startswith("var") else {"code": code, **plain}


EXAMPLES = (980, 437, 22, 562)  # the classes of demo_sample.ipynb


def _preset(name: str) -> Preset:
    family, *rest = name.split("-")
    pixels = 512 if SHAPES[name].sides == SIDES_512 else 256
    small = usual = None
    if family == "code":
        role, count = rest
        what = f"the {role} of its pair for {count} scales"
        summary = f"CoDe at {pixels} pixels, {what}, fine-tuned from VAR d{SHAPES[name].layers}."
        if role == "drafter":
            small, usual = f"code-refiner-{count}", f"code:scales={count}"
    else:
        summary = f"VAR {rest[0]} on ImageNet's classes at {pixels} pixels."
        small = "var-d16" if pixels == 256 and rest[0] != "d16" else None
    spec, make = SHAPES[name].spec, partial(build, name)
    how: Any = {"skeleton": partial(VAR, SHAPES[name]), "reads": partial(adapted, name), "layout": var.LAYOUT}
    how |= {"repository": published(name)[0], "file": file_of(name)}
    return Preset(name, summary, recipes(name), spec.classes, make, imagenet, EXAMPLES, spec, small, usual, **how)


PRESETS = {name: _preset(name) for name in SHAPES}
