"""Next-cell decoding of continuous tokens (xAR, arXiv 2502.20388): a quadrant at a time, by a stochastic flow."""

from dataclasses import dataclass
from typing import ClassVar

from vargen.samplers.latent import Continuous, Settings, check_steps


@dataclass(frozen=True)
class XARSettings(Settings):
    """Settings of `xar`."""

    steps: int = 50  # of the flow, for each cell

    def __post_init__(self) -> None:
        check_steps(self.steps)


class NextCell(Continuous):
    """xAR: cell by cell, the same number of flow steps for each."""

    Settings: ClassVar[type] = XARSettings
    plan: ClassVar[str | None] = "cells"
