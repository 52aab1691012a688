"""What every method that verifies drafts shares: a commit pointer per row, the tokens, noise by step and offset."""

import torch
from torch import Tensor

from vargen import noise
from vargen.noise import Purpose
from vargen.samplers.contract import Task


class Window:
    """Tokens of a batch with a commit pointer n_b per row; at most `widest` drafts stand at slots n_b, n_b + 1, ..."""

    def __init__(self, task: Task, widest: int) -> None:
        self._task, self.widest = task, widest
        padded = task.spec.slots + widest  # drafts may stand past the end of the image
        self._buffer = task.seeds.new_zeros(task.batch, padded)
        self._offsets = torch.arange(widest, device=task.device)
        self._pointers = task.seeds.new_zeros(task.batch, 1)  # n_b
        self.settled = [0] * task.batch
        self._steps = 0
        self._uniforms: dict[Purpose, noise.Table] = {}

    @property
    def tokens(self) -> Tensor:
        return self._buffer[:, : self._task.spec.slots]

    def _slots(self, width: int) -> Tensor:
        return self._pointers + self._offsets[:width]  # (B, w)

    def _uniform(self, purpose: Purpose, width: int) -> Tensor:
        """Fresh uniforms (B, w) for this step: keyed by the row's step and the offset in its window."""
        if purpose not in self._uniforms:
            self._uniforms[purpose] = noise.Table(noise.uniform, self._task.seeds, purpose, size=self.widest)
        return self._uniforms[purpose].between(self._steps, self._steps + 1)[:, 0, :width]

    def _commit(self, moved: Tensor) -> None:
        """Move the pointers by (B, 1); this is the one place where a step reads the device."""
        self._pointers = (self._pointers + moved).clamp_(max=self._task.spec.slots)
        self.settled = self._pointers.flatten().tolist()
        self._steps += 1
