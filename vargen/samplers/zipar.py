"""ZipAR (arXiv 2412.04062): rows abreast, a token of each from every forward; and its adaptive form.

With `window` w, at most the columns, an image takes columns + (rows - 1) w forwards, newlines not counted.
`zipar-adaptive` starts a row at `window` tokens too, but on trial: the row's first token is drawn and, one forward
later, kept or not under the law that one more token of the row above gives, as speculative decoding keeps drafts; else
the row waits for another trial, and at the end of the row above for none.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vargen.core import rules
from vargen.core.noise import Purpose
from vargen.samplers.abreast import Abreast, Step
from vargen.samplers.contract import Task


@dataclass(frozen=True)
class ZipARSettings:
    """Settings of `zipar` and `zipar-adaptive`."""

    window: int = 8  # tokens that the row above must have before a row starts; all of its columns: plain decoding

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"got window {self.window}, expected at least 1")


class ZipAR(Abreast):
    """ZipAR: each row starts `window` tokens behind the one above, and all take a token from every forward."""

    Settings: ClassVar[type] = ZipARSettings
    exact: ClassVar[bool] = False

    def __init__(self, settings: ZipARSettings, task: Task) -> None:
        super().__init__(task, start=settings.window)

    def _decide(self, scores: Tensor, step: Step) -> tuple[Tensor, np.ndarray]:
        return self._plain_draw(scores, step), step.wanted.sum(-1)


class AdaptiveZipAR(ZipAR):
    """ZipAR with rows that start on trial: the first token is kept if the next law agrees, else the row waits."""

    def __init__(self, settings: ZipARSettings, task: Task) -> None:
        super().__init__(settings, task)
        self._trial = np.zeros(self._done.shape, dtype=bool)  # rows whose first token is on trial
        shape = (*self._done.shape, task.spec.vocabulary)
        self._laws = task.seeds.new_zeros(shape, dtype=torch.float32)  # that it was drawn from

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self._trial, self._laws = self._trial[rows.cpu().numpy()], self._laws[rows]

    def join(self, other: Any) -> None:
        super().join(other)
        self._trial = np.concatenate([self._trial, other._trial])
        self._laws = torch.cat([self._laws, other._laws])

    def _decide(self, scores: Tensor, step: Step) -> tuple[Tensor, np.ndarray]:
        drawn, moved, rows = self._plain_draw(scores, step), step.wanted.sum(-1), step.rows
        early = step.wanted[..., 0] & (step.columns[..., 0] == 0) & (self._above_of(rows) < self._lengths[rows])
        self._steps = self._steps + 1
        if not early.any():
            return drawn, moved
        # A first trial has noise of its own: that of plain decoding, used once it was refused, would know of that.
        tried = self._plain_draw(scores, step, Purpose.GUESS)[..., 0]
        drawn = torch.where(self._tensor(early), tried, drawn[..., 0])
        on_trial = early & np.take_along_axis(self._trial, rows, 1)
        p, index = scores[:, :, 0].softmax(-1), self._tensor(rows)
        batch = torch.arange(len(rows), device=p.device)[:, None]
        at = step.at[..., 0]
        q, draft = self._laws[batch, index], self._buffer.gather(1, at)
        kept, settled = rules.keep(draft, q, p, *self._uniform(at, 2))
        tokens = torch.where(self._tensor(on_trial), settled, drawn)
        final = ~early | (on_trial & kept.cpu().numpy())
        waiting = self._tensor(early & ~final)
        self._laws[batch, index] = torch.where(waiting[..., None], p, q)
        np.put_along_axis(self._trial, rows, np.where(early, ~final, np.take_along_axis(self._trial, rows, 1)), 1)
        return tokens[..., None], np.where(final, moved, 0)
