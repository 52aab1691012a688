"""Harmon as published: its sizes, their files, and the recipes with their sources.

Sizes and settings are those of the official repository (wusize/Harmon, commit 4eb60876), those of DiSA its authors'
(Qinyu-Allen-Zhao/DiSA, commit 283fa59b, Harmon_DiSA). The weights are for no commercial use: S-Lab Licence 1.0 of
Nanyang Technological University. The autoencoder is MAR's, the text tokenizer Qwen2.5's.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vargen.core.preset import Preset, Recipe, Sources
from vargen.models import harmon
from vargen.models.harmon import Harmon, HarmonConfig
from vargen.presets import flowar, mar

if TYPE_CHECKING:
    from vargen.pipelines.continuous import ContinuousPipeline

REPOSITORY = "wusize/harmon"  # of no revision known to us, as FlowAR's
ORIGINALS = {"harmon-0.5b": ("wusize/Harmon-0_5B",), "harmon-1.5b": ("wusize/Harmon-1_5B",)}
FILES = {name: f"{name.replace('-', '_', 1)}.pth" for name in ("harmon-0.5b", "harmon-1.5b", "harmon-1.5b-o")}
SMALL = HarmonConfig(replace(mar.SHAPES["mar-base"], classes=0))
LARGE = HarmonConfig(
    replace(mar.SHAPES["mar-huge"], classes=0), layers=28, heads=12, kv_heads=2, width=1536, hidden=8960
)
SHAPES = {"harmon-0.5b": SMALL, "harmon-1.5b": LARGE, "harmon-1.5b-o": LARGE}


def text_of(name: str) -> str:
    """The repository of a model's text tokenizer, of which no revision is known to us either."""
    return f"Qwen/Qwen2.5-{name.split('-')[1].upper()}-Instruct"


def build(name: str, sources: Sources, device: torch.device, dtype: torch.dtype) -> "ContinuousPipeline":
    """The pipeline of a preset, from the official files or from `sources`."""
    from vargen.pipelines.continuous import ContinuousPipeline

    words = None
    if not sources.drafts:
        words = harmon.load_tokenizer(sources.text_encoder, text_of(name), SHAPES[name].vocabulary)
    weights, images = flowar.files(REPOSITORY, FILES[name], sources, device)
    with torch.device("meta"):
        transformer = Harmon(SHAPES[name])
    loaded = flowar.load(transformer, weights, harmon.LAYOUT, device, dtype)
    return ContinuousPipeline(loaded, images, text_tokenizer=words, preset=PRESETS[name])


def recipes() -> dict[str, Recipe]:
    """`demo` has the settings of the official scripts, `disa` those of DiSA; either has the guidance of all methods."""
    often = {"iterations": 64, "schedule": "constant"}
    settings = {"mar": {**often, "steps": 100}, "disa": {**often, "upper": 50, "lower": 5}, "csd": often}
    return {"demo": Recipe(3.0, settings=settings), "disa": Recipe(3.0, settings=settings)}


def _preset(name: str) -> Preset:
    size = name.removeprefix("harmon-").upper()
    tuned = ", fine-tuned on BLIP3o-60k" if size.endswith("-O") else ""
    summary = f"Harmon {size} from text at 512 pixels{tuned}; not for commercial use."
    how: Any = {"repository": REPOSITORY, "file": FILES[name], "originals": ORIGINALS.get(name, ())}
    small = "harmon-0.5b" if name != "harmon-0.5b" else None
    how |= {"spec": SHAPES[name].spec, "drafter": small, "skeleton": partial(Harmon, SHAPES[name])}
    return Preset(name, summary, recipes(), 0, partial(build, name), **how)


PRESETS = {name: _preset(name) for name in SHAPES}
