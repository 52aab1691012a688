"""What the samplers of continuous tokens share: an image drawn in rounds, a group of tokens in each.

A masked model (MAR, Harmon) takes its tokens in an order of the image's own, few at first, more and more later; other
models (FlowAR, xAR) in the groups that they were trained on. The methods differ in how a group is drawn.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vargen.core.specs import ContinuousSpec
from vargen.core.types import Denoising, Group
from vargen.samplers.contract import ContinuousSampler, LatentTask

MOST_STEPS = 1000  # of a head: as many as a diffusion has timesteps


@dataclass(frozen=True)
class Round:
    """A group of tokens that is drawn in one step."""

    slots: Tensor  # (B, n)
    known: Tensor  # (B, m), ascending
    progress: float  # from 0 to 1, how far the linear guidance has come


def masked(task: LatentTask, iterations: int) -> list[Round]:
    """The rounds of a masked model: what is not yet drawn shrinks as a cosine does, by one token at least.

    As published, an order is used up from its end, and guidance follows what the next round will have left.
    """
    slots, order = task.spec.slots, task.order()
    if not 1 <= iterations <= slots:
        raise ValueError(f"got {iterations} iterations, expected 1 to {slots}, the tokens of an image")
    out, left = [], slots
    for step in range(iterations):
        after = max(1, min(left - 1, math.floor(slots * math.cos(math.pi / 2 * (step + 1) / iterations))))
        stop = 0 if step == iterations - 1 else after
        drawn, known = (part.sort(dim=-1).values for part in (order[:, stop:left], order[:, left:]))
        out.append(Round(drawn, known, (slots - after) / slots))
        left = stop
    return out


def in_order(task: LatentTask) -> list[Round]:
    """The rounds of a model that draws fixed groups one after another; guidance grows from none to all of it."""
    every = torch.arange(task.spec.slots, device=task.seeds.device).expand(task.batch, -1)
    out, start, groups = [], 0, task.spec.groups
    for index, size in enumerate(groups):
        known, slots = every[:, :start], every[:, start : start + size]
        out.append(Round(slots, known, index / max(1, len(groups) - 1)))
        start += size
    return out


@dataclass(frozen=True)
class Settings:
    """Settings of all methods for continuous tokens."""

    schedule: Literal["linear", "constant"] = "linear"  # guidance: growing with what is drawn, or the same throughout

    @property
    def head(self) -> dict[str, Any]:
        """Fields of `Denoising` that they set."""
        return {}


@dataclass(frozen=True)
class Iterations(Settings):
    """Settings of methods that draw masked models."""

    iterations: int = 64  # rounds in which a masked model draws an image; all its tokens at most
    solver: Literal["ddpm", "ddim", "dpm++"] = "ddpm"  # of a diffusion head
    highest: int = 999  # diffusion timesteps above it are brought down to it

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"got iterations {self.iterations}, expected at least 1")
        if not 100 <= self.highest <= 999:
            raise ValueError(f"got highest {self.highest}, expected a timestep from 100 to 999")

    @property
    def head(self) -> dict[str, Any]:
        return {"solver": self.solver, "highest": self.highest}


def check_steps(steps: int, name: str = "steps") -> None:
    """ValueError where a head cannot make so many."""
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"got {name} {steps}, expected 1 to {MOST_STEPS}")


def check_share(share: float, name: str) -> None:
    """ValueError where it is none."""
    if not 0 <= share <= 1:
        raise ValueError(f"got {name} {share}, expected 0 to 1")


class Continuous(ContinuousSampler):
    """Draws round by round; a method says how many steps its head makes in each."""

    exact: ClassVar[bool] = True
    Settings: ClassVar[type]

    def __init__(self, settings: Any, task: LatentTask) -> None:
        self._settings, self._task = settings, task
        fixed = task.spec.plan != "masked"
        self._rounds = in_order(task) if fixed else masked(task, settings.iterations)
        shape, device = (task.batch, task.spec.slots, task.spec.channels), task.seeds.device
        self.values = torch.zeros(shape, dtype=torch.float32, device=device)
        self._next = 0  # the round that is next

    @classmethod
    def check(cls, settings: Any, spec: ContinuousSpec, temperature: float = 1.0) -> None:
        masked, given, usual = spec.plan == "masked", asdict(settings), asdict(cls.Settings())
        for key in ("guidance_high",) if masked else ("iterations", "solver", "highest"):
            if key in given and given[key] != usual[key]:
                raise ValueError(f"got {key} {given[key]} for a model that draws {spec.plan} and has none")
        super().check(settings, spec, temperature)
        solver = settings.solver if masked else "a flow"
        if temperature != 1 and solver != "ddpm":
            raise ValueError(f"got temperature {temperature}, but {solver} has none: expected 1")
        if masked and settings.iterations > spec.slots:
            raise ValueError(
                f"got {settings.iterations} iterations for an image of {spec.slots} tokens, expected no more"
            )

    @property
    def settled(self) -> list[int]:
        drawn = sum(each.slots.shape[1] for each in self._rounds[: self._next])
        return [drawn] * self._task.batch

    def steps(self, index: int) -> int:
        """How many steps the head makes in a round."""
        return self._settings.steps

    def how(self, index: int) -> Denoising:
        """How the head draws a round."""
        settings, scale = self._settings, self._task.guidance
        progress = self._rounds[index].progress if settings.schedule == "linear" else 1.0
        return Denoising(self.steps(index), 1 + (scale - 1) * progress, self._task.temperature, **settings.head)

    def keep(self, rows: Tensor) -> None:
        self._task, self.values = replace(self._task, seeds=self._task.seeds[rows]), self.values[rows]
        self._rounds = [replace(each, slots=each.slots[rows], known=each.known[rows]) for each in self._rounds]

    def propose(self) -> Group:
        return self._group(self._next, self.values)

    def accept(self, head: Any, z: Any) -> None:
        slots = self._rounds[self._next].slots
        self._settle(head.sample(z, self.how(self._next), self._task.noise(slots)))

    def _group(self, index: int, values: Tensor) -> Group:
        return Group(self._rounds[index].slots, self._rounds[index].known, values)

    def _settle(self, drawn: Tensor) -> None:
        """Keep the tokens (B, n, C) of the round that is next."""
        put(self.values, self._rounds[self._next].slots, drawn)
        self._next += 1


def put(values: Tensor, slots: Tensor, drawn: Tensor) -> None:
    """Write tokens (B, n, C) to `slots` (B, n) of values (B, S, C)."""
    values[torch.arange(len(slots), device=slots.device)[:, None], slots] = drawn
