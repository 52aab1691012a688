"""The golden case of GLM-Image: transformers' own classes, tiny, with weights by name."""

from typing import Any

import synth
import torch
from transformers import GlmImageConfig, GlmImageForConditionalGeneration

from vargen.core.specs import RasterSpec
from vargen.models.glm_image import GlmImage

CASE, RECORDED = synth.case("glm_image_tiny")
CODES, START, END, PAD = (CASE["special"][name] for name in ("codes", "start", "end", "pad"))
FULL, PREVIEW = ((grid[0], grid[1]) for grid in (CASE["grids"]["full"], CASE["grids"]["preview"]))
SPEC = RasterSpec(FULL[0], FULL[1], CODES, 0, previews=(PREVIEW,))


def theirs() -> Any:
    """GlmImageForConditionalGeneration."""
    torch.manual_seed(0)
    model: Any = GlmImageForConditionalGeneration(GlmImageConfig.from_dict(CASE["config"]))
    model.load_state_dict(synth.state_dict(CASE["parameters"]), strict=True)
    model.generation_config.update(pad_token_id=PAD, eos_token_id=END)
    return model.eval().requires_grad_(False)


def ours(model: Any = None, spec: RasterSpec = SPEC) -> GlmImage:
    """The raster model around it."""
    model = theirs() if model is None else model
    size = (spec.rows * 32, spec.columns * 32)
    inner, how = model.model.language_model, {"codes": CODES, "start": START}
    return GlmImage(inner, model.lm_head, size=size, sizes=(size,), spec=spec, **how)


def prompts(*which: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, 2, T) of prompts of the case, words first, and their mask; the second part has none."""
    rows = [RECORDED[f"prompt_{i}"] for i in which]
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), 2, longest, dtype=torch.int64), torch.zeros(len(rows), 2, longest)
    for row, some in enumerate(rows):
        ids[row, 0, : len(some)], mask[row, 0, : len(some)] = some, 1
    return ids, mask
