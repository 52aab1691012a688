"""Chameleon's decoder (arXiv 2405.09818), which Lumina-mGPT and Anole have too: text and image tokens in one sequence.

Names and shapes in its state are the official checkpoints', though projections are joined (`core/joined.py`). Queries
and keys pass a LayerNorm per head, whose weights have a row per group of heads. Where the published code, under
autocast, works in float32 (that norm and the rotary embedding, by a table rounded to the weights' type), so does this.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.core.dispatch import Kernels
from vargen.core.joined import published
from vargen.core.layout import Layout
from vargen.core.types import KVCache
from vargen.kernels.attention import Sight, attend
from vargen.kernels.rope import Halves, enter
from vargen.kernels.silu_mul import silu_mul
from vargen.models.llama import AddNorm, RMSNorm

LAYOUT = Layout(ignored=r"model\.vqmodel\..*")  # an encoder of images, which training dropped


@dataclass(frozen=True)
class ChameleonConfig:
    """Shapes of a decoder; the defaults are those of 7B."""

    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    width: int = 4096
    hidden: int = 11008  # of the feed-forward layer
    vocabulary: int = 65536
    context: int = 10240  # positions
    groups: int = 1  # rows of the norms of queries and keys
    norm_last: bool = False  # whether norms stand behind attention and feed-forward instead of before them
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class HeadNorm(nn.Module):
    """LayerNorm of each head, in float32, with a row of weights for each group of heads."""

    def __init__(self, groups: int, dim: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.weight = nn.Parameter(torch.ones(groups, dim))
        self.bias = nn.Parameter(torch.zeros(groups, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (R, n, H, D), whose heads share the rows in turn."""
        weight, bias, each = self.weight, self.bias, x.shape[2] // len(self.weight)
        if 1 < each < x.shape[2]:
            weight, bias = (part.repeat_interleave(each, dim=0) for part in (weight, bias))
        x = x if x.dtype == torch.float32 else x.float()
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * weight + bias


@dataclass(frozen=True)
class Step:
    """What every layer of one forward shares."""

    turns: Halves
    sight: Sight
    cache: KVCache
    flat: Tensor


class Attention(nn.Module):
    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        inner, outer = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.dim, self.heads = config.head_dim, (config.heads, config.kv_heads, config.kv_heads)
        self.qkv_proj = nn.Linear(config.width, inner + 2 * outer, bias=False)
        published(self, "qkv_proj.weight", {"q_proj.weight": inner, "k_proj.weight": outer, "v_proj.weight": outer})
        self.o_proj = nn.Linear(inner, config.width, bias=False)
        self.q_norm = HeadNorm(config.groups, config.head_dim)
        self.k_norm = HeadNorm(min(config.groups, config.kv_heads), config.head_dim)

    def forward(self, x: Tensor, step: Step, layer: int) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (-1, self.dim)).split(self.heads, dim=2)
        norms = (self.q_norm, self.k_norm)
        q, k, v = enter(q, k, v, step.turns, step.cache, layer, step.flat, step.sight.stop, norms)
        return self.o_proj(attend(q, k, v, step.sight).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.width, 2 * config.hidden, bias=False)
        published(self, "gate_up_proj.weight", dict.fromkeys(("gate_proj.weight", "up_proj.weight"), config.hidden))
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(silu_mul(gate, up, kernels))


class Layer(nn.Module):
    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        norm = RMSNorm if config.norm_last else AddNorm
        self.input_layernorm = norm(config.width, config.norm_eps)
        self.post_attention_layernorm = norm(config.width, config.norm_eps)
        self.norm_last = config.norm_last

    def forward(self, x: Tensor, change: Tensor | None, step: Step, layer: int) -> tuple[Tensor, Tensor]:
        """States (R, n, d), and what is to be added to them, from those of the layer before."""
        kernels = step.cache.kernels
        if self.norm_last:
            x = x if change is None else x + change
            x = x + self.input_layernorm(self.self_attn(x, step, layer), kernels)
            return x, self.post_attention_layernorm(self.mlp(x, kernels), kernels)
        x, y = self.input_layernorm(x, change, kernels)
        x, y = self.post_attention_layernorm(x, self.self_attn(y, step, layer), kernels)
        return x, self.mlp(y, kernels)


class Trunk(nn.Module):
    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = AddNorm(config.width, config.norm_eps)


class Chameleon(nn.Module):
    """The decoder: embeddings of ids to states, and logits of any ids."""

    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        half = config.head_dim // 2
        frequencies = config.rope_base ** (-torch.arange(half, device="cpu").float() / half)
        angles = torch.arange(config.context, device="cpu").float()[:, None] * frequencies
        sin = angles.sin()  # the tables are plain attributes: they stay float32 under .to(dtype)
        self._rope = (angles.cos().repeat(1, 2), torch.cat([-sin, sin], dim=-1))

    def forward(self, x: Tensor, positions: Tensor, sight: Sight, cache: KVCache) -> Tensor:
        """States (R, n, d), normalised for the head, of embedded tokens `x` at `positions` (R, n)."""
        if self._rope[0].device != x.device:
            self._rope = (self._rope[0].to(x.device), self._rope[1].to(x.device))
        dtype = self.model.embed_tokens.weight.dtype
        cos, sin = (part[positions].to(dtype).float()[:, :, None] for part in self._rope)
        step = Step(Halves(cos, sin), sight, cache, cache.flat(sight.rows))
        change = None
        for index, layer in enumerate(self.model.layers):
            x, change = layer(x, change, step, index)
        return self.model.norm(x, change, cache.kernels)[1]
