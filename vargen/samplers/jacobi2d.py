"""Jacobi decoding in two dimensions (PJD, arXiv 2606.05703): rows abreast, each with a Jacobi window of its own.

A row starts when the row above has `window` tokens, and from then on may commit up to that row's pointer. Within a row
drafts are kept as in `sjd.py`: from the left up to the first that the new law refuses; the drafts behind it are drawn
afresh, or, `coupled`, change only as far as their law did. A draft sees what is committed and its own row's drafts.
Not published: a row is drafted `ahead` of its start and of its limit, so that its drafts have settled by then.

Approximate, since a token is drawn before all of the row above is there; exact where `window` is all of its columns.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vargen.core import rules
from vargen.samplers.abreast import Abreast, Step
from vargen.samplers.contract import Task
from vargen.samplers.relax import RuleSettings, rule
from vargen.samplers.window import stacked


@dataclass(frozen=True)
class Jacobi2DSettings(RuleSettings):
    """Settings of `jacobi-2d`."""

    window: int = 8  # tokens that the row above must have before a row starts
    drafts: int = 6  # drafts of a row per forward
    ahead: int = 6  # tokens that the row above may still lack when a row is drafted: refined, and not yet committed
    coupled: bool = False  # whether a revised draft changes only as far as its law did
    guess: Literal["uniform", "above"] = "uniform"  # first draft of a slot

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("window", 1), ("drafts", 1), ("ahead", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"got {name} {getattr(self, name)}, expected at least {least}")


class Jacobi2D(Abreast):
    """Jacobi decoding in two dimensions: rows abreast, each with a window of drafts of its own."""

    Settings: ClassVar[type] = Jacobi2DSettings
    exact: ClassVar[bool] = False

    def __init__(self, settings: Jacobi2DSettings, task: Task) -> None:
        ahead = settings.ahead if settings.drafts > 1 else 0  # without drafts nothing is refined
        super().__init__(task, start=settings.window, drafts=settings.drafts, ahead=ahead)
        self._coupled, self._copies, self._rule = settings.coupled, settings.guess == "above", rule(settings, task)
        self._ids, self._flat = task.uniform_guess()
        self._p: Tensor | None = None  # laws of the last step (B, n, V)
        self._q = self._flat  # those that the drafts of this step were drawn from (B, n, V)
        self._where = task.seeds.new_full(self._buffer.shape, -1)  # of each slot, its law's place there, or -1
        self._u: list[Tensor] = []  # this step's uniforms: to judge its drafts with, and to redraw them

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self._p, self._where = None if self._p is None else self._p[rows], self._where[rows]

    def join(self, other: Any) -> None:
        self._p = stacked(self._p, other._p, (len(self._where), len(other._where)))
        super().join(other)
        self._where = torch.cat([self._where, other._where])

    def _guess(self, step: Step, final: Tensor) -> None:
        self._steps = self._steps + 1
        if self._width == 1:
            return
        at = step.at.flatten(1)
        where, law = self._where.gather(1, at), self._flat.expand(*at.shape, -1)
        u_guess, *self._u = self._uniform(at, 3)
        tokens = self._ids[(u_guess * len(self._ids)).long()]
        if self._copies:
            first, columns = self._task.spec.around(at)
            above, inside = (at - columns).clamp(min=0), at - columns >= first
            there, copied = final.gather(1, above) & inside, self._buffer.gather(1, above)
            tokens = torch.where(there, copied, tokens)
            law = torch.where(there[..., None], torch.zeros_like(law).scatter_(2, copied[..., None], 1.0), law)
        fresh = where < 0
        self._buffer.scatter_(1, at, torch.where(fresh, tokens, self._buffer.gather(1, at)))
        if self._p is not None:
            carried = self._p.gather(1, where.clamp(min=0)[..., None].expand(-1, -1, law.shape[-1]))
            law = torch.where(fresh[..., None], law, carried)
        self._q = law

    def _decide(self, scores: Tensor, step: Step) -> tuple[Tensor, np.ndarray]:
        room = np.minimum(step.wanted.sum(-1), self._room(step))
        if scores.shape[2] == 1:  # nothing to verify: draw as plain decoding does
            return self._plain_draw(scores, step), room
        at, shape = step.at.flatten(1), scores.shape[:3]
        p, drafts = scores.flatten(1, 2).softmax(-1), self._buffer.gather(1, at)
        offsets = torch.arange(shape[2], device=p.device).repeat(shape[1])
        u_accept, u_redraw = self._u
        kept, rest = self._rule(drafts, self._q, p, u_accept, offsets)
        tokens, kept = rules.settle(kept, rest, drafts, u_redraw), kept.view(shape)
        lead = kept.long().cumprod(-1).sum(-1)  # (B, A)
        if not self._coupled:
            behind = torch.arange(shape[2], device=p.device) > lead[..., None]
            tokens = torch.where(behind.flatten(1), rules.draw(p, u_redraw), tokens)
        self._p = p
        self._where.fill_(-1).scatter_(1, at, torch.arange(at.shape[1], device=p.device).expand_as(at))
        self._where[:, -1] = -1
        return tokens.view(shape), np.minimum(lead.cpu().numpy() + 1, room)
