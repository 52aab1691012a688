"""Scenes as training data: drawn once, kept as uint8, cut into batches."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vargen.files import write_atomically
from vargen.scenes import CLASSES, draw_many

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


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    batch = torch.from_numpy(np.array(images)).to(device)  # a copy: memory maps are read-only
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def pick(count: int, size: int, generator: torch.Generator) -> np.ndarray:
    """`size` random indices below `count`, sorted: a memory map reads forward."""
    return torch.randint(count, (size,), generator=generator).sort().values.numpy()
