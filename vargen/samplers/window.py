"""What every method that verifies drafts shares: a commit pointer per row, the tokens, noise by step and offset."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vargen.core import noise
from vargen.core.noise import Purpose
from vargen.core.warp import Warp
from vargen.samplers.contract import RasterSampler, Task


class Window(RasterSampler):
    """Tokens of a batch with a commit pointer n_b per row; at most `widest` drafts stand at slots n_b, n_b + 1, ...

    A step has `more` uniforms of each purpose besides one per draft.
    """

    def __init__(self, task: Task, widest: int, more: int = 0) -> None:
        self._task, self.widest, self._more = task, widest, more
        padded = task.spec.slots + widest  # drafts may stand past the end of the image
        self._buffer = task.seeds.new_zeros(task.batch, padded)
        self._offsets = torch.arange(widest, device=task.device)
        self._pointers = task.seeds.new_zeros(task.batch, 1)  # n_b
        self._standing: Tensor | None = None
        self.settled = [0] * task.batch
        self._slack = 0  # how far the pointers may be beyond `settled`
        self._copied: Copied | None = None  # the pointers behind the last step
        self._drafts = task.seeds.new_zeros(2)  # drafted within images and verified; of these, standing in them
        self._uniforms = noise.Uniforms(task.seeds, widest + more)
        self._moves: tuple[Tensor, Tensor] | None = None  # what the next block moves in the cache, see `Block`

    @property
    def tokens(self) -> Tensor:
        return self._buffer[:, : self._task.spec.slots]

    def keep(self, rows: Tensor) -> None:
        self._task = self._task.kept(rows)
        self._buffer, self._pointers = self._buffer[rows], self._pointers[rows]
        self._uniforms.keep(rows)
        self._moves = None if self._moves is None else (self._moves[0][rows], self._moves[1][rows])
        if self._task.drafter is not None:
            self._task.drafter.keep(rows)
        self._read()
        self._renew()

    def join(self, other: Any) -> None:
        counts = self._task.batch, other._task.batch
        pairs = zip(self._moves or (None, None), other._moves or (None, None), strict=True)
        source, target = (stacked(*pair, counts) for pair in pairs)  # where one has none, its place 0 stays
        self._moves = None if source is None or target is None else (source, target)
        self._task = self._task.joined(other._task)
        self._buffer = torch.cat([self._buffer, other._buffer])
        self._pointers = torch.cat([self._pointers, other._pointers])
        self._uniforms.join(other._uniforms)
        if self._task.drafter is not None:
            self._task.drafter.join(other._task.drafter)
        self._read()
        self._renew()

    def _renew(self) -> None:
        """Make anew what has a row for each image, and holds nothing from step to step."""
        return

    def under(self, warp: Warp) -> None:
        self._task = replace(self._task, warp=warp)

    def _read(self) -> None:
        """Read where the pointers stand."""
        self.settled, self._slack, self._copied = self._pointers.flatten().tolist(), 0, None
        self._standing = None

    def _slots(self, width: int) -> Tensor:
        """Where the first `width` drafts stand, (B, w)."""
        if self._standing is None or self._standing.shape[1] != width:  # once for a step
            self._standing = self._pointers + self._offsets[:width]
        return self._standing

    @property
    def counted(self) -> tuple[int, int]:
        verified, kept = self._drafts.tolist()
        return verified, kept

    def _uniform(self, purpose: Purpose, stop: int, first: int = 0) -> Tensor:
        """Fresh uniforms (B, stop - first) for this step: keyed by the row's step and the offset in its window."""
        return self._uniforms.of(purpose, stop, first)

    def _tally(self, depths: Tensor, kept: Tensor) -> None:
        """Count drafts at `depths` (B or 1, n), from 1 on, of which the first `kept` (B, 1) levels kept one each."""
        left = self._task.spec.slots - self._pointers  # (B, 1)
        self._drafts += torch.stack([(depths <= left).sum(), torch.minimum(kept, left).sum()])

    def _commit(self, moved: Tensor, most: int | None = None) -> list[int]:
        """Move the pointers by (B, 1): by at most `most`, if it is given; the one place where a step reads the device.

        Where the task allows it, `most` is given, and no row is near the end of its image, what is read is where the
        pointers stood a step ago, so that nobody waits. Returns where the row furthest behind was after each step of
        which that is known only now: of none, one or two.
        """
        slots = self._task.spec.slots
        self._pointers = (self._pointers + moved).clamp_(max=slots)
        self._standing = None
        self._uniforms.advance()
        learnt = []
        if self._task.late and most is not None:
            before, self._copied = self._copied, Copied(self._pointers)
            if before is not None:
                known, late = before.numbers(), self._slack > 0
                learnt += [min(known)] if late else []
                if all(n == slots or n + 2 * self.widest < slots for n in known):
                    self.settled, self._slack = known, most
                    return learnt
        self.settled, self._slack = self._pointers.flatten().tolist(), 0
        return [*learnt, min(self.settled)]


def stacked(one: Tensor | None, other: Tensor | None, counts: tuple[int, int]) -> Tensor | None:
    """(B, n, ...) and (C, m, ...) below each other, the shorter one filled up with zeros; None stands for zeros, and
    `counts` are B and C.
    """
    some = one if other is None else other
    if some is None:
        return None
    parts = [
        some.new_zeros(n, 0, *some.shape[2:]) if x is None else x for x, n in zip((one, other), counts, strict=True)
    ]
    out = some.new_zeros(sum(counts), max(part.shape[1] for part in parts), *some.shape[2:])
    out[: counts[0], : parts[0].shape[1]], out[counts[0] :, : parts[1].shape[1]] = parts
    return out


class Copied:
    """Numbers on their way from the device to the host."""

    def __init__(self, values: Tensor) -> None:
        self._event = torch.cuda.Event() if values.is_cuda else None
        self._values = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=values.is_cuda)
        self._values.copy_(values, non_blocking=True)
        if self._event is not None:  # on the stream of the copy, which need not be that of the current device
            self._event.record(torch.cuda.current_stream(values.device))

    def numbers(self) -> list[int]:
        """All of them in order, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.flatten().tolist()
