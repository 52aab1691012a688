"""What every method that verifies drafts shares: a commit pointer per row, the tokens, noise by step and offset."""

import torch
from torch import Tensor

from vargen.core import noise
from vargen.core.noise import Purpose
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
        self.settled = [0] * task.batch
        self._slack = 0  # how far the pointers may be beyond `settled`
        self._copied: Copied | None = None  # the pointers behind the last step
        self._drafts = task.seeds.new_zeros(2)  # drafted within images and verified; of these, standing in them
        self._uniforms = noise.Uniforms(task.seeds, widest + more)

    @property
    def tokens(self) -> Tensor:
        return self._buffer[:, : self._task.spec.slots]

    def _slots(self, width: int) -> Tensor:
        return self._pointers + self._offsets[:width]  # (B, w)

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
        self._uniforms.step += 1
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
