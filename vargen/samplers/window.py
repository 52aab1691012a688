"""What every method that verifies drafts shares: a commit pointer per row, the tokens, noise by step and offset."""

import torch
from torch import Tensor

from vargen import noise
from vargen.noise import Purpose
from vargen.samplers.contract import Task


class Window:
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
        self._drafts = task.seeds.new_zeros(2)  # drafted within images and verified; of these, standing in them
        self._uniforms = noise.Uniforms(task.seeds, widest + more)

    @property
    def tokens(self) -> Tensor:
        return self._buffer[:, : self._task.spec.slots]

    def _slots(self, width: int) -> Tensor:
        return self._pointers + self._offsets[:width]  # (B, w)

    @property
    def drafts(self) -> int:
        """Drafts within images that were verified."""
        return int(self._drafts[0])

    @property
    def drafts_kept(self) -> int:
        """Drafts that stand in the images."""
        return int(self._drafts[1])

    def _uniform(self, purpose: Purpose, stop: int, first: int = 0) -> Tensor:
        """Fresh uniforms (B, stop - first) for this step: keyed by the row's step and the offset in its window."""
        return self._uniforms.of(purpose, stop, first)

    def _tally(self, depths: Tensor, kept: Tensor) -> None:
        """Count drafts at `depths` (B or 1, n), from 1 on, of which the first `kept` (B, 1) levels kept one each."""
        left = self._task.spec.slots - self._pointers  # (B, 1)
        self._drafts += torch.stack([(depths <= left).sum(), torch.minimum(kept, left).sum()])

    def _commit(self, moved: Tensor) -> None:
        """Move the pointers by (B, 1); this is the one place where a step reads the device."""
        self._pointers = (self._pointers + moved).clamp_(max=self._task.spec.slots)
        self.settled = self._pointers.flatten().tolist()
        self._uniforms.step += 1
