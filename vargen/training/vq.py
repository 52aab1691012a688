"""Training of `pocket-vq`: reconstruction, a codebook on the sphere, and restarts of codes that nobody uses.

`multiscale_vq.py` does the same for a pyramid of codes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vargen.scenes.dataset import HELD_OUT, scenes
from vargen.training.data import pick, psnr, to_tensor
from vargen.training.fit import Schedule, fit

WARM_STEPS = 100  # the autoencoder alone, before there are codes
COMMITMENT = 0.02
EDGES = 0.3  # weight of the gradient term, which keeps texture that squared error would smooth away
RESTART_EVERY = 20


class VQTraining(nn.Module):
    """The tokenizer with the state that its training needs beside it."""

    usage: Tensor
    step: Tensor

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.register_buffer("usage", torch.zeros(tokenizer.config.codes))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def loss(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        model = self.tokenizer
        z = model.latents(images).float()  # (B, D, h, w)
        codes, commitment, step = z, z.new_zeros(()), int(self.step)
        if step >= WARM_STEPS:
            with torch.autocast(z.device.type, enabled=False):
                if step == WARM_STEPS:
                    self._start_codebook(z.detach(), generator)
                codes, commitment = self._quantise(z, step, generator)
        decoded = model.decode_latents(codes).float()
        squared = (decoded - images).square().mean()
        self.step += 1
        value = squared + EDGES * edges(decoded - images) + commitment
        figures = {
            "loss": value.item(),
            "psnr": 10 * np.log10(4 / squared.item()),
            "used": (self.usage > 0.05).sum().item(),
        }
        return value, figures

    def _quantise(self, z: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features (B, D, h, w) as their codes, with the gradient passed straight through; the loss of both."""
        quantiser, flat = self.tokenizer.quantize, rearrange(z, "b d h w -> (b h w) d")
        with torch.no_grad():
            ids = quantiser.nearest(flat)
            if self.count(ids, flat, step, generator):
                ids = quantiser.nearest(flat)
        chosen = F.embedding(ids, quantiser.codebook())
        loss = (
            COMMITMENT * (0.25 * F.mse_loss(flat, chosen.detach()) + F.mse_loss(chosen, flat.detach())) * flat.shape[-1]
        )
        chosen = rearrange(chosen, "(b h w) d -> b d h w", b=len(z), h=z.shape[2])
        return z + (chosen - z).detach(), loss

    @torch.no_grad()
    def _start_codebook(self, z: Tensor, generator: torch.Generator) -> None:
        """Spherical k-means from random points."""
        weight, points = self.tokenizer.quantize.embedding.weight, rearrange(z, "b d h w -> (b h w) d")
        centres = points[torch.randperm(len(points), generator=generator)[: len(weight)].to(points.device)]
        for _ in range(10):
            ids = (points @ centres.T).argmax(-1)
            sums = torch.zeros_like(centres).index_add_(0, ids, points)
            centres = torch.where(sums.norm(dim=-1, keepdim=True) > 1e-6, F.normalize(sums, dim=-1), centres)
        weight.copy_(centres)
        self.usage.fill_(1.0)

    @torch.no_grad()
    def count(self, ids: Tensor, points: Tensor, step: int, generator: torch.Generator) -> bool:
        """Note which codes were used; now and then move those that hardly were onto some of `points` (n, D).

        Whether it was such a step.
        """
        self.usage.mul_(0.9).add_(torch.bincount(ids, minlength=len(self.usage)), alpha=0.1)
        if step % RESTART_EVERY or step >= 4 * WARM_STEPS + 400:
            return False
        dead = (self.usage < 0.2).nonzero().flatten()
        if len(dead):
            choice = torch.randint(len(points), (len(dead),), generator=generator).to(points.device)
            self.tokenizer.quantize.embedding.weight[dead] = points[choice]
            self.usage[dead] = 1.0
        return True


def edges(error: Tensor) -> Tensor:
    """Mean absolute gradient of an error (B, C, H, W), across and down."""
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    return across + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()


def train(
    training: VQTraining,
    folder: Path,
    *,
    name: str,
    steps: int,
    batch: int,
    images: int,
    seed: int,
    device: torch.device,
) -> None:
    """Train in place on `images` scenes."""
    data = scenes(folder, images)
    training = training.to(device)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return training.loss(to_tensor(data[pick(len(data), batch, generator)], device), generator)

    schedule = Schedule(steps=steps, rate=1.5e-3, weight_decay=0.0)
    run = {"name": name, "data": f"{images} scenes, batch {batch}", "seed": seed}
    fit(training, loss, schedule, checkpoint=folder / f"{name}.pt", device=device, **run)


@torch.no_grad()
def measure(tokenizer: Any, folder: Path, *, images: int = 1000, device: torch.device) -> dict[str, float]:
    """On held-out scenes: mean PSNR in dB of the images rounded to uint8, and the share of the codebook in use."""
    data = scenes(folder, images, HELD_OUT)
    encode: Callable[[Tensor], Tensor] = tokenizer.encode
    decibels, used = [], torch.zeros(tokenizer.config.codes, dtype=torch.bool)
    for start in range(0, len(data), 50):
        original = data[start : start + 50]
        ids = encode(to_tensor(original, device))
        used[ids.flatten().cpu().unique()] = True
        decibels += psnr(tokenizer.decode(ids), original)
    return {"psnr_db": float(np.mean(decibels)), "codebook_in_use": used.float().mean().item(), "images": len(data)}
