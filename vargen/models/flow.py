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

from vargen.core.joined import paired, published
from vargen.core.specs import ContinuousSpec
from vargen.core.types import Condition, Denoising, KVCache
from vargen.kernels.attention import plain
from vargen.kernels.rope import Joined
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
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], eps=EPS)
    return F.rms_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype)


def angles(rows: Tensor, columns: Tensor, head_dim: int) -> Tensor:
    """Angles (n, head_dim / 2), float32, of tokens at `rows` (n,) and `columns` (n,): rows first."""
    half = head_dim // 2
    frequencies = ROPE_BASE ** (-torch.arange(0, half, 2, device="cpu").float() / half)
    return torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1)


@cache
def grid(side: int, extent: int, head_dim: int, device: torch.device) -> Joined:
    """Rotations of side^2 tokens of a square in reading order, stretched to `extent`.

    Made on a CPU, since sines differ in their last bit from device to device; and not as an inference tensor, since it
    is kept, and a model in training may be the next to want it.
    """
    with torch.inference_mode(False):
        places = torch.arange(side, device="cpu").float() / side * extent
        rows, columns = repeat(places, "h -> (h w)", w=side), repeat(places, "w -> (h w)", h=side)
        return Joined.of(angles(rows, columns, head_dim)).to(device)


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

    turns: Joined
    cache: KVCache | None = None
    first: int = 0  # rows of the cache that are seen
    keeps: bool = True  # whether this forward's keys and values go behind them

    def seen(self, layer: int, qkv: Tensor) -> tuple[Tensor, ...]:
        """Queries (R, H, n, D) of qkv (R, n, 3, H, D), and the keys and values that are seen: its own behind those of
        the cache, (R, H, m, D).
        """
        if self.cache is None:
            return qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.cache.join(layer, self.first, qkv, keep=self.keeps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (R, n, H D) of queries (R, H, n, D) to all keys and values (R, H, m, D)."""
    return plain(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.wqkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)
        for part in ("weight", "bias") if bias else ("weight",):
            paired(self, f"wqkv.{part}", f"qkv.{part}", 2 * heads, self.dim)

    def forward(self, x: Tensor, step: Step, layer: int) -> Tensor:
        qkv = step.turns.turn(self.wqkv(x).unflatten(-1, (3, self.heads, self.dim)))  # (R, n, 3, H, D)
        return self.proj(attend(*step.seen(layer, qkv)))


class GatedMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)
        for part in ("weight", "bias"):
            published(self, f"fc1.{part}", {f"fc1_g.{part}": hidden, f"fc1_x.{part}": hidden})

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.gelu(gate) * up)


Modulation = Sequence[Tensor]  # each (R, 1 or n, d): gains of both residuals, then 1 + scales, then shifts


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.attn = Attention(width, heads, bias=bias)
        self.mlp = GatedMLP(width)
        self.modulate = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, modulation: Modulation, step: Step, layer: int) -> Tensor:
        gain_1, gain_2, scale_1, scale_2, shift_1, shift_2 = modulation
        x = torch.addcmul(x, gain_1, self.attn(torch.addcmul(shift_1, normalise(x), scale_1), step, layer))
        return torch.addcmul(x, gain_2, self.mlp(torch.addcmul(shift_2, normalise(x), scale_2)))


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
        """Modulations (R, 6 * 2 layers, d) of every layer, as `Modulation` has them, from a condition (R, d)."""
        silu, layers = F.silu(condition), [*self.encoder_blocks, *self.decoder_blocks]
        every = torch.cat([layer.modulate(silu) for layer in layers if isinstance(layer, Layer)], dim=-1)
        parts = every.unflatten(-1, (len(layers), 6, -1))
        parts[:, :, 2:4] += 1
        return parts.flatten(1, 2)

    def through(self, x: Tensor, slots: slice, modulations: Tensor, step: Step) -> Tensor:
        """Features (R, n, d) of tokens x (R, n, d) that stand at `slots`."""
        x = self.inward_norm(x + self.encoder_positions[:, slots])
        told = modulations.unsqueeze(2).unbind(1)
        for index, layer in enumerate(self.encoder_blocks):
            x = layer(x, told[6 * index : 6 * index + 6], step, index)
        x = self.between(self.encoder_norm(x)) + self.decoder_positions[:, slots]
        for index, layer in enumerate(self.decoder_blocks, len(self.encoder_blocks)):
            x = layer(x, told[6 * index : 6 * index + 6], step, index)
        return self.decoder_norm(x)
