"""Scenes as training data: cut into batches, encoded once."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vargen.core.atomic import write_atomically
from vargen.scenes.dataset import scenes

CLASS_DROPOUT = 0.1  # share of images trained without their class, for guidance


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    batch = torch.from_numpy(np.array(images)).to(device)  # a copy: memory maps are read-only
    return rearrange(batch, "b h w c -> b c h w").float() / 127.5 - 1


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


def described(batch: int, *encoded: Tensor) -> str:
    """What `fit` tells runs by that train on `encoded` scenes: what another tokenizer makes of them are others."""
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in encoded)).hexdigest()[:8]
    return f"{sum(map(len, encoded))} scenes encoded to {digest}, batch {batch}"


def psnr(decoded: Tensor, original: np.ndarray) -> list[float]:
    """In dB, of each of decoded images (B, 3, H, W), rounded to uint8, against uint8 (B, H, W, 3)."""
    levels = (decoded.clamp(-1, 1) * 127.5 + 127.5).round()
    rounded = rearrange(levels, "b c h w -> b h w c").cpu().numpy()
    error = ((rounded - original.astype(np.float32)) ** 2).mean((1, 2, 3))
    return list(10 * np.log10(255**2 / error))
