"""Who sits where in a cache whose images come and go.

The conditional row of image i is cache row C + i of a cache for C images, its unconditional one row C - 1 - i: so the
rows in use always lie side by side (`core/types.mirrored`), an image that comes is a row more at either end, and where
one goes the last one takes its seat. Without unconditional rows, image i has row i.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.types import Condition, KVCache

NOTES = {"padding": 0, "shift": 0, "places": 1}  # what a cache knows of conditions, and in which dimension rows are


class Seats:
    """The images in a cache, in order: their keys and values, and what is noted of their conditions."""

    def __init__(self, cache: KVCache, capacity: int, taken: int, front: int, *, guided: bool) -> None:
        """A cache for `capacity` images, of whom so many are there, behind conditions of `front` tokens."""
        self.cache, self.capacity, self.front, self.guided = cache, capacity, front, guided
        self._seat(taken)

    @classmethod
    def of(cls, model: Any, condition: Condition, capacity: int, extra: int, *, guided: bool) -> "Seats":
        """An empty cache for `capacity` images, with seats for those of a condition (`mirrored`, if guided)."""
        copies = 2 if guided else 1
        rows, front, _ = condition.embedding.shape
        return cls(model.make_cache(copies * capacity, extra, front), capacity, rows // copies, front, guided=guided)

    def small(self, taken: int) -> "Seats":
        """Seats for so many images that are to join these, of whom nothing is kept but their conditions."""
        cache = self.cache.like(taken * (2 if self.guided else 1), self.front)
        return Seats(cache, taken, taken, self.front, guided=self.guided)

    def empty(self, rows: int, front: int) -> KVCache:
        """A cache for so many conditions of `front` tokens, and no more."""
        cache = self.cache.like(rows, front)
        cache.front = front
        return cache

    def fitting(self, condition: Condition) -> Condition:
        """A condition as long as those here: it is padded in front, or they are."""
        more = condition.embedding.shape[1] - self.front
        if more > 0:
            self._lengthen(more)
        return condition.lengthened(max(0, -more))

    def _seat(self, taken: int) -> None:
        self.taken = taken
        self.cache.end = taken + (self.capacity if self.guided else 0)

    def clear(self, taken: int) -> None:
        """All images have left; so many others are to come, whose keys are yet to be written."""
        for name in NOTES:
            setattr(self.cache, name, None)
        self._seat(taken)

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.taken * (2 if self.guided else 1)

    def _rows(self, images: Sequence[int]) -> list[int]:
        if not self.guided:
            return list(images)
        return [self.capacity + i for i in images] + [self.capacity - 1 - i for i in images]

    def keep(self, images: Sequence[int], stop: int) -> None:
        """Go on with `images` alone, in this order, of which at most the first `stop` keys were written.

        Each stays where it is, or takes the seat of one that goes: see `closed`.
        """
        moved = [(i, to) for to, i in enumerate(images) if to != i]
        if moved:
            source, target = zip(*moved, strict=True)
            assert min(source) >= len(images), "an image would take a seat that another one keeps"
            self.cache.take(self.cache, self._rows(source), self._rows(target), stop)
        index = torch.tensor(images, dtype=torch.int64, device=self.cache.keys.device)
        for name, value, dim in self._notes():
            setattr(self.cache, name, kept(value, index, self.taken, guided=self.guided, dim=dim))
        self._seat(len(images))

    def join(self, other: "Seats") -> None:
        """Take the images of another cache as well, of whom there are but their conditions: see `small`."""
        if self.taken + other.taken > self.capacity:
            raise ValueError(f"got {other.taken} images for {self.capacity - self.taken} seats")
        new = range(self.taken, self.taken + other.taken)
        self.cache.take(other.cache, other._rows(range(other.taken)), self._rows(new), self.front)
        for one, another in ((self, other), (other, self)):
            one._note_as(another.cache)
        for name, value, dim in self._notes():
            setattr(self.cache, name, joined(value, getattr(other.cache, name), guided=self.guided, dim=dim))
        self._seat(self.taken + other.taken)

    def _lengthen(self, more: int) -> None:
        """Make room for conditions that are so much longer: those that are here are padded in front."""
        old, rows = self.cache, self._rows(range(self.taken))
        new = old.like(old.keys.shape[1], old.keys.shape[2] + more)
        new.take(old, rows, rows, old.keys.shape[2], behind=more)
        new.front, self.front = old.front + more, self.front + more
        count, device = len(rows), new.keys.device
        padding = torch.zeros(count, old.front, dtype=torch.bool, device=device) if old.padding is None else old.padding
        shift = torch.zeros(count, 1, dtype=torch.int64, device=device) if old.shift is None else old.shift
        new.padding, new.shift = F.pad(padding, (more, 0), value=True), shift + more
        new.places = None if old.places is None else F.pad(old.places, (more, 0))
        self.cache = new
        self._seat(self.taken)

    def _notes(self) -> list[tuple[str, Tensor, int]]:
        return [
            (name, getattr(self.cache, name), dim)
            for name, dim in NOTES.items()
            if getattr(self.cache, name) is not None
        ]

    def _note_as(self, other: KVCache) -> None:
        """Note what another cache has noted, as it is where nothing was said."""
        cache, count = self.cache, self.rows
        if cache.padding is None and other.padding is not None:
            cache.padding = other.padding.new_zeros(count, other.padding.shape[1])
        if cache.shift is None and other.shift is not None:
            cache.shift = other.shift.new_zeros(count, 1)
        if cache.places is None and other.places is not None:
            each = torch.arange(other.places.shape[-1], device=other.places.device).expand(3, count, -1)
            cache.places = each if cache.shift is None else (each - cache.shift).clamp(min=0)


def closed(taken: int, left: Sequence[int]) -> list[int]:
    """The images that stay of so many, where those that have `left` go: the last ones take their seats."""
    stay = [i for i in range(taken) if i not in set(left)]
    kept = [i if i in set(stay) else -1 for i in range(len(stay))]
    last = iter([i for i in stay if i >= len(stay)])
    return [next(last) if i < 0 else i for i in kept]


def kept(value: Tensor, images: Tensor, taken: int, *, guided: bool, dim: int = 0) -> Tensor:
    """Of what there is for each row in use of so many images, what there is for `images` (k,), in their order."""
    index = torch.cat([taken - 1 - images.flip(0), taken + images]) if guided else images
    return value.index_select(dim, index)


def joined(value: Tensor, other: Tensor, *, guided: bool, dim: int = 0) -> Tensor:
    """What there is for the rows of images, with that of others behind them."""
    if not guided:
        return torch.cat([value, other], dim)
    (one, two), (more, others) = value.chunk(2, dim), other.chunk(2, dim)
    return torch.cat([more, one, two, others], dim)
