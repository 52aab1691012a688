"""What a weights file says of the numbers of its model, by its own shapes, and a model's shapes with these numbers."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from vargen.core.layout import Layout
from vargen.core.weight_files import find, tensors

C = TypeVar("C")
DEEPEST = 512  # layers that are looked for
WORDS = {"vocabulary": "codebook size", "codes": "codebook size", "layers": "depth", "code_dim": "codebook width"}


class Held:
    """Shapes of what a weights file has, asked for by our own keys; nothing where there is no file."""

    def __init__(self, path: Path | None, layout: Layout, *wanted: str) -> None:
        """`wanted` are some of our keys, by which the table of weights is found."""
        self.path, self._layout = path, layout
        names = [layout.published(key) for key in wanted]
        self._place = None if path is None else find(path, layout.under, names)
        self._shapes: Mapping[str, tuple[int, ...]] = {} if self._place is None else self._place.shapes

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return self._layout.published(key) in self._shapes

    def side(self, key: str, axis: int, less: int = 0) -> int | None:
        """Length of an axis, `less` so many; None where the file has no such key, or nothing is left."""
        shape = self._shapes.get(self._layout.published(key), ())
        return shape[axis] - less if len(shape) > axis and shape[axis] > less else None

    def count(self, key: str) -> int | None:
        """How many there are of a key with `{}` for their number: one more than the last; None where there is none."""
        there = [number for number in range(min(DEEPEST, len(self._shapes))) if self.has(key.format(number))]
        return there[-1] + 1 if there else None

    def raw(self, key: str) -> Any:
        """The tensor under the file's own `key`; None where there is none."""
        return None if self._place is None or key not in self._shapes else tensors(self._place)[key]


def fitted(config: C, held: Held, found: Mapping[str, Any], given: Mapping[str, Any], name: str) -> C:
    """A dataclass of shapes with the numbers that a file has, or that were given where it says nothing.

    ValueError where file and caller disagree. A warning tells of fewer layers of the published width, which nobody
    said: it may be a file that is cut off.
    """
    values: dict[str, Any] = {}
    for key in {**found, **given}:
        usual, said, asked = getattr(config, key), found.get(key), given.get(key)
        word, place = WORDS.get(key, key.replace("_", " ")), held.path
        if said is not None and asked is not None and said != asked:
            raise ValueError(f"got {word} {asked} for {name}, and the weights file {place} has {said}")
        if place is None and asked not in (None, usual):
            raise ValueError(f"got {word} {asked}, and {name} was published with {usual}: name a checkpoint")
        values[key] = next((value for value in (said, asked) if value is not None), usual)
    made: Any = replace(config, **values)  # pyright: ignore[reportArgumentType]  # it is a dataclass
    before: Any = config
    if given.get("layers", 0) is None and made.layers < before.layers and made.width == before.width:
        told = f"{held.path} has depth {made.layers}, and {name} was published with {before.layers}"
        warnings.warn(f"vargen: {told}: depth={made.layers} says that it is meant", stacklevel=3)
    return made
