"""Continuous speculative decoding (CSD, arXiv 2411.11925): a small masked model drafts tokens, a large one judges them.

A token is the end of a denoising path x_T, ..., x_0. Two rules decide whether a drafted one is kept.

`exact` looks at the whole path: both models know the density of every step of it, so that a drafted path is kept with
min(1, p(path) / q(path)), and otherwise replaced by one of the large model's, thinned by 1 - min(1, q(path) / p(path)).
All steps are judged in one call. The last one, which is made without noise, is always the large model's; the next
group can therefore only be drafted when this one is finished, and `draft` is 1. The backbone runs as often as in plain
decoding, and a token costs one path of the large head on average, whatever the drafter: what a kept draft saves, the
thinning of the others spends. It is here as the honest yardstick of the other rule, not as an accelerator.

Where drafter and model agree but for rounding, what rounding rejects has no replacement to be found: the last of 4,096
paths of the large model is then taken. The law of a token is off by at most 1 / (e 4096) = 9e-5 for it, where the two
laws are 1 / 4096 apart, and by less than 1e-19 where they are 1 / 100 apart.

`paper` has both models denoise the same noise. The draft x is kept with min(1, r), where
r = N(x; mu_p, tau s_p^2) / N(x; mu_q, tau s_q^2) of the last step, times the product of s_q / s_p over those before;
otherwise it is replaced by a sample of the large model's, thinned by max(0, 1 - 1 / r). `inner` is tau, 1 in the paper
and 42 in its code. The last step's Gaussian was never drawn from, so that this rule follows no exact law at any
setting. It may draft several groups, which the large model then judges in one pass; a batch goes on behind the first
group of which any image lost a draft (what is drafted again is the same, since noise is a function).

With `lower` below `upper` the steps of the head are annealed as in `disa.py`; exact then means: exactly that.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core import noise
from vargen.core.noise import PathNoise, Purpose
from vargen.core.types import Denoising, DenoisingPath, Group
from vargen.samplers.contract import LatentTask
from vargen.samplers.disa import DiSASettings, StepAnnealing
from vargen.samplers.latent import put

MOST_AT_A_TIME = 512  # paths in the place of rejected ones
MOST_TRIES = 4096  # of rule exact, see above


@dataclass(frozen=True)
class CSDSettings(DiSASettings):
    """Settings of `csd`."""

    upper: int = 100  # steps in the first round
    lower: int = 0  # steps in the last; 0: as many
    highest: int = 999
    rule: Literal["exact", "paper"] = "exact"
    draft: int = 1  # groups that are drafted for one pass of the large model
    prefill: float = 0.05  # share of the rounds, the first ones, that the large model draws alone
    inner: float = 1.0  # rule paper: the temperature of the last step's density
    tries: int = 20  # rule paper: samples in the place of a rejected draft, the last of which is kept
    drafter: str = ""  # the small model by name; empty: the one that the model comes with

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft < 1 or self.tries < 1:
            raise ValueError(f"got draft {self.draft} and tries {self.tries}, expected at least 1")
        if self.draft > 1 and self.rule == "exact":
            raise ValueError("rule exact drafts one group at a time, since only the large model can finish it: draft=1")
        if not 0 <= self.prefill <= 1 or not 0 < self.inner < float("inf"):
            raise ValueError(f"got prefill {self.prefill} and inner {self.inner}, expected 0 to 1 and more than 0")
        if self.solver != "ddpm":
            raise ValueError(f"got solver {self.solver}, but csd judges the steps of ddpm")


@dataclass(frozen=True)
class Law:
    """What one model says of a group's tokens: a head and its `z`."""

    head: Any
    z: Tensor  # (R, n, d), the conditional rows, then the unconditional ones

    def tokens(self, rows: Tensor, columns: Tensor, images: int) -> "Law":
        """Of single tokens, (k,) rows and columns, each an image of its own."""
        return Law(self.head, torch.cat([part[rows, columns][:, None] for part in self.z.split(images)]))


class ContinuousSpeculative(StepAnnealing):
    """Continuous speculative decoding: a small masked model drafts, a large one judges (exact with rule=exact)."""

    Settings: ClassVar[type] = CSDSettings
    plan: ClassVar[str | None] = "masked"
    partner: ClassVar[str | None] = "drafter"  # the setting that names the other model
    exact: ClassVar[bool] = True
    least_temperature: ClassVar[float] = 0.01  # with less noise paths have no density to judge them by

    def __init__(self, settings: CSDSettings, task: LatentTask) -> None:
        super().__init__(settings, task)
        assert task.drafter is not None
        self._drafter, self._drafted = task.drafter, []
        self._verified = self._kept = 0

    @property
    def counted(self) -> tuple[int, int]:
        return self._verified, self._kept

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self._drafter.keep(rows)

    def propose(self) -> Group:
        first, last = self._next, len(self._rounds)
        self._drafted: list[tuple[Law, DenoisingPath]] = []
        if first < round(self._settings.prefill * last):
            return self._group(first, self.values)
        values, groups = self.values.clone(), []
        for index in range(first, min(first + self._settings.draft, last)):
            groups.append(self._group(index, values.clone()))
            law = Law(*self._drafter.law(groups[-1]))
            path = law.head.path(law.z, self.how(index), self._task.noise(groups[-1].slots))
            put(values, groups[-1].slots, path.end)
            self._drafted.append((law, path))
        return stacked(groups)

    def accept(self, head: Any, z: Tensor) -> None:
        if not self._drafted:
            super().accept(head, z)
            return
        images, copies = self._task.batch, len(self._drafted)
        each = [part.split(images) for part in z.split(images * copies)]  # of the conditional rows, and of the others
        for index, (small, path) in enumerate(self._drafted):
            count = self._rounds[self._next].slots.shape[1]
            large = Law(head, torch.cat([part[index][:, :count] for part in each]))
            kept, drawn = self._judge(large, small, path)
            self._verified += kept.numel()
            self._kept += int(kept.sum())
            self._settle(drawn)
            if not kept.all():
                return

    def _judge(self, large: Law, small: Law, path: DenoisingPath) -> tuple[Tensor, Tensor]:
        """Which drafts of the next round are kept (B, n), and the tokens that come of it (B, n, C)."""
        task, how, slots = self._task, self.how(self._next), self._rounds[self._next].slots
        chance = noise.uniform(task.seeds, slots, Purpose.CHECK)[..., 0]
        if self._settings.rule == "exact":
            judged = large.head.judge(large.z, how, path.states)
            log_ratio, drawn = density(judged, how) - density(path, how), judged.end.clone()
        else:
            aligned = large.head.path(large.z, how, task.noise(slots))
            log_ratio, drawn = self._ratio(path.end, aligned, path), path.end.clone()
        kept = chance.log() < _number(log_ratio)
        rows, columns = (~kept).nonzero(as_tuple=True)
        if len(rows):
            ours, theirs = (law.tokens(rows, columns, task.batch) for law in (large, small))
            drawn[rows, columns] = self._replaced(ours, theirs, how, rows, slots[rows, columns])
        return kept, drawn

    def _replaced(self, large: Law, small: Law, how: Denoising, rows: Tensor, slots: Tensor) -> Tensor:
        """Tokens (k, C) in the place of rejected drafts of images `rows` (k,) at `slots` (k,).

        The better the drafter, the more attempts a rejected draft takes: more and more of them are made at a time.
        """
        whole, first, count = len(rows), 0, 1
        out = torch.empty(whole, self._task.spec.channels, dtype=torch.float32, device=rows.device)
        waiting = torch.arange(whole, device=rows.device)
        tries = self._settings.tries if self._settings.rule == "paper" else MOST_TRIES
        while len(waiting):
            attempts = [self._attempt(rows[waiting], slots[waiting], first + i) for i in range(count)]
            many = waiting.repeat(count)
            ours, theirs = (law.tokens(many, torch.zeros_like(many), whole) for law in (large, small))
            taken, end = self._thinned(ours, theirs, how, Attempts(tuple(part for part, _ in attempts)))
            taken = torch.cat([chance for _, chance in attempts]) > taken
            taken, end = taken.unflatten(0, (count, -1)), end.unflatten(0, (count, -1))
            first += count
            if first >= tries:
                taken[tries - 1 - first] = True
            done, which = taken.any(0), taken.int().argmax(0)
            out[waiting[done]] = end[which, torch.arange(len(waiting), device=rows.device)][done]
            waiting = waiting[~done]
            count = max(1, min(2 * count, MOST_AT_A_TIME // max(1, len(waiting))))
        return out

    def _attempt(self, rows: Tensor, slots: Tensor, number: int) -> tuple[PathNoise, Tensor]:
        """The noise of an attempt for single tokens, and the chance (k,) that decides on it."""
        start, path, check = (Purpose.RESIDUAL + 8 * number + i for i in range(3))
        fresh = self._task.noise(slots[:, None], start, path, rows=rows)
        return fresh, noise.uniform(fresh.seed, fresh.slots, check)[:, 0, 0]

    def _thinned(self, large: Law, small: Law, how: Denoising, fresh: Any) -> tuple[Tensor, Tensor]:
        """Which chance (k,) the residual of each sample of the large model asks for, and the samples (k, C)."""
        path = large.head.path(large.z, how, fresh)
        if self._settings.rule == "exact":
            excess = density(path, how) - density(small.head.judge(small.z, how, path.states), how)
        else:
            excess = self._ratio(path.end, path, small.head.path(small.z, how, fresh))
        return torch.exp(-_number(excess)[:, 0]), path.end[:, 0]

    def _ratio(self, x: Tensor, large: DenoisingPath, small: DenoisingPath) -> Tensor:
        """The paper's log p / q (B, n) of tokens x (B, n, C), whose paths took the same noise."""

        def last(path: DenoisingPath) -> Tensor:
            return _normal(x, path.means[-1], path.log_variances[-1], self._settings.inner)

        before = 0.5 * (small.log_variances[:-1] - large.log_variances[:-1]).double().sum((0, -1))
        return last(large) - last(small) + before


def _number(log_ratio: Tensor) -> Tensor:
    """ValueError where densities are no numbers, with which nothing would ever be kept or replaced."""
    if log_ratio.isnan().any():
        raise ValueError("the densities of a denoising path are no numbers: try float32, or highest=950")
    return log_ratio


@dataclass(frozen=True)
class Attempts:
    """The noise of several attempts, one below the other."""

    parts: tuple[PathNoise, ...]

    @property
    def slots(self) -> Tensor:
        return torch.cat([part.slots for part in self.parts])

    def start(self) -> Tensor:
        return torch.cat([part.start() for part in self.parts])

    def steps(self, count: int) -> Tensor:
        return torch.cat([part.steps(count) for part in self.parts], dim=1)


def density(path: DenoisingPath, how: Denoising) -> Tensor:
    """Log density (B, n), float64, of the noisy steps of a path under the laws in it."""
    variance = how.temperature**2
    return _normal(path.states[1:], path.means[:-1], path.log_variances[:-1], variance).sum(0)


def _normal(x: Tensor, mean: Tensor, log_variance: Tensor, stretch: float) -> Tensor:
    """Log density of a normal law over the last axis, its squared distance divided by `stretch`; no constants."""
    distance = (x.double() - mean.double()).square() * torch.exp(-log_variance.double()) / stretch
    return -0.5 * (distance + log_variance.double()).sum(-1)


def stacked(groups: list[Group]) -> Group:
    """Groups of one batch below each other, filled up to the same lengths."""
    if len(groups) == 1:
        return groups[0]
    n, m = (max(getattr(group, name).shape[1] for group in groups) for name in ("slots", "known"))

    def filled(part: Tensor, length: int) -> Tensor:
        return F.pad(part, (0, length - part.shape[1]))

    hidden = [torch.arange(m, device=group.known.device).expand(len(group.known), m) for group in groups]
    return Group(
        torch.cat([filled(group.slots, n) for group in groups]),
        torch.cat([filled(group.known, m) for group in groups]),
        torch.cat([group.values for group in groups]),
        torch.cat([at >= group.known.shape[1] for at, group in zip(hidden, groups, strict=True)]),
    )
