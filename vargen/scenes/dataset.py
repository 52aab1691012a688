"""Scenes in numbers: drawn once, kept in a file as uint8; those that nobody trains on."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vargen.core.atomic import write_atomically
from vargen.scenes.landscapes import CLASSES, COLOURS, draw, draw_many

HELD_OUT = 1 << 30  # seeds from here on are never trained on


def scenes(folder: Path, count: int, first_seed: int = 0) -> np.ndarray:
    """`count` scenes (count, 64, 64, 3) uint8, memory-mapped; scene i has label i mod 10 and seed `first_seed` + i."""
    path = folder / f"scenes-{first_seed}-{count}.npy"
    seeds = np.arange(first_seed, first_seed + count)
    classes = seeds - first_seed
    few = min(count, len(CLASSES))
    probe = draw_many(classes[:few] % len(CLASSES), seeds[:few])
    if not path.exists() or not np.array_equal(np.load(path, mmap_mode="r")[:few], probe):  # none, or of other code
        images = draw_many(classes % len(CLASSES), seeds)
        write_atomically(path, lambda temporary: np.save(temporary, images))
    return np.load(path, mmap_mode="r")


def labels(count: int) -> Tensor:
    """The labels of `scenes`, (count,) int64."""
    return torch.arange(count) % len(CLASSES)


def colours(folder: Path, count: int, first_seed: int = 0) -> Tensor:
    """Which of `scenes.COLOURS`, a class and the colour that its caption names, each of `scenes` is, (count,) int64."""
    path = folder / f"colours-{first_seed}-{count}.npy"
    if not path.exists():
        found = [draw(i % len(CLASSES), first_seed + i).attributes for i in range(count)]
        index = [COLOURS.index((each["scene"], each["colour"])) for each in found]
        write_atomically(path, lambda temporary: np.save(temporary, np.array(index)))
    return torch.from_numpy(np.load(path))


def captions(count: int) -> list[str]:
    """Captions of held-out scenes, classes in turn."""
    return [draw(i % len(CLASSES), HELD_OUT + i).caption for i in range(count)]
