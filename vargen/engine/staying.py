"""Images of a batch that began together, some of which may leave at the next scale or group."""

from collections.abc import Sequence

from vargen.core.types import Condition


class Staying:
    """Which images of a batch are still here."""

    def __init__(self, images: int) -> None:
        self.images = images  # that began
        self.rows = list(range(images))  # of these, those that are here, in order
        self._wanted = self.rows

    def keep(self, rows: Sequence[int]) -> None:
        """From the next step on, go on with `rows` alone, numbers in the batch as it began. ValueError where one is not
        here.
        """
        if not rows or any(row not in self.rows for row in rows):
            raise ValueError(f"got rows {list(rows)} to go on with, expected some of {self.rows}")
        self._wanted = [row for row in self.rows if row in rows]

    def left(self) -> list[int] | None:
        """Where some have left: the places, among those that were here, of those that stay. Once."""
        if len(self._wanted) == len(self.rows):
            return None
        places = [self.rows.index(row) for row in self._wanted]
        self.rows = self._wanted
        return places


def picked(condition: Condition, images: Sequence[int], whole: int) -> Condition:
    """The rows of some of so many images: the conditional ones, then the unconditional ones, where there are such."""
    if len(images) == whole:
        return condition
    return Condition(condition.embedding[both(images, whole, len(condition.embedding))])


def both(images: Sequence[int], whole: int, rows: int) -> list[int]:
    """The rows of some images in a batch of so many, of which there are `rows` in all."""
    return [first + image for first in range(0, rows, whole) for image in images]
