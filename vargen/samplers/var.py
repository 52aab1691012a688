"""Plain next-scale decoding (VAR, arXiv 2404.02905): all tokens of a scale are drawn at once, each from its own law.

The noise of a token depends on its image's seed and its slot in the pyramid. `more_smooth` puts a mixture of codes in
the place of each code that was drawn, by a Gumbel softmax that sharpens from scale to scale: prettier, and not the law
that figures are measured under.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core import noise, rules
from vargen.core.noise import Purpose
from vargen.samplers.contract import ScaleSampler, ScaleTask


@dataclass(frozen=True)
class NextScaleSettings:
    """Settings of `var`."""

    more_smooth: bool = False  # mix codes instead of taking one; the tokens stay those that were drawn


class NextScale(ScaleSampler):
    """Plain next-scale decoding: one forward per scale."""

    Settings: ClassVar[type] = NextScaleSettings
    exact: ClassVar[bool] = True

    def __init__(self, settings: NextScaleSettings, task: ScaleTask) -> None:
        self._task, self._smooth = task, settings.more_smooth
        self.tokens = task.seeds.new_zeros(task.batch, task.spec.slots)
        self._settled = 0

    @property
    def reaches(self) -> tuple[int, ...]:
        return (len(self._task.spec.sides),)

    @property
    def settled(self) -> list[int]:
        return [self._settled] * self._task.batch

    def keep(self, rows: Tensor) -> None:
        self._task, self.tokens = self._task.kept(rows), self.tokens[rows]

    def draw(self, logits: Tensor, scale: int) -> Tensor:
        task, first, stop = self._task, self._task.spec.start(scale), self._task.spec.start(scale + 1)
        scores = task.warps[scale].scores(logits)
        slots = torch.arange(first, stop, device=scores.device)[None]
        tokens = rules.draw(scores.softmax(-1), noise.uniform(task.seeds, slots, Purpose.TOKEN)[..., 0])
        codes = self._mixture(logits, slots, scale) if self._smooth else F.embedding(tokens, task.codebook)
        if task.given is not None and task.keep is not None:
            given, keep = task.given[:, first:stop], task.keep[:, first:stop]
            tokens = torch.where(keep, given, tokens)
            codes = torch.where(keep[..., None], F.embedding(given, task.codebook), codes)
        self.tokens[:, first:stop], self._settled = tokens, stop
        return codes

    def _mixture(self, logits: Tensor, slots: Tensor, scale: int) -> Tensor:
        """Codes (B, n, D) mixed by a Gumbel softmax, at the published temperatures, which know of no other one."""
        scores = replace(self._task.warps[scale], temperature=1.0).scores(logits)
        ratio = scale / max(1, len(self._task.spec.sides) - 1)
        tau = max(0.27 * (1 - 0.95 * ratio), 0.005)
        g = noise.gumbel(self._task.seeds, slots, Purpose.SMOOTH, scores.shape[-1])
        return ((scores * (1 + ratio) + g) / tau).softmax(-1) @ self._task.codebook
