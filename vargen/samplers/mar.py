"""Masked decoding of continuous tokens (MAR, arXiv 2406.11838): groups in random order, each token by a diffusion head.

The order is the image's own, by its seed. The published recipe takes 256 iterations, one token in each, and 100 steps;
the demonstration 64 iterations.
"""

from dataclasses import dataclass
from typing import ClassVar

from vargen.samplers.latent import Continuous, Iterations, check_steps


@dataclass(frozen=True)
class MARSettings(Iterations):
    """Settings of `mar`."""

    steps: int = 100  # of the head, for each token

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)


class MaskedAutoregressive(Continuous):
    """Masked decoding: random groups of tokens, the same number of diffusion steps for each."""

    Settings: ClassVar[type] = MARSettings
    plan: ClassVar[str | None] = "masked"
