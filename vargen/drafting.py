"""Drafters: what proposes tokens for a large model to verify. They keep their own cache and count their forwards."""

from typing import Any

import torch
from torch import Tensor

from vargen.core import Block, Condition
from vargen.guidance import Guidance
from vargen.models.contract import RasterModel, RasterSpec
from vargen.request import Method
from vargen.samplers.warp import Warp


class ModelDrafter:
    """A small model of the same vocabulary and grid, under the large one's guidance and truncation."""

    def __init__(self, model: RasterModel, condition: Condition, guidance: Guidance, warp: Warp) -> None:
        self._model, self._condition, self._guidance, self._warp = model, condition, guidance, warp
        self.reserve(0)

    def reserve(self, extra: int) -> None:
        """Begin, with so many places in the cache behind the image's slots."""
        self._cache = self._model.make_cache(self._condition.embedding.shape[0], extra)
        self._model.prefill(self._condition, self._cache)
        self.forwards = 1

    def laws(self, block: Block) -> Tensor:
        """Laws (B, n, V) of the slots behind a block of tokens, which enters the drafter's cache."""
        self.forwards += 1
        logits = self._model.decode(self._guidance.spread(block), self._cache)
        return self._warp(self._guidance.mix(logits, block))


def check(name: str, drafter: RasterSpec, target: RasterSpec) -> None:
    """ValueError where a drafter cannot draft for a model."""
    for what in ("vocabulary", "rows", "columns", "classes"):
        ours, theirs = getattr(drafter, what), getattr(target, what)
        if ours != theirs:
            raise ValueError(f"{name} cannot draft here: its {what} are {ours}, the model's {theirs}")


def attach(pipe: Any, name: str, other: Any) -> None:
    """Let the transformer of the pipeline `other` draft for `pipe`. ValueError, by its name, where it cannot."""
    check(name, other.transformer.spec, pipe.transformer.spec)
    ours, theirs = (getattr(p.tokenizer, "quantize", None) for p in (pipe, other))
    if ours is not None and theirs is not None and not torch.equal(ours.codebook(), theirs.codebook()):
        raise ValueError(f"{name} cannot draft for {pipe.preset.name}: its image tokenizer has another codebook")
    pipe.drafter = other.transformer


def drafter_of(pipe: Any, method: Method, inputs: tuple[Tensor, ...]) -> ModelDrafter:
    """A fresh drafter for a batch, from the pipeline's. ValueError where it has none, or one that does not fit."""
    target = pipe.transformer
    if pipe.drafter is None and pipe.preset.drafter is not None:
        pipe.drafter = pipe.preset.drafter(target.device, target.dtype)
    if pipe.drafter is None:
        raise ValueError(f"{method.name} needs a drafter, and {pipe.preset.name} has none: load it with drafter=NAME")
    check(type(pipe.drafter).__name__, pipe.drafter.spec, target.spec)
    model = pipe.drafter.to(target.device)
    embed = model.class_condition if model.spec.classes else model.text_condition
    return ModelDrafter(model, embed(*inputs, guided=method.guidance.active), method.guidance, method.warp)
