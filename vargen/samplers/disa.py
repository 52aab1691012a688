"""Diffusion step annealing (DiSA, arXiv 2505.20297): the more of an image is known, the fewer steps its tokens need.

Later tokens hang on earlier ones so much that their law is narrow, and few steps draw it. Works on every continuous
model, since all draw in rounds. Approximate: with `lower` equal to `upper` it is plain decoding with so many steps (of
masked models with highest=999, which the published code brings down to 950).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vargen.samplers.latent import Continuous, Iterations, check_share, check_steps

Shape = Literal["linear", "cosine", "two-stage", "constant"]


@dataclass(frozen=True)
class DiSASettings(Iterations):
    """Settings of `disa`; `iterations`, `solver` and `highest` are of masked models alone."""

    upper: int = 50  # steps in the first round
    lower: int = 5  # steps in the last; 0: as many
    shape: Shape = "linear"  # how they fall; constant: `lower` throughout
    highest: int = 950  # the published clamp
    guidance_high: float = 1.0  # FlowAR: flow times above it are not guided

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.upper, "upper")
        check_steps(self.lower or self.upper, "lower")
        check_share(self.guidance_high, "guidance_high")
        if self.lower > self.upper:
            raise ValueError(f"got steps that grow from {self.upper} to {self.lower}, expected fewer and fewer")

    @property
    def head(self) -> dict[str, Any]:
        return {**super().head, "guidance_high": self.guidance_high}


def annealed(index: int, rounds: int, upper: int, lower: int, shape: Shape) -> int:
    """How many steps a round makes."""
    last = max(1, rounds - 1)
    share = {
        "linear": (rounds - 1 - index) / last,
        "cosine": (1 + math.cos(math.pi * index / last)) / 2,
        "two-stage": float(index < rounds // 2),
        "constant": 0.0,
    }[shape]
    return lower + int(share * (upper - lower))


class StepAnnealing(Continuous):
    """DiSA: fewer and fewer steps of the head, on any continuous model."""

    Settings: ClassVar[type] = DiSASettings
    exact: ClassVar[bool] = False
    inference_steps: ClassVar[str] = "upper"

    def steps(self, index: int) -> int:
        s = self._settings
        return annealed(index, len(self._rounds), s.upper, s.lower or s.upper, s.shape)
