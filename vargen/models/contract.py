"""What a model must offer to be decoded: one Protocol per kind of model."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vargen.core import Block, Condition, KVCache


@dataclass(frozen=True)
class RasterSpec:
    """The layout of a raster model's image: a grid of tokens in reading order, each an id below `vocabulary`."""

    rows: int
    columns: int
    vocabulary: int
    classes: int  # 0 where the model takes text

    @property
    def slots(self) -> int:
        """Tokens in an image."""
        return self.rows * self.columns


class ClassConditional(Protocol):
    """A model that draws classes."""

    def class_condition(self, labels: Tensor, *, guided: bool) -> Condition:
        """Embed class labels (B,); with `guided` the unconditional rows follow, (2B, T, d)."""
        ...


class TextConditional(Protocol):
    """A model that draws what a text encoder has read."""

    def text_condition(self, states: Tensor, mask: Tensor, *, guided: bool) -> Condition:
        """Embed text states (B, T, C), of which `mask` (B, T) names the words; (2B, T, d) with `guided`."""
        ...


class RasterModel(Protocol):
    """A next-token model over image tokens in raster order (LlamaGen, Lumina-mGPT, Emu3, Janus).

    It is `ClassConditional` where its spec has classes, else `TextConditional`.
    """

    @property
    def spec(self) -> RasterSpec: ...

    @property
    def device(self) -> torch.device: ...

    def make_cache(self, batch: int, extra: int = 0) -> KVCache:
        """An empty cache for `batch` rows, with `extra` places behind the image's slots."""
        ...

    def prefill(self, condition: Condition, cache: KVCache) -> Tensor:
        """Write the condition to the cache; the logits of slot 0, (R, 1, V)."""
        ...

    def decode(self, block: Block, cache: KVCache) -> Tensor:
        """Write a block to the cache; the logits of the slot behind each of its tokens, (R, n, V)."""
        ...
