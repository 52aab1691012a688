"""Scenes as training data: drawn once, kept as uint8, cut into batches."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vargen.files import write_atomically
from vargen.scenes import CLASSES, COLOURS, draw, draw_many

CLASS_DROPOUT = 0.1  # share of images trained without their class, for guidance
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


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    batch = torch.from_numpy(np.array(images)).to(device)  # a copy: memory maps are read-only
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def pick(count: int, size: int, generator: torch.Generator) -> np.ndarray:
    """`size` random indices below `count`, sorted: a memory map reads forward."""
    return torch.randint(count, (size,), generator=generator).sort().values.numpy()


def pick_labelled(classes: Tensor, size: int, generator: torch.Generator, none: int) -> tuple[Tensor, Tensor]:
    """Random indices (size,), sorted, and their classes, a share of which is `none`, the unconditional one."""
    chosen = torch.from_numpy(pick(len(classes), size, generator))
    dropped = torch.rand(size, generator=generator) < CLASS_DROPOUT
    return chosen, classes[chosen].masked_fill(dropped, none)


@torch.no_grad()
def encoded(
    what: str, tokenizer: Any, folder: Path, count: int, first_seed: int, device: torch.device, kind: type[np.generic]
) -> np.ndarray:
    """What `tokenizer` makes of each of `scenes`, (count, ...), stored as `kind`.

    Encoded once and kept beside the scenes, under the name of `what` it is and a digest of the tokenizer.
    """
    weights = b"".join(value.cpu().numpy().tobytes() for value in tokenizer.state_dict().values())
    path = folder / f"{what}-{first_seed}-{count}-{hashlib.sha256(weights).hexdigest()[:8]}.npy"
    if not path.exists():
        data = scenes(folder, count, first_seed)
        parts = [tokenizer.encode(to_tensor(data[i : i + 100], device)).cpu() for i in range(0, count, 100)]
        found = torch.cat(parts).numpy().astype(kind)
        write_atomically(path, lambda temporary: np.save(temporary, found))
    return np.load(path)


def psnr(decoded: Tensor, original: np.ndarray) -> list[float]:
    """In dB, of each of decoded images (B, 3, H, W), rounded to uint8, against uint8 (B, H, W, 3)."""
    rounded = (decoded.clamp(-1, 1) * 127.5 + 127.5).round().permute(0, 2, 3, 1).cpu().numpy()
    error = ((rounded - original.astype(np.float32)) ** 2).mean((1, 2, 3))
    return list(10 * np.log10(255**2 / error))
