"""FlowAR (arXiv 2412.15205): draws an image scale by scale, the tokens of a scale by flow matching.

The backbone reads the last scale's sample, brought to the next one's side, and caches what it read of those before. A
small transformer then carries the scale's tokens from noise to data, as an ordinary differential equation over time 1
to 0. Only the finest scale's sample is the image: nothing is summed over scales.
"""

import math
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.core.joined import paired
from vargen.core.layout import Layout
from vargen.core.noise import PathNoise
from vargen.core.specs import ContinuousSpec
from vargen.core.types import Condition, Denoising, Group, KVCache
from vargen.kernels.rope import Halves
from vargen.models.diffusion import TimeEmbedding
from vargen.models.flow import (
    EPS,
    RENAME,
    Attention,
    Backbone,
    BackboneConfig,
    GatedMLP,
    Layer,
    Step,
    attend,
    grid,
    guidance,
    guided_velocity,
    normalise,
    timesteps,
)
from vargen.models.llama import RMSNorm

HEAD_DIM = 64  # of the velocity network

# The official files: our key to theirs. Rotations and the mask of training are computed and not loaded.
LAYOUT = Layout(
    rename=(
        *RENAME,
        (r"^positions$", "diffusion_pos_embed_learned"),
        (r"^head\.", "flownet."),
        (r"net\.blocks\.", "net.res_blocks."),
        (r"net\.modulate\.", "net.final_layer.adaLN_modulation.1."),
        (r"net\.output\.", "net.final_layer.linear."),
        (r"(res_blocks\.\d+)\.modulate", r"\1.ada_lin"),
        (r"\.cross\.", ".crossattn."),
        (r"\.cross_norm\.", ".norm2_1."),
        (r"\.given_norm\.", ".norm2_2."),
    ),
    ignored=r"mask|\w+(\.res_blocks|_blocks)\.\d+\.(cross)?attn\.rope\.freqs",
)


@dataclass(frozen=True)
class FlowARConfig(BackboneConfig):
    """Shapes of a FlowAR; the defaults are `flowar-s`."""

    layers: int = 6
    heads: int = 12
    width: int = 768
    head_depth: int = 2
    head_width: int = 1024
    cross: bool = False  # whether the head's layers attend to what they are given, or it only shapes them
    sides: tuple[int, ...] = (1, 2, 4, 8, 16)
    extent: int = 16  # the square that rotary places stretch over, and by way of which a sample goes to the next scale

    @property
    def side(self) -> int:
        """Tokens along one side of the image."""
        return self.sides[-1]

    @property
    def spec(self) -> ContinuousSpec:
        groups = tuple(side**2 for side in self.sides)
        return ContinuousSpec(sum(groups), self.channels, self.classes, "scales", groups)


@cache
def times(count: int) -> tuple[float, ...]:
    """The times of `count` steps, 1 to 0. As published: fine below 0.3, coarse above, one step less where odd.

    Only fifty steps are even. Of one the published grid has no step at all; here it has one.
    """
    if count < 1:
        raise ValueError(f"got {count} steps of a flow, expected 1 or more")
    if count in (1, 50):
        parts = [torch.linspace(1, 0, count + 1, dtype=torch.float64, device="cpu")]
    else:
        early = torch.linspace(1, 0.3, count // 2, dtype=torch.float64, device="cpu")
        parts = [early, torch.linspace(0.25, 0, count // 2 + 1, dtype=torch.float64, device="cpu")]
    return tuple(torch.cat(parts).tolist())


@dataclass(frozen=True)
class Given:
    """What a layer of the head is told once for all steps, where it attends to `z`."""

    keys: Tensor  # (R, H, n, D)
    values: Tensor  # (R, H, n, D)
    turns: Halves  # of queries
    modulations: Tensor  # (3, T, W) of the attention, from the time alone: gains, 1 + scales, shifts


class TokenLayer(Layer):
    """A layer of the head that `z` shapes, each token by itself (the authors' v1)."""

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__(config.head_width, config.head_width // HEAD_DIM, bias=False)

    def given(self, z: Tensor, time: Tensor, step: Step) -> None:
        """Nothing beside what all layers are told."""

    def run(self, x: Tensor, silu: Tensor, given: Given | None, index: int, step: Step) -> Tensor:
        """x (R, n, W) at time `index`, of which `silu` (R, n, W) is told."""
        gain_1, gain_2, scale_1, scale_2, shift_1, shift_2 = self.modulate(silu).chunk(6, dim=-1)
        return self(x, (gain_1, gain_2, scale_1 + 1, scale_2 + 1, shift_1, shift_2), step, 0)


class CrossAttention(nn.Module):
    def __init__(self, config: FlowARConfig) -> None:
        super().__init__()
        width = config.head_width
        self.wq = nn.Linear(width, width, bias=False)
        self.wkv = nn.Linear(config.width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)
        for part in ("q", "kv"):
            paired(self, f"w{part}.weight", f"{part}.weight", width // HEAD_DIM, HEAD_DIM)

    def given(self, z: Tensor, turns: Halves) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, n, D) of z (R, n, d)."""
        k, v = self.wkv(z).unflatten(-1, (2, -1, HEAD_DIM)).unbind(2)
        return turns.turn(k).transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        q = given.turns.turn(self.wq(x).unflatten(-1, (-1, HEAD_DIM))).transpose(1, 2)
        keys, values = given.keys, given.values
        if len(keys) > len(x):
            keys, values = keys[: len(x)], values[: len(x)]
        return self.proj(attend(q, keys, values))


class CrossLayer(nn.Module):
    """A layer of the head that attends to `z` (the authors' v2)."""

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__()
        width = config.head_width
        self.attn = Attention(width, width // HEAD_DIM, bias=False)
        self.ada_lin_attn = nn.Linear(width, 3 * width)
        self.cross_norm = RMSNorm(width, EPS)
        self.given_norm = RMSNorm(config.width, EPS)
        self.cross = CrossAttention(config)
        self.mlp = GatedMLP(width)
        self.ada_lin_mlp = nn.Linear(width, 3 * width)

    def given(self, z: Tensor, time: Tensor, step: Step) -> Given:
        """What this layer makes of z (R, n, d) and of all times (T, W)."""
        keys, values = self.cross.given(self.given_norm(z), step.turns.alone)
        gain, scale, shift = self.ada_lin_attn(F.silu(time)).chunk(3, dim=-1)
        return Given(keys, values, step.turns.alone, torch.stack([gain, 1 + scale, shift]))

    def run(self, x: Tensor, silu: Tensor, given: Given | None, index: int, step: Step) -> Tensor:
        """x (R, n, W) at time `index`, of which, and of z, `silu` (R, n, W) is told."""
        assert given is not None
        gain, scale, shift = given.modulations.select(1, index).unbind(0)
        x = torch.addcmul(x, gain, self.attn(torch.addcmul(shift, normalise(x), scale), step, 0))
        x = x + self.cross(self.cross_norm(x), given)
        gain, scale, shift = self.ada_lin_mlp(silu).chunk(3, dim=-1)
        return torch.addcmul(x, gain, self.mlp(torch.addcmul(shift, normalise(x), scale + 1)))


@dataclass(frozen=True)
class Told:
    """What the head is told once for all steps."""

    condition: Tensor  # (R, n, W)
    time: Tensor  # (T, W)
    layers: list[Given | None]  # of each layer
    step: Step


class FlowHead(nn.Module):
    """Tokens (B, n, C) of a scale from `z` (R, n, d); see `Head` in models/contract.py."""

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__()
        if config.head_width % HEAD_DIM:
            raise ValueError(f"got head width {config.head_width}, expected a multiple of {HEAD_DIM}")
        width, self.extent = config.head_width, config.extent
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(config.width, width)
        self.input_proj = nn.Linear(config.channels, width)
        kind = CrossLayer if config.cross else TokenLayer
        self.blocks = nn.ModuleList(kind(config) for _ in range(config.head_depth))
        self.modulate = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, config.channels)

    def sample(self, z: Tensor, how: Denoising, noise: PathNoise) -> Tensor:
        """Tokens (B, n, C), float32: Euler's steps in float64, `how.steps` of them or one less; see `times`.

        Steps at times above `how.guidance_high` are not guided. `how.temperature` and `how.solver` are not read.
        """
        x, when = noise.start().double(), times(how.steps)
        scales = guidance(how, when, len(x), len(z))
        told = self.tell(z if max(scales) > 1 else z[: len(x)], when)
        for index, (t, after) in enumerate(pairwise(when)):
            x = x + (after - t) * guided_velocity(partial(self.velocity, told, index), x, scales[index])
        return x.float()

    def tell(self, z: Tensor, when: tuple[float, ...]) -> Told:
        """What is computed once for all steps."""
        side = math.isqrt(z.shape[1])
        assert side**2 == z.shape[1], f"{z.shape[1]} tokens are no square"
        step, time = Step(grid(side, self.extent, HEAD_DIM, z.device)), self.time_embed(timesteps(when[:-1], z.device))
        layers = []
        for layer in self.blocks:
            assert isinstance(layer, TokenLayer | CrossLayer)
            layers.append(layer.given(z, time, step))
        return Told(self.cond_embed(z), time, layers, step)

    def velocity(self, told: Told, index: int, x: Tensor) -> Tensor:
        """The velocity (R, n, C), float32, of x (R, n, C) at the time of a step; with fewer rows, of the first."""
        condition = told.condition[: len(x)]
        silu, h = F.silu(told.time[index] + condition), self.input_proj(x.to(condition.dtype))
        for layer, given in zip(self.blocks, told.layers, strict=True):
            assert isinstance(layer, TokenLayer | CrossLayer)
            h = layer.run(h, silu, given, index, told.step)
        shift, scale = self.modulate(silu).chunk(2, dim=-1)
        return self.output(torch.addcmul(shift, normalise(h), scale + 1)).float()


class FlowAR(Backbone):
    """A continuous model in scales; see `ContinuousModel` in `models/contract.py`."""

    def __init__(self, config: FlowARConfig) -> None:
        if not config.sides or config.sides[0] != 1 or list(config.sides) != sorted(set(config.sides)):
            raise ValueError(f"got sides {config.sides}, expected 1, then each scale larger than the one before")
        super().__init__(config)
        self.config = config
        self.positions = nn.Parameter(torch.zeros(1, config.spec.slots, config.width))
        self.head = FlowHead(config)

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.side, self.config.side

    def class_condition(self, labels: Tensor, *, guided: bool) -> Condition:
        """Rows (R, 1 + 12 layers, d): the classes' own, and six modulations for each layer.

        They depend on the class alone, and so are computed once for all scales.
        """
        own = super().class_condition(labels, guided=guided).embedding
        return Condition(torch.cat([own, self.modulations(own[:, 0])], dim=1))

    def decode(self, condition: Condition, group: Group, cache: KVCache) -> Tensor:
        """`z` (R, n, d) of a scale; see `models/contract.py`."""
        first, rows = group.known.shape[1], len(condition.embedding)
        groups, side = self.spec.groups, math.isqrt(group.slots.shape[1])
        scale = self.config.sides.index(side)
        assert first == sum(groups[:scale]), f"scale {scale} does not come behind {first} tokens"
        if scale == 0:
            x = condition.embedding[:, :1]
        else:
            before = group.values[:, first - groups[scale - 1] : first]
            x = self.inward(self.enlarge(before, side).to(self.dtype))
            x = x.repeat(rows // len(x), 1, 1)
        slots = slice(first, first + side**2)
        step = Step(grid(side, self.config.extent, self.config.head_dim, x.device), cache, first)
        return self.through(x, slots, condition.embedding[:, 1:], step) + self.positions[:, slots]

    def enlarge(self, values: Tensor, side: int) -> Tensor:
        """Tokens (B, n, C) of a scale at the next one's side, (B, side^2, C)."""
        extent, before = self.config.extent, math.isqrt(values.shape[1])
        x = values.transpose(1, 2).unflatten(2, (before, before))
        x = F.interpolate(F.interpolate(x, size=(extent, extent), mode="bicubic"), size=(side, side), mode="area")
        return x.flatten(2).transpose(1, 2)

    def image(self, values: Tensor) -> Tensor:
        """Latents (B, C, side, side) of the finest scale's tokens, the last of all (B, S, C)."""
        side = self.config.side
        return values[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))
