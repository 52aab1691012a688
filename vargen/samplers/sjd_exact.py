"""Speculative Jacobi decoding that draws the very image of plain decoding: same seed, same tokens.

With Gumbel noise g fixed per slot, plain decoding's token is a function of the law: argmax(log p + g). A draft is kept
only if it equals that function under its new law, and else is replaced by its value; so the committed tokens are plain
decoding's, one by one, at any window and batch. This is the common-noise form of coupled SJD (arXiv 2510.24211), in
which acceptance needs no second random number.

Bit-exact, up to draws that fall within rounding of a tie: logits of blocks of different shape differ in their last
bits. How often that happens is measured in the README.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vargen.samplers.jacobi import JacobiWindow, WindowSettings


@dataclass(frozen=True)
class ExactSettings(WindowSettings):
    """Settings of `sjd-exact`."""


class ExactJacobi(JacobiWindow):
    """Speculative Jacobi decoding that draws the tokens of plain decoding for the same seed."""

    Settings: ClassVar[type] = ExactSettings
    steady: ClassVar[bool] = True
    uses_law = False

    def _revise(self, logits: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self._plain_draw(logits)
        return tokens == drafts, tokens
