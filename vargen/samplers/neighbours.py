"""Nearest codes of every code of a codebook: built once, in blocks, and kept on disk under the codebook's hash."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vargen.core.atomic import write_atomically
from vargen.core.machine import cache_folder

BLOCK = 512  # codes whose distances to all others are held at a time


def table(codebook: Tensor, k: int, folder: Path | None = None) -> Tensor:
    """The `k` nearest codes (V, k) of each code of `codebook` (V, D) by distance, nearest first, itself left out.

    `codebook` is as the tokenizer uses it: normalised where it normalises. Equal distances are ordered by id.
    ValueError where k is not between 1 and V - 1.
    """
    count = len(codebook)
    if not 0 < k < count:
        raise ValueError(f"got {k} neighbours, expected 1 to {count - 1} in a codebook of {count}")
    digest = hashlib.sha256(codebook.detach().float().cpu().numpy().tobytes()).hexdigest()[:16]
    path = (folder or cache_folder()) / f"neighbours-{count}x{codebook.shape[1]}-{k}-{digest}.npy"
    found = _stored(path, count, k)
    if found is None:
        found = _nearest(codebook, k)
        write_atomically(path, lambda temporary: np.save(temporary, found))
    return torch.from_numpy(found.astype(np.int64)).to(codebook.device)


def _stored(path: Path, count: int, k: int) -> np.ndarray | None:
    """A table that is whole, or None."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = found.shape == (count, k) and found.dtype == np.int32 and found.min() >= 0 and found.max() < count
    return found if whole else None


def _nearest(codebook: Tensor, k: int) -> np.ndarray:
    codes = codebook.detach().double()
    norms, out = codes.square().sum(1), []
    for start in range(0, len(codes), BLOCK):
        block = codes[start : start + BLOCK]
        far = norms + norms[start : start + BLOCK, None] - 2 * block @ codes.T  # (b, V) squared distances
        rows = torch.arange(len(block), device=codes.device)
        far[rows, start + rows] = torch.inf
        out.append(far.argsort(dim=1, stable=True)[:, :k].int().cpu())
    return torch.cat(out).numpy()
