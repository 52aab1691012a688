"""VAR (arXiv 2404.02905): a transformer that draws an image scale by scale, all tokens of a scale at once.

A scale's tokens see one another and all scales before. What enters is not tokens but the image's features so far, at
the side of the scale that is next (`tokenizers/multiscale_vq.py`). The class shapes every layer through six modulations
(AdaLN, arXiv 2212.09748). Queries and keys have unit length, and each head a learned temperature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.core.joined import Projection
from vargen.core.layout import Layout
from vargen.core.specs import ScaleSpec
from vargen.core.types import Condition, KVCache
from vargen.kernels.attention import plain
from vargen.models.contract import Model
from vargen.tokenizers.multiscale_vq import OFFICIAL_SIDES

# The official files (`VAR` in models/var.py): our key to theirs. Buffers are computed and not loaded.
LAYOUT = Layout(
    rename=(
        (r"^start$", "pos_start"),
        (r"^positions$", "pos_1LC"),
        (r"^levels\.", "lvl_embed."),
        (r"^inward\.", "word_embed."),
        (r"^classes\.", "class_emb."),
        (r"^modulate\.", "head_nm.ada_lin.1."),
        (r"^shared\.", "shared_ada_lin.1."),
        (r"^layers\.", "blocks."),
        (r"\.modulate\.", ".ada_lin.1."),
        (r"\.offset$", ".ada_gss"),
        (r"attention\.", "attn."),
        (r"attn\.temperature", "attn.scale_mul_1H11"),
        (r"attn\.qkv", "attn.mat_qkv"),
    ),
    ignored=r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias",
    zeros=r"blocks\.\d+\.attn\.zero_k_bias",
)


@dataclass(frozen=True)
class VARConfig:
    """Shapes of a VAR; the defaults are d16."""

    layers: int = 16
    heads: int = 16
    width: int = 1024
    sides: tuple[int, ...] = OFFICIAL_SIDES
    vocabulary: int = 4096
    code_dim: int = 32
    classes: int = 1000  # row `classes` of the class table is the unconditional one
    shared: bool = False  # whether one modulation serves all layers, each with an offset of its own
    norm_eps: float = 1e-6

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.width

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def spec(self) -> ScaleSpec:
        """The image's layout."""
        return ScaleSpec(self.sides, self.vocabulary, self.classes)


def normalise(x: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


@dataclass(frozen=True)
class Step:
    """What every layer of one forward shares, and what is made for all layers in one."""

    first: int  # slot of the block's first token
    biases: Sequence[Tensor]  # (3 d,) of each layer: of queries, of keys, of values
    sharpness: Sequence[Tensor]  # (2, H, 1) of each layer: what unit queries, and unit keys, are multiplied by
    mask: Tensor | None = None  # (n, m) bool: who sees whom; None: all see all
    cache: KVCache | None = None


class Attention(nn.Module):
    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.heads, self.dim = config.heads, config.head_dim
        self.temperature = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4)))
        self.qkv = Projection(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))  # keys have none
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, step: Step, layer: int) -> Tensor:
        qkv = self.qkv(x, step.biases[layer]).unflatten(-1, (3, self.heads, self.dim))
        qk, v = qkv.split((2, 1), dim=2)
        qk = unit(qk) * step.sharpness[layer]
        qkv = torch.cat([qk if qk.dtype == v.dtype else qk.to(v.dtype), v], dim=2)  # (R, n, 3, H, D)
        if step.cache is None:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = step.cache.join(layer, step.first, qkv)
        return self.proj(plain(q, k, v, step.mask, scale=1.0).transpose(1, 2).flatten(2))


def unit(x: Tensor) -> Tensor:
    """x (..., D) brought to unit length, in float32."""
    x = x if x.dtype == torch.float32 else x.float()
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)


def biases(parts: Sequence[Attention]) -> tuple[Tensor, ...]:
    """See `Step`."""
    q, v = torch.stack([part.q_bias for part in parts]), torch.stack([part.v_bias for part in parts])
    return torch.cat([q, torch.zeros_like(q), v], dim=1).unbind(0)


def sharpness(parts: Sequence[Attention]) -> tuple[Tensor, ...]:
    """See `Step`."""
    temperature = torch.stack([part.temperature.view(1, -1, 1) for part in parts]).float()
    sharp = temperature.clamp(max=math.log(100)).exp()
    return torch.cat([sharp, torch.ones_like(sharp)], dim=1).unbind(0)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Layer(nn.Module):
    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attention = Attention(config)
        self.ffn = FeedForward(config.width)
        if config.shared:
            self.offset = nn.Parameter(torch.zeros(1, 1, 6, config.width))
        else:
            self.modulate = nn.Linear(config.width, 6 * config.width)

    def forward(self, x: Tensor, modulation: Sequence[Tensor], step: Step, layer: int) -> Tensor:
        """`modulation`, six (R, 1, d): gains of both residuals, then 1 + scales, then shifts."""
        gain_1, gain_2, scale_1, scale_2, shift_1, shift_2 = modulation
        told = torch.addcmul(shift_1, normalise(x, self.eps), scale_1)
        x = torch.addcmul(x, gain_1, self.attention(told, step, layer))
        return torch.addcmul(x, gain_2, self.ffn(torch.addcmul(shift_2, normalise(x, self.eps), scale_2)))


class VAR(Model):
    """A next-scale transformer; see `NextScaleModel` in `models/contract.py`."""

    replays: ClassVar[bool] = True

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"got width {config.width} and {config.heads} heads, expected a multiple")
        self.config, width, slots = config, config.width, config.spec.slots
        self.start = nn.Parameter(torch.zeros(1, config.sides[0] ** 2, width))
        self.positions = nn.Parameter(torch.zeros(1, slots, width))
        self.levels = nn.Embedding(len(config.sides), width)
        self.inward = nn.Linear(config.code_dim, width)
        self.classes = nn.Embedding(config.classes + 1, width)
        if config.shared:
            self.shared = nn.Linear(width, 6 * width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.modulate = nn.Linear(width, 2 * width)  # of the norm before the head
        self.head = nn.Linear(width, config.vocabulary)

    @property
    def spec(self) -> ScaleSpec:
        return self.config.spec

    @property
    def code_dim(self) -> int:
        return self.config.code_dim

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    def make_cache(self, batch: int, slots: int) -> KVCache:
        """An empty cache; see `models/contract.py`."""
        c = self.config
        return KVCache(c.layers, batch, slots, c.heads, c.head_dim, dtype=self.dtype, device=self.device)

    def class_condition(self, labels: Tensor, *, guided: bool) -> Condition:
        """Rows (R, 1 + 6 layers + 2, d): the classes' own, six modulations for each layer, two for the head; 1 is
        added to scales.

        They depend on the class alone, and so are computed once for all scales.
        """
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, self.config.classes)])
        own = self.classes(labels)  # (R, d)
        silu = F.silu(own)
        shared, rows = self.shared(silu) if self.config.shared else None, [own]
        for layer in self.layers:
            assert isinstance(layer, Layer)
            rows.append(layer.modulate(silu) if shared is None else shared + layer.offset.flatten(1))
        rows.append(self.modulate(silu))
        every = torch.cat(rows, dim=1).unflatten(1, (-1, self.config.width))
        every[:, 1:-2].unflatten(1, (-1, 6))[:, :, 2:4] += 1
        every[:, -2] += 1
        return Condition(every)

    def decode(self, condition: Condition, inputs: Tensor, scales: range, cache: KVCache) -> Tensor:
        """Logits of the last of some scales; see `models/contract.py`."""
        mask = None if len(scales) == 1 else self._mask(scales)
        x = self._through(condition, inputs, scales, self._step(self.spec.start(scales.start), mask, cache))
        return self._logits(condition, x[:, -(self.config.sides[scales[-1]] ** 2) :])

    def forward(self, condition: Condition, inputs: Tensor) -> Tensor:
        """Teacher-forced logits (R, S, V) of all scales, given the features of scales 1 on (R, S - 1, D). No cache.

        With inputs of fewer scales, of those.
        """
        spec, slots = self.spec, inputs.shape[1] + self.config.sides[0] ** 2
        known = [n for n in range(1, len(spec.sides) + 1) if spec.start(n) == slots]
        if not known:
            raise ValueError(f"got features of {inputs.shape[1]} tokens, which are no whole scales of {spec.sides}")
        scales = range(known[0])
        return self._logits(condition, self._through(condition, inputs, scales, self._step(0, self._mask(scales))))

    def _step(self, first: int, mask: Tensor | None, cache: KVCache | None = None) -> Step:
        parts = [layer.attention for layer in self.layers if isinstance(layer, Layer)]
        return Step(first, biases(parts), sharpness(parts), mask, cache)

    def _through(self, condition: Condition, inputs: Tensor, scales: range, step: Step) -> Tensor:
        own, told = condition.embedding[:, :1], condition.embedding[:, 1:-2].unsqueeze(2).unbind(1)
        x = self.inward(inputs.to(self.dtype))
        if scales.start == 0:
            x = torch.cat([own + self.start, x], dim=1)
        start = self.spec.start
        places = [self.positions[:, start(s) : start(s + 1)] + self.levels.weight[s] for s in scales]
        x = x + torch.cat(places, dim=1)
        for index, layer in enumerate(self.layers):
            x = layer(x, told[6 * index : 6 * index + 6], step, index)
        return x

    def _logits(self, condition: Condition, x: Tensor) -> Tensor:
        scale, shift = condition.embedding[:, -2:].split(1, dim=1)
        return self.head((normalise(x.float(), self.config.norm_eps) * scale + shift).to(self.dtype))

    def _mask(self, scales: range) -> Tensor:
        """Who of `scales` sees whom of all up to the last of them, (n, m) bool: its own scale and those before."""
        sides = self.config.sides[: scales.stop]
        keys = torch.cat([torch.full((side**2,), s, device=self.device) for s, side in enumerate(sides)])
        return keys[self.spec.start(scales.start) :, None] >= keys
