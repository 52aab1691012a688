"""The layout of an image, one dataclass per kind of model: what its tokens are and where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch is slow to import, and listings and flags need none of it
    from torch import Tensor

Kind = Literal["raster", "next-scale", "continuous"]


@dataclass(frozen=True)
class RasterSpec:
    """The layout of a raster model's image: a grid of tokens in reading order, each an id below `vocabulary`."""

    rows: int
    columns: int
    vocabulary: int
    classes: int  # 0 where the model takes text
    newline: int | None = None  # the id that ends each row, in its last column; it is given, and stands nowhere else

    @property
    def kind(self) -> Kind:
        """Which methods draw it."""
        return "raster"

    @property
    def plan(self) -> str:
        """The same: all models of the kind draw in one way."""
        return self.kind

    @property
    def slots(self) -> int:
        """Tokens in an image."""
        return self.rows * self.columns

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
