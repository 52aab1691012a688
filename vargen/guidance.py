"""Classifier-free guidance (arXiv 2207.12598): conditional and unconditional rows in one batch, mixed in float32."""

from dataclasses import dataclass

from torch import Tensor

from vargen.core import Block


@dataclass(frozen=True)
class Guidance:
    """`u + (c - u) * scale`. At scale 1 there is no unconditional half: its rows are never computed."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 1000:
            raise ValueError(f"got guidance scale {self.scale}, expected a number from 0 to 1000")

    @property
    def active(self) -> bool:
        return self.scale != 1.0

    def spread(self, block: Block) -> Block:
        """The block for every model row: doubled when guidance is active."""
        return block.twice() if self.active else block

    def mix(self, logits: Tensor) -> Tensor:
        """Logits (R, n, V) of all rows to guided logits (B, n, V), float32."""
        if not self.active:
            return logits.float()
        conditional, unconditional = logits.float().chunk(2)
        return unconditional.lerp(conditional, self.scale)
