"""The layers of a Llama decoder over a grid of image tokens: LlamaGen's, and those of heads that draft for it.

RMSNorm normalises in float32, casts down, then multiplies by its weight; the two-dimensional rotary embedding works in
float32. Its table is zero (not the identity) in front of the image, which is what LlamaGen's published weights were
trained with.

A step of a small model is a question of how many operations it has. So one projection gives queries, keys and values,
turned in one, and another gate and up; a module's state still has the published names and rows (`core/joined.py`).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from vargen.core.dispatch import Kernels
from vargen.core.joined import paired, published
from vargen.core.specs import RasterSpec
from vargen.core.types import Block, KVCache
from vargen.kernels.attention import Sight, attend
from vargen.kernels.norm import add_norm, rms_norm
from vargen.kernels.rope import Joined, enter_joined
from vargen.kernels.silu_mul import silu_mul
from vargen.models.contract import Model


@dataclass(frozen=True)
class LlamaGenConfig:
    """Shapes of a LlamaGen; the defaults are the class-conditional GPT-B at 256 pixels with VQ-16."""

    layers: int = 12
    heads: int = 12
    width: int = 768
    side: int = 16  # tokens along one side of the image
    vocabulary: int = 16384
    classes: int = 1000  # row `classes` of the class table is the unconditional one; not used with text
    caption_width: int = 0  # of the text encoder's states; 0: class-conditional
    caption_tokens: int = 120
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def spec(self) -> RasterSpec:
        """The image's layout."""
        return RasterSpec(self.side, self.side, self.vocabulary, 0 if self.caption_width else self.classes)

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer: two thirds of four widths, rounded up to a multiple of 256."""
        return -(-int(8 * self.width / 3) // 256) * 256

    @property
    def condition_tokens(self) -> int:
        """Rows that the condition takes in front of the image."""
        return self.caption_tokens if self.caption_width else 1


def rope_table(config: LlamaGenConfig, front: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (front + side^2, 3, 1, head_dim) as `kernels/rope.Joined` takes them; zero in front of slot 0,
    but for values, which stay. A pair of channels has a row's angle, or a column's.

    Always computed on a CPU: sines differ in their last bit from device to device.
    """
    half = config.head_dim // 2
    frequencies = config.rope_base ** (-torch.arange(0, half, 2, device="cpu")[: half // 2].float() / half)
    cells = torch.arange(config.side, device="cpu").float()[:, None] * frequencies  # (side, half / 2)
    rows, columns = repeat(cells, "h d -> (h w) d", w=config.side), repeat(cells, "w d -> (h w) d", h=config.side)
    angles = torch.cat([rows, columns], dim=-1)
    cos, sin = angles.cos().repeat(1, 2), torch.cat([-angles.sin(), angles.sin()], dim=-1)
    kept = (torch.ones_like(cos), torch.zeros_like(cos))  # of values
    turned = (F.pad(part, (0, 0, front, 0)) for part in (cos, sin))
    kept = (F.pad(part, (0, 0, front, 0), value=fill) for part, fill in zip(kept, (1.0, 0.0), strict=True))
    tables = [torch.stack([part, part, whole], dim=1)[:, :, None] for part, whole in zip(turned, kept, strict=True)]
    return tables[0], tables[1]


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))


class RMSNorm(Norm):
    def forward(self, x: Tensor, kernels: Kernels | None = None) -> Tensor:
        return rms_norm(x, self.weight, self.eps, kernels)


class AddNorm(Norm):
    """RMSNorm of states behind what the part before adds to them; see `kernels/norm.py`."""

    def forward(self, x: Tensor, change: Tensor | None, kernels: Kernels | None) -> tuple[Tensor, Tensor]:
        """x + `change` (R, n, d), and that normalised."""
        return add_norm(x, change, self.weight, self.eps, kernels)


class Attention(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.heads, self.dim = config.heads, config.head_dim
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)
        paired(self, "qkv.weight", "wqkv.weight", 2 * config.heads, config.head_dim)

    def forward(self, x: Tensor, step: "Step", layer: int) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.dim))  # (R, n, 3, H, D)
        if step.sight is None:
            return self.wo(self._taught(qkv, step, layer).flatten(2))
        assert isinstance(step.cache, KVCache)
        assert step.rows is not None
        q, k, v = enter_joined(qkv, step.turns, step.cache, layer, step.rows, step.stop)
        return self.wo(attend(q, k, v, step.sight).flatten(2))

    def _taught(self, qkv: Tensor, step: "Step", layer: int) -> Tensor:
        """Attention (R, n, H, D) where all tokens are there at once, in training."""
        q, k, v = step.turns.turn(qkv).unbind(2)
        if step.cache is None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        else:
            k, v = step.cache.write(layer, None, k, v, 0)
        causal = step.cache is None and step.mask is None
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=step.mask, is_causal=causal)
        return out.transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.w13 = nn.Linear(config.width, 2 * config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.width, bias=False)
        published(self, "w13.weight", {"w1.weight": config.hidden, "w3.weight": config.hidden})

    def forward(self, x: Tensor, kernels: Kernels | None) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)
        return self.w2(silu_mul(gate, up, kernels))


class Layer(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = AddNorm(config.width, config.norm_eps)
        self.ffn_norm = AddNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, change: Tensor | None, step: "Step", layer: int) -> tuple[Tensor, Tensor]:
        """States (R, n, d), and what is to be added to them, from those of the layer before."""
        x, y = self.attention_norm(x, change, step.kernels)
        x, y = self.ffn_norm(x, self.attention(y, step, layer), step.kernels)
        return x, self.feed_forward(y, step.kernels)


class Memory(Protocol):
    """What attention reads: the cache, or what stands for it in training."""

    @property
    def kernels(self) -> Kernels | None:
        """Which kernels run over it; None: plain PyTorch."""
        ...

    def write(self, layer: int, flat: Tensor | None, k: Tensor, v: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Keep k and v (R, n, heads, dim); all keys and values to be seen, heads first. See `KVCache`."""
        ...


@dataclass(frozen=True)
class Step:
    """What every layer of one forward shares; built once per step."""

    turns: Joined
    mask: Tensor | None = None  # (R, 1, n, stop), added to the attention scores in training
    sight: Sight | None = None  # what is seen while decoding
    cache: Memory | None = None
    rows: Tensor | None = None  # where the cache is written, see KVCache.flat
    stop: int = 0

    @property
    def kernels(self) -> Kernels | None:
        """Those of the cache, if it has any."""
        return None if self.cache is None else self.cache.kernels


class Trunk(Model):
    """Layers over the image's slots, behind `front` rows of a condition."""

    def __init__(self, config: LlamaGenConfig, layers: int, front: int) -> None:
        super().__init__()
        if config.width % config.heads or config.head_dim % 4:
            raise ValueError(f"got width {config.width} and {config.heads} heads, expected a head width in fours")
        self.config, self.front = config, front
        self.layers = nn.ModuleList(Layer(config) for _ in range(layers))
        self._rope = rope_table(config, front)  # plain attributes: they stay float32 under .to(dtype)

    @property
    def spec(self) -> RasterSpec:
        return self.config.spec

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def turns(self, slots: Tensor) -> Joined:
        """The rotations of `slots` (R or 1, n), counted from the condition's first row."""
        if self._rope[0].device != slots.device:
            self._rope = (self._rope[0].to(slots.device), self._rope[1].to(slots.device))
        return Joined(self._rope[0][slots], self._rope[1][slots])

    def make_cache(self, batch: int, extra: int = 0, front: int = 1) -> KVCache:
        """An empty cache; see `models/contract.py`. The condition's length is this model's own."""
        c, rows = self.config, self.front + self.spec.slots + extra
        return KVCache(len(self.layers), batch, rows, c.heads, c.head_dim, dtype=self.dtype, device=self.device)

    def run(self, x: Tensor, block: Block, cache: KVCache) -> Tensor:
        """States (R, n, d) behind the embedded tokens `x` (R, n, d) of a block, which enters the cache."""
        return self.cached(x, cache, *behind(self.front, block, cache))

    @torch.no_grad()
    def cached(
        self, x: Tensor, cache: KVCache, slots: Tensor, rows: Tensor, first: int, stop: int, sees: Tensor | None
    ) -> Tensor:
        """Run tokens that stand at `slots` and are cached in `rows`, both counted from the condition's first row."""
        sight = sight_over(cache, rows, first, stop, sees, x.dtype)
        return self.through(x, Step(self.turns(slots), None, sight, cache, cache.flat(rows), stop))

    def through(self, x: Tensor, step: Step) -> Tensor:
        """`x` (R, n, d) through every layer."""
        change = None
        for index, layer in enumerate(self.layers):
            x, change = layer(x, change, step, index)
        return x if change is None else x + change


Standing = tuple[Tensor, Tensor, int, int, Tensor | None]
"""Slots and cache rows (R, n) of tokens, the bounds on the rows that the host knows, and what they see, if not all."""


def behind(front: int, block: Block, cache: KVCache) -> Standing:
    """Where a block stands behind `front` rows of a condition, which is always seen; its moves are made."""
    sees = block.sees
    if sees is not None:
        sees = F.pad(sees[..., : block.stop], (front, 0), value=True)
    if block.moves is not None:
        cache.move(block.moves[0] + front, block.moves[1] + front)
    slots = block.slots + front
    places = slots if block.places is None else block.places + front
    return slots, places, block.first + front, block.stop + front, sees


def sight_over(cache: KVCache, rows: Tensor, first: int, stop: int, sees: Tensor | None, dtype: torch.dtype) -> Sight:
    """What tokens that are cached in `rows` (R, n) see of the cache."""
    padding = None if cache.padding is None else cache.padding[-len(rows) :]
    return Sight(rows, first, stop, dtype, sees, padding, cache.kernels)
