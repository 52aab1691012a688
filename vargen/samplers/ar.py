"""Plain autoregressive decoding: one token per forward. The reference that every other method is measured against.

The draw is a Gumbel-max with noise fixed per (seed, slot): argmax(log p + g) is a draw from p, and it turns over only
where two laws really differ, which keeps it stable under the last-bit differences between shapes of batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vargen.core import noise
from vargen.core.types import Block
from vargen.kernels import sample
from vargen.samplers.contract import RasterSampler, Task


@dataclass(frozen=True)
class ARSettings:
    """Plain decoding has no settings."""


class Autoregressive(RasterSampler):
    """Plain decoding, one token per forward."""

    Settings: ClassVar[type] = ARSettings
    exact: ClassVar[bool] = True

    def __init__(self, settings: ARSettings, task: Task) -> None:
        spec = task.spec
        self._task, self._newline, self._columns = task, spec.newline, spec.columns
        self._next, self._fed = 0, 0  # tokens that are settled, and of them those that the model has seen
        self.tokens = task.seeds.new_zeros(task.batch, spec.slots)
        self._slots = torch.arange(spec.slots, device=task.device)
        self._gumbel = noise.Table(noise.gumbel, task.seeds, noise.Purpose.TOKEN, size=spec.vocabulary)

    @property
    def settled(self) -> list[int]:
        return [self._next] * len(self.tokens)

    def propose(self) -> Block:
        first, stop = self._fed, self._next
        self._fed = stop
        slots = self._slots[first:stop].expand(len(self.tokens), -1)
        return Block(self.tokens[:, first:stop], slots, first, stop)

    def accept(self, logits: Tensor) -> None:
        n, task = self._next, self._task
        slots = self._slots[n].expand(task.batch, 1)
        drawn = sample.draw(logits[:, -1:], task.warp, self._gumbel, slots, (n, n + 1), task.kernels)
        self.tokens[:, n : n + 1] = drawn
        self._next += 1
        if self._newline is not None and self._next % self._columns == self._columns - 1:  # it costs no forward
            self.tokens[:, self._next] = self._newline
            self._next += 1
