"""MAR's head (arXiv 2406.11838): a small network that denoises each token by itself, given the backbone's `z`.

A thousand training steps of a cosine schedule, of which sampling keeps some; the network predicts the noise and where
the variance lies between its two bounds (arXiv 2102.09672). `ddpm` is the published way; `ddim` and `dpm++` are
diffusers' schedulers over the same kept steps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.core.joined import published
from vargen.core.noise import PathNoise
from vargen.core.types import Denoising, DenoisingPath

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

TRAINED_STEPS = 1000
ROWS_AT_A_TIME = 1 << 17  # of the network, where a whole path is judged
FEW = 1 << 10  # rows of the network whose modulations are made in one product
SOLVERS = ("ddpm", "ddim", "dpm++")


@cache
def cumulative() -> np.ndarray:
    """What is left of the signal's power after each training step, (1000,) float64."""

    def left(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = [min(1 - left((i + 1) / TRAINED_STEPS) / left(i / TRAINED_STEPS), 0.999) for i in range(TRAINED_STEPS)]
    return np.cumprod(1.0 - np.array(steps))


@cache
def kept(count: int, highest: int = TRAINED_STEPS - 1) -> tuple[int, ...]:
    """The training steps that `count` sampling steps keep, ascending: evenly spread, rounded half to even.

    Those above `highest` are brought down to it and fall together, so that there may be fewer (DiSA, arXiv 2505.20297).
    """
    if not 1 <= count <= TRAINED_STEPS:
        raise ValueError(f"got {count} diffusion steps, expected 1 to {TRAINED_STEPS}")
    if count == 1:  # the published code takes timestep 0, and what comes out is the noise it starts from
        return (min(highest, 950),)
    stride, place, out = (TRAINED_STEPS - 1) / max(1, count - 1), 0.0, []
    for _ in range(count):
        out.append(min(round(place), highest))
        place += stride
    return tuple(sorted(set(out)))


@dataclass(frozen=True)
class Tables:
    """The coefficients of each kept step, ascending in time, (T,) float32; made in float64."""

    timesteps: Tensor  # (T,) int64, of the training
    to_start: Tensor  # (2, T): x_0 = a x_t - b noise
    to_mean: Tensor  # (2, T): mean of x_{t-1} = a x_0 + b x_t
    log_variance: Tensor  # (2, T): its lower and upper bound
    betas: np.ndarray  # (T,) float64, noise added from one kept step to the next

    def __len__(self) -> int:
        return len(self.timesteps)

    def laws(self, how: Denoising) -> Tensor:
        """What makes the law of each kept step, (T, 8) float32: its coefficients, guidance and temperature."""
        given = [self.to_start.new_full((1, len(self)), value) for value in (how.guidance, how.temperature)]
        return torch.cat([self.to_start, self.to_mean, self.log_variance, *given]).T


@cache
def tables(count: int, highest: int, device: torch.device) -> Tables:
    """Those of `count` sampling steps."""
    steps = list(kept(count, highest))
    now = cumulative()[steps]
    before = np.append(1.0, now[:-1])
    betas = 1 - now / before
    variance = betas * (1 - before) / (1 - now)
    lowest = np.log(np.append(variance[1], variance[1:])) if len(steps) > 1 else np.log(betas)  # that of step 0 is zero
    mean = betas * np.sqrt(before) / (1 - now), (1 - before) * np.sqrt(1 - betas) / (1 - now)

    def table(*rows: np.ndarray) -> Tensor:
        return torch.tensor(np.stack(rows), dtype=torch.float32, device=device)

    with torch.inference_mode(False):  # they are kept, and may be used for training later
        start = table(np.sqrt(1 / now), np.sqrt(1 / now - 1))
        return Tables(torch.tensor(steps, device=device), start, table(*mean), table(lowest, np.log(betas)), betas)


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time, mixed by two layers."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Times (M,) to (M, width)."""
        first, half = self.mlp[0], self.frequencies // 2
        assert isinstance(first, nn.Linear)
        k = torch.arange(half, device=t.device, dtype=torch.float32)
        angles = t.float()[:, None] * torch.exp(-math.log(10_000) * k / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(first.weight.dtype))


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """x and its modulations (..., W); 1 is added to the scale."""
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.norm(x), scale)))


# A step from x (B, n, C), given what the network is told of its time (W,) and of z (R, n, W), its law (8,) and its
# noise (B, n, C): mean and log variance of what is behind it, and a draw.
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _modulations(product: Tensor, width: int) -> tuple[Tensor, ...]:
    """Every third, from the second on, is a scale."""
    every = product.unflatten(-1, (-1, width))
    every[..., 1::3, :].add_(1)
    return every.unbind(-2)


class DiffusionHead(nn.Module):
    """Tokens (B, n, C) from `z` (R, n, d); see `Head` in models/contract.py."""

    def __init__(self, channels: int, condition: int, depth: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.told = nn.Linear(width, (3 * depth + 2) * width)  # of every block, then of what comes out
        self.output = nn.Linear(width, 2 * channels)
        for part in ("weight", "bias"):
            names = [*(f"blocks.{block}.modulate.{part}" for block in range(depth)), f"modulate.{part}"]
            published(self, f"told.{part}", dict(zip(names, [3 * width] * depth + [2 * width], strict=True)))

    def net(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Noise and variance logits (..., 2C) of x (..., C), from what embeddings of time and of z say (..., W)."""
        x = x if x.dtype == condition.dtype else x.to(condition.dtype)
        h, modulated = self.input_proj(x), self._modulated(F.silu(time + condition))
        for block in self.blocks:
            h = block(h, *next(modulated))
        shift, scale = next(modulated)
        out = self.output(torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), scale))
        return out if out.dtype == torch.float32 else out.float()

    def _modulated(self, silu: Tensor) -> Iterator[Sequence[Tensor]]:
        """Modulations (..., W) of every block (shift, 1 + scale, gate), then of what comes out (shift, 1 + scale).

        In one product where rows are few; of many they would take too much memory together.
        """
        depth, width = len(self.blocks), silu.shape[-1]
        if silu.numel() <= FEW * width:
            every = _modulations(self.told(silu), width)
            yield from (every[3 * block : 3 * block + 3] for block in range(depth + 1))
            return
        parts = (part.split(3 * width) for part in (self.told.weight, self.told.bias))
        for weight, bias in zip(*parts, strict=True):
            yield _modulations(F.linear(silu, weight, bias), width)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Noise and variance logits (M, 2C) of x (M, C) at training steps t (M,), given z (M, d)."""
        return self.net(x, self.time_embed(t), self.cond_embed(z))

    def sample(self, z: Tensor, how: Denoising, noise: PathNoise) -> Tensor:
        """Tokens (B, n, C), float32."""
        if how.solver == "ddpm":
            return self.path(z, how, noise, keep=False).end
        return self._solve(z, how, noise)

    def path(
        self, z: Tensor, how: Denoising, noise: PathNoise, *, keep: bool = True, step: Step | None = None
    ) -> DenoisingPath:
        """The path that `sample` takes with solver `ddpm`; without `keep`, its last step alone.

        `step` runs in the place of the head's own one, where that is a graph of it.
        """
        steps, condition, time = self._ready(z, how, noise)
        x, each, laws = noise.start(), noise.steps(max(1, len(steps) - 1)), steps.laws(how)
        taken: list[tuple[Tensor, Tensor, Tensor]] = []
        for index, t in enumerate(reversed(range(len(steps)))):
            told = (time[t], condition, laws[t], each[min(index, len(each) - 1)])  # the last step's draw is not used
            mean, log_variance, drawn = (step or self.step)(x, *told)
            taken = [*(taken if keep else []), (x, mean, log_variance)]
            x = drawn
        return DenoisingPath(*(torch.stack(part) for part in zip(*taken, strict=True)))

    def step(
        self, x: Tensor, time: Tensor, condition: Tensor, law: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of a path; see `Step`. All that changes from step to step is a tensor."""
        mean, log_variance = self._law(x, time, condition, law)
        return mean, log_variance, mean + torch.exp(0.5 * log_variance) * noise * law[-1]

    def judge(self, z: Tensor, how: Denoising, states: Tensor) -> DenoisingPath:
        """The law of every step of somebody else's path, whose states (T, B, n, C) are given.

        All in one pass, or in as many as keep it below `ROWS_AT_A_TIME`.
        """
        steps, condition, time = self._ready(z, how, states[0])
        order, each = torch.arange(len(steps) - 1, -1, -1, device=states.device), steps.laws(how)
        most = max(1, ROWS_AT_A_TIME // max(1, condition.shape[0] * condition.shape[1]))
        laws: list[tuple[Tensor, Tensor]] = []
        for x, t in zip(states.split(most), order.split(most), strict=True):
            laws.append(self._law(x, time[t][:, None, None], condition, each[t][:, None, None, None]))
        return DenoisingPath(states, *(torch.cat(part) for part in zip(*laws, strict=True)))

    def _ready(self, z: Tensor, how: Denoising, like: Any) -> tuple[Tables, Tensor, Tensor]:
        """The tables, and what the network is told of z (R, n, W) and of each step's time (T, W)."""
        rows = len(like) if isinstance(like, Tensor) else len(like.slots)
        if how.guidance != 1 and len(z) != 2 * rows:
            raise ValueError(f"got {len(z)} rows to guide {rows} with, expected the unconditional ones behind")
        steps = tables(how.steps, how.highest, z.device)
        z = z if how.guidance != 1 else z[:rows]
        return steps, self.cond_embed(z), self.time_embed(steps.timesteps)

    def _guided(self, x: Tensor, time: Tensor, condition: Tensor, guidance: Any) -> Tensor:
        """What the network says (..., B, n, 2C) of x (..., B, n, C), guided where the condition has rows to guide with.

        The variance is not guided.
        """
        if condition.shape[-3] == x.shape[-3]:
            return self.net(x, time, condition)
        both = self.net(torch.cat([x, x], dim=-3), time, condition)
        conditional, unconditional = both.chunk(2, dim=-3)
        noise, variance = conditional.split(self.channels, dim=-1)
        return torch.cat([unconditional[..., : self.channels].lerp(noise, guidance), variance], dim=-1)

    def _law(self, x: Tensor, time: Tensor, condition: Tensor, law: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of x (..., B, n, C) one step earlier; `law` (..., 8), of each step given."""
        start_x, start_noise, mean_start, mean_x, low, high, guidance, _ = law.unbind(-1)
        noise, logits = self._guided(x, time, condition, guidance).split(self.channels, dim=-1)
        start = start_x * x - start_noise * noise
        mean, between = mean_start * start + mean_x * x, (logits + 1) / 2
        return mean, between * high + (1 - between) * low

    def _solve(self, z: Tensor, how: Denoising, noise: PathNoise) -> Tensor:
        """By one of diffusers' schedulers."""
        if how.temperature != 1:
            raise ValueError(f"got temperature {how.temperature} with solver {how.solver}, which draws no noise")
        steps, condition, time = self._ready(z, how, noise)
        scheduler, x = solver(how.solver, steps.betas), noise.start()
        for t in scheduler.timesteps.tolist():
            out = self._guided(x, time[t], condition, how.guidance)[..., : self.channels]
            x = scheduler.step(out, t, x, return_dict=False)[0]
        return x


def solver(name: str, betas: np.ndarray) -> "DDIMScheduler | DPMSolverMultistepScheduler":
    """A scheduler of diffusers that makes every one of the steps whose `betas` are given."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    options: Any = {"num_train_timesteps": len(betas), "trained_betas": betas, "timestep_spacing": "trailing"}
    if name == "ddim":
        made = DDIMScheduler(**options, clip_sample=False)
    elif name == "dpm++":
        made = DPMSolverMultistepScheduler(**options, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    else:
        raise ValueError(f"unknown solver {name!r}; there are {', '.join(SOLVERS)}")
    made.set_timesteps(len(betas))
    return made
