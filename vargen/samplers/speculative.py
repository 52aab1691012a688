"""Speculative decoding (arXiv 2211.17192, 2302.01318): a small model drafts, one forward of the large one verifies.

The drafter draws `length` tokens one after another, x_i ~ q_i. The large model's forward gives the laws p_i of their
slots and of the one behind. From the left each draft goes through the rule, up to the first that is not kept, whose
place the rule's own token takes; where all are kept, a bonus token is drawn from the last law. Each row of a batch
commits what it can.

Exact with rule `exact`, whatever the drafter; with the others approximate (`relax.py`): `lantern` (arXiv 2410.03355),
`gsd` (2508.07747) and `cool` (2601.09212) are this method under those rules.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vargen.core import rules
from vargen.core.noise import Purpose
from vargen.core.types import Block
from vargen.kernels import sample
from vargen.kernels.verify import verify
from vargen.samplers.contract import Task
from vargen.samplers.relax import DraftedSettings, RuleName, rule
from vargen.samplers.window import Window


@dataclass(frozen=True)
class SpeculativeSettings(DraftedSettings):
    """Settings of `speculative`."""

    length: int = 5  # tokens that are drafted for one forward of the large model

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"got length {self.length}, expected at least 1")


class Speculative(Window):
    """Speculative decoding: a small model drafts a chain, one forward verifies it (with rule=exact)."""

    Settings: ClassVar[type] = SpeculativeSettings
    exact: ClassVar[bool] = True
    partner: ClassVar[str | None] = "drafter"  # the setting that names the other model

    def __init__(self, settings: SpeculativeSettings, task: Task) -> None:
        length = min(settings.length, task.spec.slots)
        super().__init__(task, length + 1)
        assert task.drafter is not None
        self._drafter, self._length = task.drafter, length
        self._drafter.reserve(0)
        self._rule, self._lossless = rule(settings, task), settings.rule == "exact"
        self._q: Tensor | None = None  # laws of the drafts, (B, length, V)

    @classmethod
    def block_width(cls, settings: SpeculativeSettings) -> int | None:
        return 1 + settings.length

    def propose(self) -> Block:
        count, lowest = self._task.spec.slots, min(self.settled)
        highest, laws = max(n for n in self.settled if n < count), []
        length = min(self._length, count - lowest)
        for index in range(length):
            # At first all that the last step may have committed, since the drafter knows it as drafts at best.
            back = self._length + 1 if index == 0 else 1
            slots = self._slots(index + 1)[:, -1:] - torch.arange(back, 0, -1, device=self._task.device)
            slots = slots.clamp(min=0)
            tokens = self._buffer.gather(1, slots)
            stop = min(count, highest + index)
            first = max(lowest + index - back, 0)
            block = Block(tokens, slots.clamp(max=stop - 1), min(first, stop - 1), stop)
            law = self._drafter.laws(block)[:, -1:]
            laws.append(law)
            drawn = rules.draw(law, self._uniform(Purpose.GUESS, self.widest)[:, index : index + 1])
            self._buffer.scatter_(1, self._slots(index + 1)[:, -1:], drawn)
        self._q = torch.cat(laws, dim=1)
        slots, stop = self._slots(length + 1) - 1, min(count, highest + length)
        return Block(self._buffer.gather(1, slots), slots.clamp(max=stop - 1), lowest - 1, stop)

    def accept(self, logits: Tensor) -> None:
        p, width = sample.law(logits, self._task.warp, self._task.kernels), logits.shape[1]
        redraw = self._uniform(Purpose.REDRAW, self.widest)
        bonus = rules.draw(p[:, -1:], redraw[:, width - 1 : width])  # (B, 1)
        if width == 1:  # the first token: nothing was drafted
            self._buffer.scatter_(1, self._pointers, bonus)
            self._commit(torch.ones_like(self._pointers))
            return
        assert self._q is not None
        length = width - 1
        drafts, offsets = self._buffer.gather(1, self._slots(length)), self._offsets[:length]
        if self._lossless:
            kept, tokens = verify(drafts, self._q, p[:, :-1], self._uniforms, self._task.kernels)
        else:
            kept, rest = self._rule(drafts, self._q, p[:, :-1], self._uniform(Purpose.ACCEPT, length), offsets)
            tokens = rules.settle(kept, rest, drafts, redraw[:, :length])
        self._buffer.scatter_(1, self._slots(width), torch.cat([tokens, bonus], dim=1))
        lead = rules.leading(kept)[:, None]
        self._tally(offsets[None] + 1, lead)
        self._commit(lead + 1)


@dataclass(frozen=True)
class LanternSettings(SpeculativeSettings):
    """Settings of `lantern`."""

    rule: RuleName = "lantern"


class Lantern(Speculative):
    """LANTERN: drafts count with the mass of their nearest codes, within a bound."""

    Settings: ClassVar[type] = LanternSettings
    exact: ClassVar[bool] = False


@dataclass(frozen=True)
class LanternPlusSettings(SpeculativeSettings):
    """Settings of `lantern++`."""

    rule: RuleName = "lantern++"


class LanternPlus(Speculative):
    """LANTERN++: as LANTERN, the bound a multiple of the draft's own mass."""

    Settings: ClassVar[type] = LanternPlusSettings
    exact: ClassVar[bool] = False


@dataclass(frozen=True)
class GSDSettings(SpeculativeSettings):
    """Settings of `gsd`."""

    rule: RuleName = "gsd"


class GSD(Speculative):
    """Grouped speculative decoding: drafts count with the group of ids that are ranked beside them."""

    Settings: ClassVar[type] = GSDSettings
    exact: ClassVar[bool] = False


@dataclass(frozen=True)
class CoolSettings(SpeculativeSettings):
    """Settings of `cool`."""

    rule: RuleName = "cool"


class Cool(Speculative):
    """COOL-SD: drafts count with a weight that falls from the first to the last."""

    Settings: ClassVar[type] = CoolSettings
    exact: ClassVar[bool] = False
