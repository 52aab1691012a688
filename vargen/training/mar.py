"""Training of `pocket-mar` and its small drafter: denoising the tokens of pocket scenes that are masked.

As published: seven tenths of the tokens or more are masked, each image's own; every masked token is denoised at a few
random times, by the squared error of the noise and, for the variance alone, the divergence from the true step.
"""

import math
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from vargen.core.types import Group
from vargen.models.diffusion import DiffusionHead, cumulative, tables
from vargen.models.mar import MAR
from vargen.scenes.dataset import HELD_OUT, labels
from vargen.tokenizers.kl import KLTokenizer
from vargen.training.data import described, encoded, pick_labelled
from vargen.training.fit import Schedule, fit

TIMES = 2  # at which every masked token is denoised in a step; published: 4
LEAST_MASKED = 0.7


def latents(tokenizer: KLTokenizer, folder: Path, count: int, first_seed: int, device: torch.device) -> Tensor:
    """Tokens (count, S, C), float32, of `data.scenes`, encoded once."""
    found = encoded("latents", tokenizer, folder, count, first_seed, device, np.float16)
    return rearrange(torch.from_numpy(found), "b c h w -> b (h w) c").float()


def initialise(model: MAR, seed: int) -> None:
    """Normal with deviation 0.02, biases zero, norms one; the head's modulations and output start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            continue  # as built: weights one, biases zero
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
        else:
            torch.nn.init.zeros_(parameter)
    for part in (model.head.told, model.head.output):
        torch.nn.init.zeros_(part.weight)
    for linear in (model.head.input_proj, model.head.cond_embed):
        torch.nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)


def train(
    model: MAR,
    tokenizer: KLTokenizer,
    folder: Path,
    *,
    name: str,
    images: int,
    steps: int,
    batch: int,
    seed: int,
    device: torch.device,
) -> None:
    """Train in place on `images` scenes."""
    values, classes = latents(tokenizer, folder, images, 0, device), labels(images)
    initialise(model, seed)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen, condition = pick_labelled(classes, batch, generator, model.config.classes)
        squared, variance = losses(model, condition.to(device), values[chosen].to(device), generator)
        return squared + variance, {"squared": squared.item(), "variance": variance.item()}

    schedule = Schedule(steps=steps, rate=1.5e-3, weight_decay=0.02, warmup=100)
    run = {"name": name, "data": described(batch, values), "seed": seed}
    fit(model, loss, schedule, checkpoint=folder / f"{name}.pt", device=device, **run)


def losses(model: MAR, labels: Tensor, values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Squared error of the noise, and the divergence of the steps' law in nats; means over what is masked."""
    images, slots = values.shape[:2]
    order = torch.rand(images, slots, generator=generator).argsort(-1).to(values.device)
    # The published share: a normal law of mean 1 and deviation 0.25, cut off at 0.7 and 1; by inversion.
    deep, u = math.erf((1 - LEAST_MASKED) / 0.25 / 2**0.5), torch.rand((), generator=generator, dtype=torch.float64)
    share = 1 - 0.25 * 2**0.5 * torch.erfinv(deep * u).item()
    masked = max(1, math.ceil(slots * share))
    group = Group(order[:, :masked], order[:, masked:].sort(-1).values, values)
    z = model.decode(model.class_condition(labels, guided=False), group, None)
    wanted = values[torch.arange(images, device=values.device)[:, None], group.slots]
    z, start = (repeat(part, "b n c -> (times b n) c", times=TIMES) for part in (z, wanted))
    t = torch.randint(1000, (len(start),), generator=generator).to(values.device)
    noise = torch.randn(start.shape, generator=generator).to(values.device)
    return denoising(model.head, z, start, t, noise)


def denoising(head: DiffusionHead, z: Tensor, start: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The same of tokens (M, C) at training steps t (M,), given z (M, d)."""
    left = torch.tensor(cumulative(), dtype=torch.float32, device=t.device)[t][:, None]
    x = left.sqrt() * start + (1 - left).sqrt() * noise
    said, logits = head(x, t, z).split(head.channels, dim=-1)
    steps = tables(1000, 999, t.device)
    (low, high), a = steps.log_variance[:, t, None], steps.to_mean[0][t, None]
    log_variance = (logits + 1) / 2 * (high - low) + low
    off = a * steps.to_start[1][t, None] * (said.detach() - noise)  # of the mean, whose error the variance has to bear
    divergence = 0.5 * (log_variance - low + torch.exp(low - log_variance) - 1 + off.square() * (-log_variance).exp())
    return (said - noise).square().mean(), (divergence * (t[:, None] > 0)).mean()


@torch.no_grad()
def measure(
    model: MAR, tokenizer: KLTokenizer, folder: Path, *, images: int = 1000, device: torch.device
) -> dict[str, float]:
    """On held-out scenes: the squared error of the noise and the divergence of the steps, of random masked tokens."""
    values, classes, total = latents(tokenizer, folder, images, HELD_OUT, device), labels(images), torch.zeros(2)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, images, 50):
        some = slice(start, start + 50)
        total += torch.stack(losses(model, classes[some].to(device), values[some].to(device), generator)).cpu()
    squared, variance = (total / len(range(0, images, 50))).tolist()
    return {"noise_error": squared, "step_divergence": variance, "images": images}
