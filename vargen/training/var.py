"""Training of `pocket-var` and its small refiner: all scales of pocket scenes, teacher-forced in one pass."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.models.var import VAR, Layer
from vargen.scenes.dataset import HELD_OUT, labels
from vargen.tokenizers.multiscale_vq import MultiScaleVQTokenizer
from vargen.training.data import described, pick_labelled
from vargen.training.fit import Schedule, fit
from vargen.training.transformer import tokens

COARSE = 8  # scales that every other step trains alone: they decide what an image is, and are cheap


def initialise(model: VAR, seed: int) -> None:
    """Normal with deviation 0.02, biases zero; gains of the residuals start at one half, the output head at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "temperature" in name:
            continue
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
        else:
            torch.nn.init.zeros_(parameter)
    depth = len(model.layers)
    with torch.no_grad():
        for layer in model.layers:
            assert isinstance(layer, Layer)
            layer.attention.proj.weight.div_((2 * depth) ** 0.5)
            layer.ffn.fc2.weight.div_((2 * depth) ** 0.5)
            if model.config.shared:
                layer.offset[:, :, :2].fill_(0.5)
            else:
                layer.modulate.bias[: 2 * model.config.width].fill_(0.5)
    torch.nn.init.zeros_(model.head.weight)


def train(
    model: VAR,
    tokenizer: MultiScaleVQTokenizer,
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
    ids, classes = tokens(tokenizer, folder, images, 0, device), labels(images)
    initialise(model, seed)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen, condition = pick_labelled(classes, batch, generator, model.config.classes)
        scales = COARSE if torch.rand((), generator=generator) < 0.5 else len(model.config.sides)
        value = _nats(model, tokenizer, condition.to(device), ids[chosen].to(device), scales)
        return value, {"coarse" if scales == COARSE else "nats": value.item()}

    schedule = Schedule(steps=steps, rate=2e-3, weight_decay=0.05, warmup=100)
    run = {"name": name, "data": described(batch, ids), "seed": seed}
    fit(model, loss, schedule, checkpoint=folder / f"{name}.pt", device=device, **run)


@torch.no_grad()
def measure(
    model: VAR, tokenizer: MultiScaleVQTokenizer, folder: Path, *, images: int = 1000, device: torch.device
) -> dict[str, float]:
    """On held-out scenes: the cross-entropy in nats per token, teacher-forced and without guidance."""
    ids, classes, scales = tokens(tokenizer, folder, images, HELD_OUT, device), labels(images), len(model.config.sides)
    total = 0.0
    for start in range(0, images, 50):
        some = slice(start, start + 50)
        parts = (classes[some].to(device), ids[some].to(device))
        total += _nats(model, tokenizer, *parts, scales).item() * len(parts[0])
    return {"nats_per_token": total / images, "images": images}


def _nats(model: VAR, tokenizer: MultiScaleVQTokenizer, labels: Tensor, ids: Tensor, scales: int) -> Tensor:
    """Cross-entropy of the first `scales` scales."""
    stop = model.spec.start(scales)
    with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
        inputs = tokenizer.pyramid(ids)[1][:, : stop - 1]
    logits = model(model.class_condition(labels, guided=False), inputs)
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, :stop].flatten())
