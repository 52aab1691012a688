"""Speculative Jacobi decoding, SJD (arXiv 2410.01699), and its coupled form (MC-SJD, arXiv 2510.24211; SJD-PAC,
arXiv 2603.18599).

A window of drafts x_j ~ q_j stands behind the committed tokens. One forward gives their laws p_j. From the left, each
draft is kept with probability min(1, p_j / q_j), up to the first that is not, whose place is taken by a draw from
max(p_j - q_j, 0). `coupling` says what becomes of the drafts behind it:

- `none` (SJD): they are drawn afresh from p_j;
- `maximal`: each is kept or redrawn by the same rule, so that it changes only as far as its law did;
- `gumbel`: each is argmax(log p_j + g_j), with noise g_j fixed per slot.

In every case the new draft is ~ p_j whether it was kept or not, so q_j = p_j from then on. (Two of three public ports
keep the old q_j for drafts that were kept but not committed, which biases the result.)

Exact: each committed token is ~ p_j given those before it, at any window, guess, coupling and batch. With a relaxed
`rule` (coupling maximal) it is approximate; see `relax.py` for the settings at which each is exact.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vargen.core import rules
from vargen.core.noise import Purpose
from vargen.kernels.verify import verify
from vargen.samplers.contract import Task
from vargen.samplers.jacobi import JacobiWindow, WindowSettings
from vargen.samplers.relax import RuleSettings, rule


@dataclass(frozen=True)
class SJDSettings(WindowSettings):
    """Settings of `sjd`."""


@dataclass(frozen=True)
class CoupledSettings(RuleSettings, WindowSettings):
    """Settings of `sjd-coupled`."""

    coupling: Literal["maximal", "gumbel"] = "maximal"  # what ties a revised draft to its predecessor

    def __post_init__(self) -> None:
        WindowSettings.__post_init__(self)
        RuleSettings.__post_init__(self)
        if self.coupling == "gumbel" and self.rule != "exact":
            raise ValueError(f"got rule {self.rule} with coupling gumbel, expected coupling maximal")


class SpeculativeJacobi(JacobiWindow):
    """Speculative Jacobi decoding (SJD): drafts behind the first rejection are drawn afresh."""

    Settings: ClassVar[type] = SJDSettings

    def _revise(self, logits: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
        (p, q), width = self._laws_of_step(), drafts.shape[1]
        offsets, u_redraw = self._offsets[:width], self._uniform(Purpose.REDRAW, width)
        kept = rules.accepts(drafts, q, p, self._uniform(Purpose.ACCEPT, width))
        # Only the first rejection needs the residual: one row of V per image instead of the whole window.
        first = rules.leading(kept)[:, None].clamp(max=width - 1)  # (B, 1)
        row = first[..., None].expand(-1, -1, p.shape[-1])
        token = rules.replace(drafts.gather(1, first), q.gather(1, row), p.gather(1, row), u_redraw.gather(1, first))
        tokens = torch.where(offsets == first, token, self._redraw(logits, u_redraw))
        return kept, torch.where(kept & (offsets <= first), drafts, tokens)

    def _redraw(self, logits: Tensor, u: Tensor) -> Tensor:
        """New drafts (B, w) ~ p."""
        return rules.draw(self._laws_of_step()[0], u)


class CoupledJacobi(SpeculativeJacobi):
    """Coupled speculative Jacobi decoding: a revised draft changes only as far as its law did (with rule=exact)."""

    Settings: ClassVar[type] = CoupledSettings

    def __init__(self, settings: Any, task: Task, more: int = 0) -> None:
        super().__init__(settings, task, more)
        self._maximal = settings.coupling == "maximal"
        self._rule, self._lossless = rule(settings, task), settings.rule == "exact"

    def _revise(self, logits: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
        if not self._maximal:
            return super()._revise(logits, drafts)
        (p, q), width = self._laws_of_step(), drafts.shape[1]
        if self._lossless:
            return verify(drafts, q, p, self._uniforms, self._task.kernels)
        accept, redraw = self._uniform(Purpose.ACCEPT, width), self._uniform(Purpose.REDRAW, width)
        kept, rest = self._rule(drafts, q, p, accept, self._offsets[:width])
        return kept, rules.settle(kept, rest, drafts, redraw)

    def _redraw(self, logits: Tensor, u: Tensor) -> Tensor:
        return self._plain_draw(logits)
