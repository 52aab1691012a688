"""Plain autoregressive decoding: one token per forward. The reference that every other method is measured against.

The draw is a Gumbel-max with noise fixed per (seed, slot): argmax(log p + g) is a draw from p, and it turns over only
where two laws really differ, which keeps it stable under the last-bit differences between shapes of batch.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vargen.core import noise
from vargen.core.specs import RasterSpec
from vargen.core.types import Block
from vargen.core.warp import Warp
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
        self._task, self._end = task, task.spec.slots
        self._hold(task.seeds.new_zeros(task.batch, self._end + 1))
        self._slots = torch.arange(self._end + 1, device=task.device)
        self._gumbel = noise.Table(noise.gumbel, task.seeds, noise.Purpose.TOKEN, size=task.spec.vocabulary)
        self._ends = newlines(task.spec)
        self._back = 1  # tokens that an image may have settled since the last forward: a newline costs none
        self._stand([0] * task.batch)

    def keep(self, rows: Tensor) -> None:
        self._task = self._task.kept(rows)
        self._hold(self._buffer[rows])
        self._gumbel.keep(rows)
        self._stand([self.settled[row] for row in rows.tolist()])

    def join(self, other: Any) -> None:
        self._task = self._task.joined(other._task)
        self._hold(torch.cat([self._buffer, other._buffer]))
        self._gumbel.join(other._gumbel)
        self._back = max(self._back, other._back)
        self._stand(self.settled + other.settled)

    def under(self, warp: Warp) -> None:
        self._task = replace(self._task, warp=warp)

    def _hold(self, buffer: Tensor) -> None:
        """Tokens (B, slots + 1), of which the last column is nobody's."""
        self._buffer, self.tokens = buffer, buffer[:, : self._end]

    def _stand(self, settled: list[int]) -> None:
        """Each image has so many tokens. Where all have as many, blocks are views."""
        self.settled, self._apart = settled, None
        if min(settled) < max(settled):
            self._apart = torch.tensor(settled, device=self._task.device)[:, None]

    def propose(self) -> Block:
        first, back = max(min(self.settled) - self._back, 0), self._back
        if self._apart is None:
            stop = self.settled[0]
            return Block(
                self._buffer[:, first:stop], self._slots[first:stop].expand(len(self.settled), -1), first, stop
            )
        # An image that has settled fewer runs the token before again, and one that is done its last: nothing changes.
        stop = max(n for n in self.settled if n < self._end)
        slots = (self._apart - self._slots[1 : back + 1].flip(0)).clamp_(min=0, max=stop - 1)
        return Block(self._buffer.gather(1, slots), slots, min(first, stop - 1), stop)

    def accept(self, logits: Tensor) -> None:
        n, task = self.settled, self._task
        slots = self._slots[n[0]].expand(task.batch, 1) if self._apart is None else self._apart
        stops = [each + 1 for each in n]
        drawn = sample.draw(logits[:, -1:], task.warp, self._gumbel, slots, stops, task.kernels)
        if self._apart is None:
            self._buffer[:, n[0] : stops[0]] = drawn
        else:
            self._buffer.scatter_(1, slots, drawn)
        moved = [1 + (each in self._ends) for each in stops]
        if task.spec.newline is not None and max(moved) > 1:
            at = [(row, each) for row, (each, more) in enumerate(zip(stops, moved, strict=True)) if more > 1]
            rows, ends = torch.tensor(at, device=task.device).T
            self._buffer[rows, ends] = task.spec.newline
        self._back = max(moved)
        self._stand([min(each + more, self._end) for each, more in zip(n, moved, strict=True)])


def newlines(spec: RasterSpec) -> range:
    """The slots that hold a newline."""
    return range(0) if spec.newline is None else range(spec.columns - 1, spec.slots, spec.columns)
