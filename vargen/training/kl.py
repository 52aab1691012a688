"""Training of `pocket-kl`: reconstruction through noisy latents, whose noise and size a KL term holds in balance."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vargen.scenes.dataset import HELD_OUT, scenes
from vargen.tokenizers.kl import KLTokenizer
from vargen.tokenizers.vq import VQTokenizer
from vargen.training.data import pick, psnr, to_tensor
from vargen.training.fit import Schedule, fit
from vargen.training.vq import EDGES, edges

WEIGHT = 2e-3  # of the divergence from the standard normal, nats a latent; the decoder learns to bear the noise


def initialise(tokenizer: KLTokenizer, source: VQTokenizer) -> None:
    """Take the convolutions of `source` that have the same shapes."""
    ours = tokenizer.state_dict()
    theirs = {f"model.{key}": value for key, value in source.state_dict().items()}
    same = {key: value for key, value in theirs.items() if key in ours and ours[key].shape == value.shape}
    tokenizer.load_state_dict(ours | {key: value for key, value in same.items() if "quant_conv" not in key})


def train(
    tokenizer: KLTokenizer,
    folder: Path,
    *,
    name: str,
    steps: int,
    batch: int,
    images: int,
    seed: int,
    device: torch.device,
) -> None:
    """Train in place on `images` scenes; at last the latents are brought to unit size."""
    data = scenes(folder, images)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        wanted = to_tensor(data[pick(len(data), batch, generator)], device)
        mean, log_variance = (part.float() for part in tokenizer.moments(wanted))
        noise = torch.randn(mean.shape, generator=generator).to(device)
        decoded = tokenizer.decode_latents((mean + torch.exp(0.5 * log_variance) * noise) * tokenizer.config.scale)
        error = decoded.float() - wanted
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        value = error.square().mean() + EDGES * edges(error) + WEIGHT * divergence
        figures = {"psnr": 10 * np.log10(4 / error.square().mean().item()), "nats": divergence.item()}
        return value, figures

    schedule = Schedule(steps=steps, rate=1e-3, weight_decay=0.0)
    run = {"name": name, "data": f"{images} scenes, batch {batch}", "seed": seed}
    fit(tokenizer, loss, schedule, checkpoint=folder / f"{name}.pt", device=device, **run)
    normalise(tokenizer, to_tensor(data[:500], device))


@torch.no_grad()
def normalise(tokenizer: KLTokenizer, images: Tensor) -> None:
    """Give each channel of the latents of `images` mean zero and deviation one, without changing what is decoded."""
    model, scale = tokenizer.model, tokenizer.config.scale
    mean = tokenizer.moments(images)[0]
    centre, deviation = mean.mean((0, 2, 3)), mean.std((0, 2, 3)) * scale
    into, out = model.quant_conv, model.post_quant_conv
    assert isinstance(into, nn.Conv2d)
    assert isinstance(out, nn.Conv2d)
    assert into.bias is not None
    assert out.bias is not None
    channels = len(centre)
    out.bias += out.weight[:, :, 0, 0] @ centre
    out.weight *= deviation[None, :, None, None]
    into.bias[:channels] -= centre
    into.bias[:channels] /= deviation
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[channels:] -= 2 * deviation.log()


@torch.no_grad()
def measure(tokenizer: KLTokenizer, folder: Path, *, images: int = 1000, device: torch.device) -> dict[str, float]:
    """On held-out scenes: mean PSNR in dB of the images rounded to uint8, and the size of the latents."""
    data, decibels, squares = scenes(folder, images, HELD_OUT), [], []
    for start in range(0, len(data), 50):
        original = data[start : start + 50]
        latents = tokenizer.encode(to_tensor(original, device))
        decibels += psnr(tokenizer.decode_latents(latents), original)
        squares.append(latents.square().mean().item())
    return {
        "psnr_db": float(np.mean(decibels)),
        "latent_deviation": float(np.mean(squares)) ** 0.5,
        "images": len(data),
    }
