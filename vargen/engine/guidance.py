"""Classifier-free guidance (arXiv 2207.12598): conditional and unconditional rows in one batch, mixed in float32."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vargen.core.types import Block

MOST = 1 << 40  # a slot that no image has


@dataclass(frozen=True)
class Guidance:
    """`u + (c - u) * scale`. At scale 1 or below there is no guidance: unconditional rows are never computed.

    `interval` ends guidance early, as LlamaGen's `cfg_interval` does: tokens 0 to interval + 1 are guided (published
    so: token 0 is not counted), those behind are not; -1 guides all. Once every row of a batch is past the end, the
    unconditional rows are dropped.
    """

    scale: float = 1.0
    interval: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 1000:
            raise ValueError(f"got guidance scale {self.scale}, expected a number from 0 to 1000")
        if self.interval < -1:
            raise ValueError(f"got cfg interval {self.interval}, expected -1 (off) or more")

    @property
    def active(self) -> bool:
        return self.scale > 1.0

    def spread(self, block: Block) -> Block:
        """The block for every model row: doubled where guidance shapes the law behind one of its slots."""
        ended = 0 <= self.interval < block.first
        return block.twice() if self.active and not ended else block

    def mix(self, logits: Tensor, block: Block | None = None) -> Tensor:
        """Logits (R, n, V) of all rows, `mirrored`, to guided logits (B, n, V), float32, for `block` or a prefill."""
        if not self.active or (block is not None and len(logits) == len(block.slots)):
            return _full(logits)
        conditional, unconditional = _both(logits)
        mixed = unconditional.lerp(conditional, self.scale)
        if block is None or self.interval < 0:
            return mixed
        last = min(self.interval, MOST)  # any number is allowed, also one that no integer tensor holds
        return torch.where((block.slots <= last)[..., None], mixed, conditional)


class Guidances:
    """Guidance of images that have each their own; as `Guidance`, but unconditional rows are there for all of them."""

    def __init__(self, each: Sequence[Guidance], device: torch.device) -> None:
        self.active = True
        self._ends = [(one.interval if one.interval >= 0 else MOST) if one.active else -1 for one in each]
        self._last = torch.tensor([min(end, MOST) for end in self._ends], device=device)[:, None]  # slot that is guided
        scales = [max(1.0, one.scale) for one in each]
        self._scale = torch.tensor(scales, dtype=torch.float32, device=device)[:, None, None]

    def spread(self, block: Block) -> Block:
        """See `Guidance.spread`."""
        return block if max(self._ends) < block.first else block.twice()

    def mix(self, logits: Tensor, block: Block | None = None) -> Tensor:
        """See `Guidance.mix`."""
        if block is not None and len(logits) == len(block.slots):
            return _full(logits)
        conditional, unconditional = _both(logits)
        mixed = unconditional.lerp(conditional, self._scale)
        if block is None:
            return mixed
        return torch.where((block.slots <= self._last)[..., None], mixed, conditional)


AnyGuidance = Guidance | Guidances


def together(each: Sequence[Guidance], device: torch.device, *, guided: bool) -> AnyGuidance:
    """The guidance of images of one batch; `guided`: there are unconditional rows, whether they are used or not."""
    alike = all(one == each[0] for one in each) and each[0].active == guided
    return each[0] if alike else Guidances(each, device)


@dataclass(frozen=True)
class Ramp:
    """Guidance of next-scale models, which grows from scale to scale: (1 + t) c - t u, t = scale s / (S - 1).

    At scale 0 there is none, and its number starts at 0, not at 1. `interval` is the last scale to be guided, -1 for
    all: behind it the unconditional rows are dropped.
    """

    scale: float
    scales: int
    interval: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 1000:
            raise ValueError(f"got guidance scale {self.scale}, expected a number from 0 (off) to 1000")
        if self.interval < -1:
            raise ValueError(f"got cfg interval {self.interval}, expected -1 (off) or a scale")

    @property
    def active(self) -> bool:
        return self.scale > 0 and self.interval != 0

    def guided(self, scale: int) -> bool:
        """Whether a scale is run with unconditional rows."""
        return self.active and (self.interval < 0 or scale <= self.interval)

    def mix(self, logits: Tensor, scale: int) -> Tensor:
        """Logits (R, n, V) of all rows of a scale to guided logits (B, n, V), float32."""
        if not self.guided(scale):
            return logits.float()
        conditional, unconditional = logits.float().chunk(2)
        t = self.scale * scale / max(1, self.scales - 1)
        return conditional.mul(1 + t).sub_(unconditional, alpha=t)


def _both(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of conditional rows, and of unconditional ones, in the order of the images."""
    unconditional, conditional = _full(logits).chunk(2)
    return conditional, unconditional if len(unconditional) == 1 else unconditional.flip(0)


def _full(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float32 else logits.float()
