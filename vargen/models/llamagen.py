"""LlamaGen: a Llama decoder over VQ tokens in raster order (arXiv 2406.06525, official repository LlamaGen).

Parameter names and shapes are the official checkpoints'. A condition is one class token, or 120 states of a text
encoder, padded on the left.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.core.layout import Layout
from vargen.core.types import Block, Condition, KVCache
from vargen.kernels.attention import causal_mask
from vargen.models.llama import LlamaGenConfig, RMSNorm, Step, Trunk

# Tables and caches that the official code keeps on the module, and that some of its files carry.
LAYOUT = Layout(ignored=r"freqs_cis|causal_mask|layers\.\d+\.attention\.kv_cache\.[kv]_cache")

__all__ = ["LAYOUT", "LlamaGen", "LlamaGenConfig"]


class ClassEmbedder(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.classes + 1, config.width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)[:, None]  # (B, 1, d)


class Projection(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_width, config.width, bias=False)
        self.fc2 = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    uncond_embedding: Tensor  # a buffer: it was never trained, but guidance needs the very values of the file

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.cap_proj = Projection(config)
        self.register_buffer("uncond_embedding", torch.zeros(config.caption_tokens, config.caption_width))

    def forward(self, states: Tensor) -> Tensor:
        return self.cap_proj(states.to(self.uncond_embedding.dtype))  # (B, T, d)


class LlamaGen(Trunk):
    """LlamaGen under the raster contract (`models/contract.py`); shows its states."""

    replays: ClassVar[bool] = True
    shows_states: ClassVar[bool] = True

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__(config, config.layers, config.condition_tokens)
        self.cls_embedding = CaptionEmbedder(config) if config.caption_width else ClassEmbedder(config)
        self.tok_embeddings = nn.Embedding(config.vocabulary, config.width)
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.output = nn.Linear(config.width, config.vocabulary, bias=False)

    @property
    def text_shape(self) -> tuple[int, int]:
        return self.config.condition_tokens, self.config.caption_width

    def class_condition(self, labels: Tensor, *, guided: bool) -> Condition:
        """Embed labels (B,) as (B, 1, d), or as (2B, 1, d) with the unconditional rows behind when `guided`."""
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, self.config.classes)])
        return Condition(self.cls_embedding(labels))

    def text_condition(self, states: Tensor, mask: Tensor, *, guided: bool) -> Condition:
        """Embed text states (B, T, C) whose words `mask` (B, T) names, as (B, T, d), or (2B, T, d) when `guided`.

        As published, the unconditional rows are under the prompt's mask.
        """
        if guided:
            assert isinstance(self.cls_embedding, CaptionEmbedder)
            nothing = self.cls_embedding.uncond_embedding.expand_as(states)
            states, mask = torch.cat([states.to(nothing.dtype), nothing]), mask.repeat(2, 1)
        return Condition(self.cls_embedding(states), mask == 0)

    def embed(self, tokens: Tensor) -> Tensor:
        """Image tokens (R, n) as the layers take them, (R, n, d)."""
        return self.tok_embeddings(tokens)

    def logits(self, states: Tensor) -> Tensor:
        """What the output head makes of states (R, n, d): logits (R, n, V) in float32."""
        found = self.output(self.norm(states))
        return found if found.dtype == torch.float32 else found.float()

    def prefill(self, condition: Condition, cache: KVCache, first: int = 0) -> Tensor:
        return self.logits(self.prefill_states(condition, cache, first))

    def decode(self, block: Block, cache: KVCache) -> Tensor:
        return self.logits(self.decode_states(block, cache))

    def prefill_states(self, condition: Condition, cache: KVCache, first: int = 0) -> Tensor:
        """As `prefill`, the states (R, 1, d) behind the logits."""
        batch, count, _ = condition.embedding.shape
        rows = torch.arange(first, count, device=self.device).expand(batch, -1)
        cache.note(condition)
        return self.cached(condition.embedding[:, first:], cache, rows, rows, first, count, None)[:, -1:]

    def decode_states(self, block: Block, cache: KVCache) -> Tensor:
        """As `decode`, the states (R, n, d) behind the logits."""
        return self.run(self.embed(block.tokens), block, cache)

    def forward(self, condition: Condition, ids: Tensor) -> Tensor:
        """Teacher-forced logits (R, N, V) of ids (R, N) under a condition; no cache."""
        return self.logits(self.states(condition, ids))

    def states(self, condition: Condition, ids: Tensor) -> Tensor:
        """The states (R, N, d) behind `forward`: that of slot s - 1 gives the law of slot s."""
        x = torch.cat([condition.embedding, self.embed(ids[:, :-1])], dim=1)
        rows, mask = torch.arange(x.shape[1], device=x.device)[None], None
        if condition.padding is not None:
            mask = causal_mask(rows, x.shape[1], None, condition.padding, x.dtype)
        return self.through(x, Step(self.turns(rows), mask))[:, self.front - 1 :]
