"""Images of a running batch (`running.py`), and those that are to join it."""

from dataclasses import dataclass, field
from typing import Any

from vargen.core.types import Condition
from vargen.core.warp import Warp
from vargen.engine.guidance import AnyGuidance, Guidance
from vargen.engine.prefixes import Reading
from vargen.samplers.contract import RasterSampler


@dataclass(frozen=True)
class Law:
    """What an image is drawn from. In one batch, `warp` differs in temperature and top-p at most."""

    guidance: Guidance
    warp: Warp


@dataclass(eq=False)
class Row:
    """An image of a running batch. What became of it, it has from when it left."""

    seed: int
    law: Law
    widths: dict[int, int] = field(default_factory=dict)  # of its blocks, and how many forwards had them
    settled: int = 0
    cached: int = 0  # tokens of its condition that were not run, since they had been read before
    tokens: Any = None  # (slots,) int64, final up to `settled` in decoding order

    @property
    def forwards(self) -> int:
        """Of the model, while it was drawn."""
        return sum(self.widths.values())


@dataclass(eq=False)
class Opening:
    """Images that are to join a running batch."""

    condition: Condition  # `mirrored`, if guided
    reading: Reading
    sampler: RasterSampler
    guidance: AnyGuidance
    rows: list[Row]
    widths: dict[int, int] = field(default_factory=dict)  # of the pieces that were read
