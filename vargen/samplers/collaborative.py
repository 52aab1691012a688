"""Collaborative decoding (CoDe, arXiv 2411.17787): a large model draws the coarse scales, a small one the fine ones.

Most tokens, and most of the time, are in the last scales, which need the least of a model. The small model first reads
all scales that are there, in the pass that draws its first own one. The large model's cache is freed before.
Approximate: exact where the large model draws all scales.
"""

from dataclasses import dataclass
from typing import ClassVar

from vargen.core.specs import ScaleSpec
from vargen.samplers.contract import ScaleTask
from vargen.samplers.var import NextScale, NextScaleSettings


@dataclass(frozen=True)
class CollaborativeSettings(NextScaleSettings):
    """Settings of `code`."""

    scales: int = 8  # scales that the large model draws; all of them: `var`
    refiner: str = ""  # the small model by name; empty: the one that the model comes with

    def __post_init__(self) -> None:
        if self.scales < 0:
            raise ValueError(f"got scales {self.scales}, expected at least 0")


class Collaborative(NextScale):
    """CoDe: the first scales by a large model, the others by a small one."""

    Settings: ClassVar[type] = CollaborativeSettings
    partner: ClassVar[str | None] = "refiner"  # the setting that names the other model
    exact: ClassVar[bool] = False

    def __init__(self, settings: CollaborativeSettings, task: ScaleTask) -> None:
        super().__init__(settings, task)
        self._large = settings.scales

    @classmethod
    def check(cls, settings: CollaborativeSettings, spec: ScaleSpec) -> None:
        if settings.scales > len(spec.sides):
            raise ValueError(f"got scales {settings.scales}, but an image has {len(spec.sides)}")

    @property
    def reaches(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((self._large, *super().reaches)))  # only one, where it draws all scales
