"""Plain autoregressive decoding: one token per forward. The reference that every other method is measured against.

The draw is a Gumbel-max with noise fixed per (seed, slot): argmax(log p + g) is a draw from p, and it turns over only
where two laws really differ, which keeps it stable under the last-bit differences between shapes of batch.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vargen import noise
from vargen.core import Block
from vargen.samplers.contract import Task


@dataclass(frozen=True)
class ARSettings:
    """Plain decoding has no settings."""


class Autoregressive:
    """Plain decoding, one token per forward."""

    Settings: ClassVar[type] = ARSettings
    exact: ClassVar[bool] = True

    def __init__(self, settings: ARSettings, task: Task) -> None:
        count = task.spec.slots
        self._warp, self._next = task.warp, 0
        self.tokens = task.seeds.new_zeros(task.batch, count)
        self._slots = task.seeds.new_zeros(task.batch, 1) + -1
        self._gumbel = noise.Table(noise.gumbel, task.seeds, noise.Purpose.TOKEN, size=task.spec.vocabulary)

    @property
    def settled(self) -> list[int]:
        return [self._next] * len(self.tokens)

    def propose(self) -> Block:
        n = self._next
        return Block(self.tokens[:, n - 1 : n], self._slots, n - 1, n)

    def accept(self, logits: Tensor) -> None:
        n = self._next
        g = self._gumbel.between(n, n + 1)
        self.tokens[:, n : n + 1] = (self._warp.scores(logits) + g).argmax(-1)
        self._next += 1
        self._slots = self._slots + 1
