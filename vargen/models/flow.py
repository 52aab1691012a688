"""What FlowAR (arXiv 2412.15205) and xAR (arXiv 2502.20388) share: layers, backbone, and guidance of a velocity.

The backbone is an encoder and a decoder of the same layers. Norms are root-mean-square ones; every layer is shaped by
six modulations (AdaLN, arXiv 2212.09748); the gate of the feed-forward is an exact GELU, though its authors call it
SwiGLU; rotary embeddings have two axes. There is no causal mask: a group of tokens sees what is cached, and itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from vargen.core.specs import ContinuousSpec
from vargen.core.types import Condition, Denoising, KVCache
from vargen.kernels.attention import plain
from vargen.models.contract import Model
from vargen.models.llama import RMSNorm

EPS = 1e-6  # of every norm
ROPE_BASE = 10000.0

# The official names of what the backbone holds: our key to theirs.
RENAME = (
    (r"^classes\.", "class_emb."),
    (r"^(encoder|decoder)_positions$", r"\1_pos_embed_learned"),
    (r"^inward_norm\.", "z_proj_ln."),
    (r"^inward\.", "z_proj."),
    (r"^between\.", "decoder_embed."),
    (r"^((?:en|de)coder_blocks\.\d+)\.modulate\.", r"\1.ada_lin.1."),
)


def normalise(x: Tensor) -> Tensor:
    """Root-mean-square norm without a weight, in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=EPS).type_as(x)


def rotations(rows: Tensor, columns: Tensor, head_dim: int) -> Tensor:
    """Rotations (1, n, 1, head_dim / 2), complex64, of tokens at `rows` (n,) and `columns` (n,): rows first."""
    half = head_dim // 2
    frequencies = ROPE_BASE ** (-torch.arange(0, half, 2, device="cpu").float() / half)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1)
    return torch.polar(torch.ones_like(angles), angles)[None, :, None]


@cache
def grid(side: int, extent: int, head_dim: int, device: torch.device) -> Tensor:
    """Rotations (1, side^2, 1, head_dim / 2) of a square in reading order, stretched to `extent`.

    Made on a CPU, since sines differ in their last bit from device to device; and not as an inference tensor, since it
    is kept, and a model in training may be the next to want it.
    """
    with torch.inference_mode(False):
        places = torch.arange(side, device="cpu").float() / side * extent
        rows, columns = repeat(places, "h -> (h w)", w=side), repeat(places, "w -> (h w)", h=side)
        return rotations(rows, columns, head_dim).to(device)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of `x` (R, n, H, D) by complex `rotations` (R or 1, n, 1, D / 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations).flatten(-2).type_as(x)


def timesteps(times: Sequence[float], device: torch.device) -> Tensor:
    """What time embeddings are given: whole thousandths (T,) int64, cut off behind float32 as published."""
    return (torch.tensor(times, dtype=torch.float32, device="cpu") * 1000).long().to(device)


def guidance(how: Denoising, when: Sequence[float], images: int, rows: int) -> list[float]:
    """The guidance of each step from one of the times `when` to the next; 1 is off.

    As published, a scale below 1 counts as none. ValueError where there are no unconditional rows to guide with.
    """
    scales = [how.guidance if how.guidance > 1 and t <= how.guidance_high else 1.0 for t in when[:-1]]
    if max(scales) > 1 and rows != 2 * images:
        raise ValueError(f"got {rows} rows to guide {images} images with, expected the unconditional ones behind")
    return scales


def guided_velocity(velocity: Callable[[Tensor], Tensor], x: Tensor, scale: float) -> Tensor:
    """The velocity (B, n, C) at x (B, n, C), from that at [x; x] where it is guided; in the dtype of x."""
    now = x.float()
    if scale == 1:
        return velocity(now).to(x.dtype)
    conditional, unconditional = velocity(torch.cat([now, now])).chunk(2)
    return unconditional.lerp(conditional, scale).to(x.dtype)


@dataclass(frozen=True)
class Step:
    """What every layer of one forward shares."""

    rotations: Tensor  # (1, n, 1, D / 2) complex
    cache: KVCache | None = None
    first: int = 0  # rows of the cache that are seen
    keeps: bool = True  # whether this forward's keys and values go behind them

    def join(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that are seen, k and v (R, n, H, D) behind those of the cache."""
        if self.cache is None:
            return k, v
        if self.keeps:
            return self.cache.join(layer, self.first, k, v)
        before = (part[layer, : len(k), : self.first] for part in (self.cache.keys, self.cache.values))
        keys, values = (torch.cat([old, new], dim=1) for old, new in zip(before, (k, v), strict=True))
        return keys, values


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (R, n, H D) of queries (R, n, H, D) to all keys and values (R, m, H, D)."""
    return plain(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, step: Step, layer: int) -> Tensor:
        qk, v = self.qkv(x).unflatten(-1, (3 * self.heads, self.dim)).split((2 * self.heads, self.heads), dim=2)
        q, k = rotate(qk, step.rotations).chunk(2, dim=2)  # (R, n, H, D)
        return self.proj(attend(q, *step.join(layer, k, v)))


class GatedMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1_g(x)) * self.fc1_x(x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.attn = Attention(width, heads, bias=bias)
        self.mlp = GatedMLP(width)
        self.modulate = nn.Linear(width, 6 * width)

    def modulation(self, silu: Tensor) -> Tensor:
        """Modulations (..., 6, d) of a condition (..., d) behind its SiLU."""
        return self.modulate(silu).unflatten(-1, (6, -1))

    def forward(self, x: Tensor, modulation: Tensor, step: Step, layer: int) -> Tensor:
        """`modulation` (R, 1 or n, 6, d): gains of both residuals, then scales, then shifts."""
        gain_1, gain_2, scale_1, scale_2, shift_1, shift_2 = modulation.unbind(2)
        x = x + gain_1 * self.attn(normalise(x) * (1 + scale_1) + shift_1, step, layer)
        return x + gain_2 * self.mlp(normalise(x) * (1 + scale_2) + shift_2)


@dataclass(frozen=True)
class BackboneConfig(ABC):
    """Shapes of the backbone."""

    layers: int  # of the encoder, and of the decoder
    heads: int
    width: int
    channels: int = 16
    classes: int = 1000  # row `classes` of the class table is the unconditional one

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.width

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    @abstractmethod
    def spec(self) -> ContinuousSpec:
        """The image's layout."""


class Backbone(Model):
    """An encoder and a decoder over groups of tokens that come in order."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.width % config.heads or config.head_dim % 4:
            raise ValueError(f"got width {config.width} and {config.heads} heads, expected a head width in fours")
        self.shapes, width, slots = config, config.width, config.spec.slots
        self.classes = nn.Embedding(config.classes + 1, width)
        self.inward = nn.Linear(config.channels, width)
        self.inward_norm = RMSNorm(width, EPS)
        self.encoder_positions = nn.Parameter(torch.zeros(1, slots, width))
        self.encoder_blocks = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.encoder_norm = RMSNorm(width, EPS)
        self.between = nn.Linear(width, width)
        self.decoder_positions = nn.Parameter(torch.zeros(1, slots, width))
        self.decoder_blocks = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.decoder_norm = RMSNorm(width, EPS)

    @property
    def spec(self) -> ContinuousSpec:
        return self.shapes.spec

    @property
    def device(self) -> torch.device:
        return self.between.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.between.weight.dtype

    def make_cache(self, rows: int) -> KVCache:
        """An empty cache of all groups but the last, which nobody comes behind to see."""
        c, kept = self.shapes, self.spec.slots - self.spec.groups[-1]
        return KVCache(2 * c.layers, rows, kept, c.heads, c.head_dim, dtype=self.dtype, device=self.device)

    def class_condition(self, labels: Tensor, *, guided: bool) -> Condition:
        """Rows (R, 1, d) of the classes, of class `classes` the unconditional one."""
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, self.shapes.classes)])
        return Condition(self.classes(labels)[:, None])

    def modulations(self, condition: Tensor) -> Tensor:
        """Modulations (R, 2 layers, 6, d) of every layer, from a condition (R, d)."""
        silu, layers = F.silu(condition), [*self.encoder_blocks, *self.decoder_blocks]
        return torch.stack([layer.modulation(silu) for layer in layers if isinstance(layer, Layer)], dim=1)

    def through(self, x: Tensor, slots: slice, modulations: Tensor, step: Step) -> Tensor:
        """Features (R, n, d) of tokens x (R, n, d) that stand at `slots`."""
        x = self.inward_norm(x + self.encoder_positions[:, slots])
        for index, layer in enumerate(self.encoder_blocks):
            x = layer(x, modulations[:, index, None], step, index)
        x = self.between(self.encoder_norm(x)) + self.decoder_positions[:, slots]
        for index, layer in enumerate(self.decoder_blocks, len(self.encoder_blocks)):
            x = layer(x, modulations[:, index, None], step, index)
        return self.decoder_norm(x)
