"""The layers of a Llama decoder over a grid of image tokens: LlamaGen's, and those of heads that draft for it.

RMSNorm normalises in float32, casts down, then multiplies by its weight; the two-dimensional rotary embedding works in
float32. Its table is zero (not the identity) in front of the image, which is what LlamaGen's published weights were
trained with.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from vargen.core.dispatch import Kernels
from vargen.core.specs import RasterSpec
from vargen.core.types import Block, KVCache
from vargen.kernels.attention import Sight, attend
from vargen.kernels.norm import rms_norm
from vargen.kernels.rope import Neighbours, enter
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


def rope_table(config: LlamaGenConfig, front: int) -> Tensor:
    """Rotations (front + side^2, head_dim / 2), complex64: row angles, then column angles; zero in front of slot 0.

    Always computed on a CPU: sines differ in their last bit from device to device.
    """
    half = config.head_dim // 2
    frequencies = config.rope_base ** (-torch.arange(0, half, 2, device="cpu")[: half // 2].float() / half)
    cells = torch.arange(config.side, device="cpu").float()[:, None] * frequencies  # (side, half / 2)
    rows, columns = repeat(cells, "h d -> (h w) d", w=config.side), repeat(cells, "w d -> (h w) d", h=config.side)
    angles = torch.cat([rows, columns], dim=-1)
    rotations = torch.polar(torch.ones_like(angles), angles)
    return torch.cat([rotations.new_zeros(front, rotations.shape[-1]), rotations])


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, kernels: Kernels | None = None) -> Tensor:
        return rms_norm(x, self.weight, self.eps, kernels)


class Attention(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.heads, self.dim = config.heads, config.head_dim
        self.wqkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, step: "Step", layer: int) -> Tensor:
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.heads, self.dim)).unbind(2)  # (R, n, H, D)
        turns = Neighbours(step.rotations)
        if step.cache is not None:
            q, k, v = enter(q, k, v, turns, step.cache, layer, step.rows, step.stop)
        else:
            q, k = turns.turn(q), turns.turn(k)
        if step.sight is not None:
            return self.wo(attend(q, k, v, step.sight).flatten(2))
        causal = step.cache is None and step.mask is None
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=step.mask, is_causal=causal)
        return self.wo(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.hidden, bias=False)
        self.w3 = nn.Linear(config.width, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, step: "Step", layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x, step.kernels), step, layer)
        return x + self.feed_forward(self.ffn_norm(x, step.kernels))


class Memory(Protocol):
    """What attention reads: the cache, or what stands for it in training."""

    @property
    def kernels(self) -> Kernels | None:
        """Which kernels run over it; None: plain PyTorch."""
        ...

    def write(self, layer: int, flat: Tensor | None, k: Tensor, v: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Keep k and v (R, n, heads, dim); all keys and values to be seen. See `KVCache`."""
        ...


@dataclass(frozen=True)
class Step:
    """What every layer of one forward shares; built once per step."""

    rotations: Tensor  # (R or 1, n, 1, D / 2) complex
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
        self._rope = rope_table(config, front)  # a plain attribute: stays float32 under .to(dtype)

    @property
    def spec(self) -> RasterSpec:
        return self.config.spec

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def rope(self) -> Tensor:
        """The rotation table on the model's device."""
        if self._rope.device != self.device:
            self._rope = self._rope.to(self.device)
        return self._rope

    def make_cache(self, batch: int, extra: int = 0, front: int = 1) -> KVCache:
        """An empty cache; see `models/contract.py`. The condition's length is this model's own."""
        c, rows = self.config, self.front + self.spec.slots + extra
        return KVCache(len(self.layers), batch, rows, c.heads, c.head_dim, dtype=self.dtype, device=self.device)

    def run(self, x: Tensor, block: Block, cache: KVCache) -> Tensor:
        """States (R, n, d) behind the embedded tokens `x` (R, n, d) of a block, which enters the cache."""
        return self.cached(x, cache, *behind(self.front, block, cache))

    def cached(
        self, x: Tensor, cache: KVCache, slots: Tensor, rows: Tensor, first: int, stop: int, sees: Tensor | None
    ) -> Tensor:
        """Run tokens that stand at `slots` and are cached in `rows`, both counted from the condition's first row."""
        sight = sight_over(cache, rows, first, stop, sees, x.dtype)
        return self.through(x, Step(self.rope()[slots][:, :, None], None, sight, cache, cache.flat(rows), stop))

    def through(self, x: Tensor, step: Step) -> Tensor:
        """`x` (R, n, d) through every layer."""
        for index, layer in enumerate(self.layers):
            x = layer(x, step, index)
        return x


Standing = tuple[Tensor, Tensor, int, int, Tensor | None]
"""Slots and cache rows (R, n) of tokens, the bounds on the rows that the host knows, and what they see, if not all."""


def behind(front: int, block: Block, cache: KVCache) -> Standing:
    """Where a block stands behind `front` rows of a condition, which is always seen; its moves are made."""
    sees = block.sees
    if sees is not None:
        sees = F.pad(sees[..., : block.stop], (front, 0), value=True)
    if block.moves is not None:
        cache.move(block.moves[0] + front, block.moves[1] + front)
    places = block.slots if block.places is None else block.places
    return block.slots + front, places + front, block.first + front, block.stop + front, sees


def sight_over(cache: KVCache, rows: Tensor, first: int, stop: int, sees: Tensor | None, dtype: torch.dtype) -> Sight:
    """What tokens that are cached in `rows` (R, n) see of the cache."""
    padding = None if cache.padding is None else cache.padding[: len(rows)]
    return Sight(rows, first, stop, dtype, sees, padding, cache.kernels)
