"""Which forward settled each token of a batch, and where each token stands on a map of the image."""

from dataclasses import dataclass
from math import isqrt

import numpy as np

from vargen.core.specs import ContinuousSpec, RasterSpec, ScaleSpec
from vargen.pipelines.partial import Partial

Spec = RasterSpec | ScaleSpec | ContinuousSpec


@dataclass(frozen=True)
class Layout:
    """Squares on a map `width` by `height`: `squares` (n, 3) are left, top and side, those of `slots` (n,).

    `grid` is rows and columns where the squares lie as the image does, so that each covers its part of it.
    """

    squares: np.ndarray
    slots: np.ndarray
    width: float
    height: float
    grid: tuple[int, int] | None = None


def layout(spec: Spec) -> Layout:
    """Of a raster or masked model the grid of its image, without its previews; of others their scales (or cells), one
    beside the other.
    """
    if isinstance(spec, RasterSpec):
        grid, shown = spec.grids[-1], spec.columns - (spec.newline is not None)
        slots = np.arange(grid.first, grid.stop).reshape(spec.rows, spec.columns)
        return _grid(spec.rows, shown, slots[:, :shown].ravel())
    sizes = [side**2 for side in spec.sides] if isinstance(spec, ScaleSpec) else list(spec.groups) or [spec.slots]
    sides = [isqrt(size) for size in sizes]
    if len(sides) == 1:
        side = sides[0] + (sides[0] ** 2 < sizes[0])
        return _grid(side, side, np.arange(spec.slots))
    return _blocks([side + (side**2 < size) for side, size in zip(sides, sizes, strict=True)], sizes)


def _grid(rows: int, columns: int, slots: np.ndarray) -> Layout:
    at = np.arange(len(slots))
    squares = np.stack([at % columns, at // columns, np.ones_like(at)], axis=1).astype(float)
    whole = (rows, columns) if len(slots) == rows * columns else None
    return Layout(squares, slots, columns, rows, whole)


def _blocks(sides: list[int], sizes: list[int], *, gap: float = 0.12) -> Layout:
    """Blocks of one size, four in a line; each is divided into `sides` squared."""
    line, squares = min(4, len(sides)), []
    for index, (side, size) in enumerate(zip(sides, sizes, strict=True)):
        at, left, top = np.arange(size), index % line * (1 + gap), index // line * (1 + gap)
        squares.append(np.stack([left + at % side / side, top + at // side / side, np.full(size, 1 / side)], axis=1))
    lines = -(-len(sides) // line)
    return Layout(np.concatenate(squares), np.arange(sum(sizes)), line * (1 + gap) - gap, lines * (1 + gap) - gap)


class Record:
    """Of a batch in the making: `steps` (B, slots) has the number of the forward that settled a token, 0 before.

    `drafts` (B, slots) says which tokens stand behind those as drafts: what the last window holds.
    """

    def __init__(self, spec: Spec, batch: int) -> None:
        self.layout, self.drafting = layout(spec), isinstance(spec, RasterSpec)
        self.steps = np.zeros((batch, spec.slots), dtype=np.int64)
        self.drafts = np.zeros((batch, spec.slots), dtype=bool)
        self.forwards = 0

    def note(self, partial: Partial) -> None:
        """Take down what a forward has settled."""
        self.forwards += 1
        final = settled(partial)
        self.steps[final & (self.steps == 0)] = self.forwards
        if self.drafting:
            self.drafts = _drafts(partial, final)

    @property
    def settled(self) -> int:
        """Tokens that are settled, of all images."""
        return int((self.steps > 0).sum())

    @property
    def total(self) -> int:
        """Tokens of all images."""
        return self.steps.size


def settled(partial: Partial) -> np.ndarray:
    """Which tokens are final, (B, slots) bool."""
    if partial.committed is not None:
        return np.array(partial.committed)
    if partial.tokens.dim() == 3:  # continuous: in an order of its own; all zeros until it is drawn
        return (partial.tokens != 0).any(-1).cpu().numpy()
    return np.arange(partial.tokens.shape[1]) < np.array(partial.settled)[:, None]


def _drafts(partial: Partial, final: np.ndarray) -> np.ndarray:
    """Which tokens are drafts, (B, slots) bool: what was written behind the final ones."""
    written = (partial.tokens != 0).cpu().numpy()
    if partial.committed is None:  # a window is in one piece: id 0 within it is a draft as well
        written = np.logical_or.accumulate(written[:, ::-1], axis=1)[:, ::-1]
    return written & ~final
