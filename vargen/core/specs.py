"""The layout of an image, one dataclass per kind of model: what its tokens are and where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch is slow to import, and listings and flags need none of it
    from torch import Tensor

Kind = Literal["raster", "next-scale", "continuous"]


@dataclass(frozen=True)
class Grid:
    """One grid of an image's tokens: its first slot, and its rows and columns."""

    first: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        """The slot behind its last one."""
        return self.first + self.rows * self.columns


@dataclass(frozen=True)
class RasterSpec:
    """The layout of a raster model's image: a grid of tokens in reading order, each an id below `vocabulary`.

    Smaller grids of the same image may come first, each whole before the next one begins: `previews`.
    """

    rows: int
    columns: int
    vocabulary: int
    classes: int  # 0 where the model takes text
    newline: int | None = None  # the id that ends each row, in its last column; it is given, and stands nowhere else
    previews: tuple[tuple[int, int], ...] = ()  # rows and columns of each

    def __post_init__(self) -> None:
        if self.previews and self.newline is not None:
            raise ValueError("got previews of an image whose rows end in newlines: there is no such layout")

    @property
    def kind(self) -> Kind:
        """Which methods draw it."""
        return "raster"

    @property
    def plan(self) -> str:
        """The same: all models of the kind draw in one way."""
        return self.kind

    @property
    def grids(self) -> tuple[Grid, ...]:
        """All grids in the order drawn; the last one is the image's own."""
        out, first = [], 0
        for rows, columns in (*self.previews, (self.rows, self.columns)):
            out.append(Grid(first, rows, columns))
            first = out[-1].stop
        return tuple(out)

    @property
    def slots(self) -> int:
        """Tokens in an image, those of previews included."""
        return sum(rows * columns for rows, columns in self.previews) + self.rows * self.columns

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Tokens (B, slots) as a grid (B, rows, columns) each, in the order drawn."""
        return tuple(tokens[:, grid.first : grid.stop].unflatten(1, (grid.rows, grid.columns)) for grid in self.grids)

    def around(self, slots: Tensor) -> tuple[Tensor | int, Tensor | int]:
        """Of the grid in which each of `slots` stands, the first slot and the columns."""
        first, columns = 0, self.grids[0].columns
        for grid in self.grids[1:]:
            behind = slots >= grid.first
            first, columns = behind * grid.first + ~behind * first, behind * grid.columns + ~behind * columns
        return first, columns

    def previewed(self, slots: Tensor) -> Tensor:
        """The slot of the last preview that shows the same place as each of `slots`; -1 in previews themselves."""
        *_, preview, grid = self.grids
        at = (slots - grid.first).clamp(min=0, max=grid.rows * grid.columns - 1)
        row, column = (
            at // grid.columns * preview.rows // grid.rows,
            at % grid.columns * preview.columns // grid.columns,
        )
        shown = preview.first + row * preview.columns + column
        return shown.masked_fill(slots < grid.first, -1)

    def ends(self, slots: Tensor) -> Tensor:
        """Which of `slots` hold a newline."""
        return slots % self.columns == (-1 if self.newline is None else self.columns - 1)

    def given(self, logits: Tensor, slots: Tensor, *, ahead: int = 0) -> Tensor:
        """Logits (B, n, V) of the laws so many slots `ahead` of `slots` (B, n): newlines are certain at the ends of
        rows, and nowhere else.
        """
        if self.newline is None:
            return logits
        ruled_out = self.ends(slots + ahead)[..., None].repeat(1, 1, logits.shape[-1])
        ruled_out[..., self.newline].logical_not_()
        return logits.masked_fill(ruled_out, float("-inf"))


@dataclass(frozen=True)
class ScaleSpec:
    """The layout of a next-scale model's image: square grids of tokens, one behind the other, coarsest first."""

    sides: tuple[int, ...]
    vocabulary: int
    classes: int

    def __post_init__(self) -> None:
        if not self.sides or self.sides[0] < 1 or list(self.sides) != sorted(set(self.sides)):
            raise ValueError(f"got sides {self.sides}, expected each scale larger than the one before")

    @property
    def kind(self) -> Kind:
        """Which methods draw it."""
        return "next-scale"

    @property
    def plan(self) -> str:
        """The same: all models of the kind draw in one way."""
        return self.kind

    @property
    def slots(self) -> int:
        """Tokens in an image, those of all scales."""
        return self.start(len(self.sides))

    def start(self, scale: int) -> int:
        """The first slot of a scale; of one past the last, all slots."""
        return sum(side**2 for side in self.sides[:scale])


@dataclass(frozen=True)
class ContinuousSpec:
    """The layout of a continuous model's image: slots of `channels` numbers each, drawn in groups.

    `plan` is how: `masked`, any slots in any order, so many at a time; or in order, `scales` of a pyramid or `cells` of
    the image, whose sizes are `groups`.
    """

    slots: int
    channels: int
    classes: int  # 0 where the model takes text
    plan: Literal["masked", "scales", "cells"] = "masked"
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.plan == "masked") != (not self.groups) or (self.groups and sum(self.groups) != self.slots):
            raise ValueError(f"got groups {self.groups} of {self.slots} slots, which do not fit plan {self.plan}")

    @property
    def kind(self) -> Kind:
        """Which methods draw it."""
        return "continuous"
