"""Training of `pocket-classifier` and of `pocket-judge`, which tells a scene's class and the colour in its caption.

They see scenes under blur, noise and shifts of level: they must judge decoded images.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.models.classifier import Classifier
from vargen.scenes import CLASSES
from vargen.scenes.dataset import HELD_OUT, colours, labels, scenes
from vargen.training.data import pick, to_tensor
from vargen.training.fit import Schedule, fit


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images; blur, brighten and roughen each by its own random amount. (B, 3, H, W) in and out."""

    def amount(high: float) -> Tensor:
        return (torch.rand(len(images), 1, 1, 1, generator=generator) * high).to(images.device)

    images = torch.where(amount(1.0) < 0.5, images.flip(-1), images)
    images = images.lerp(F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False), amount(1.0))
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + amount(0.15) - 0.075 + amount(0.12) * noise).clamp(-1, 1)


def targets(model: Classifier, folder: Path, count: int, first_seed: int = 0) -> Tensor:
    """What the model is to say of each of `data.scenes`, (count,)."""
    return labels(count) if model.config.classes == len(CLASSES) else colours(folder, count, first_seed)


def train(
    model: Classifier, folder: Path, *, name: str, steps: int, batch: int, images: int, seed: int, device: torch.device
) -> None:
    """Train in place on `images` scenes."""
    data, classes = scenes(folder, images), targets(model, folder, images)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = pick(len(data), batch, generator)
        logits = model(disturb(to_tensor(data[chosen], device), generator)).float()
        target = classes[torch.from_numpy(chosen)].to(device)
        value = F.cross_entropy(logits, target, label_smoothing=0.02)
        return value, {"loss": value.item(), "right": (logits.argmax(-1) == target).float().mean().item()}

    schedule = Schedule(steps=steps, rate=2e-3)
    path = folder / f"{name}.pt"
    run = {"name": name, "data": f"{images} scenes, batch {batch}", "seed": seed}
    fit(model, loss, schedule, checkpoint=path, device=device, **run)


@torch.no_grad()
def measure(model: Classifier, folder: Path, *, images: int = 1000, device: torch.device) -> dict[str, float]:
    """Share of held-out scenes that are recognised."""
    data, classes = scenes(folder, images, HELD_OUT), targets(model, folder, images, HELD_OUT)
    guesses = [model(to_tensor(data[i : i + 100], device)).argmax(-1).cpu() for i in range(0, len(data), 100)]
    return {"accuracy": (torch.cat(guesses) == classes).float().mean().item(), "images": len(data)}
