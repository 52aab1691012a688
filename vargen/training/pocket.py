"""How each shipped model is trained; the recipes are those of the committed weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vargen import checkpoints
from vargen.models.pocket import WEIGHTS, build, load
from vargen.training import classifier, transformer, vq

__all__ = ["RECIPES", "WEIGHTS", "train"]


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch: int
    images: int  # scenes in the training set


RECIPES = {
    "pocket-vq": Recipe(steps=1000, batch=48, images=20_000),
    "pocket-classifier": Recipe(steps=600, batch=64, images=20_000),
    "pocket-llamagen": Recipe(steps=2000, batch=32, images=20_000),
    "pocket-llamagen-small": Recipe(steps=1500, batch=32, images=20_000),
}


def train(
    name: str, *, work: Path, weights: Path, seed: int, device: torch.device, steps: int | None = None
) -> dict[str, float]:
    """Train one model, write its float16 weights, and return its figures on held-out scenes.

    The transformers need `pocket-vq`'s weights in `weights`. Stopped runs resume from `work`.
    """
    recipe = RECIPES[name]
    model: Any = build(name).to(device)
    work.mkdir(parents=True, exist_ok=True)
    weights.mkdir(parents=True, exist_ok=True)
    arguments = {
        "steps": steps or recipe.steps,
        "batch": recipe.batch,
        "images": recipe.images,
        "seed": seed,
        "device": device,
    }
    tokenizer: Any = load("pocket-vq", weights).to(device) if name.startswith("pocket-llamagen") else None
    if name == "pocket-vq":
        vq.train(model, work, **arguments)
    elif name == "pocket-classifier":
        classifier.train(model, work, **arguments)
    else:
        transformer.train(model, tokenizer, work, name=name, **arguments)
    path, tensors = weights / f"{name}.safetensors", {k: v.half().cpu() for k, v in model.state_dict().items()}
    checkpoints.save(path, tensors)
    figures: dict[str, float] = _measure(
        name, load(name, weights).to(device), tokenizer, work, weights, device
    )  # as it ships, in float16
    checkpoints.save(path, tensors, {key: f"{value:.4f}" for key, value in figures.items()})
    return figures


def agreement(name: str, *, weights: Path = WEIGHTS, images: int = 500, device: torch.device) -> float:
    """Share of `images` plain AR samples, at the model's own guidance, that `pocket-classifier` gives the asked class."""
    from vargen.pipeline import pocket_pipeline

    pipe, judge = pocket_pipeline(name, weights), load("pocket-classifier", weights).to(device)
    pipe.to(device)
    labels = [i % len(pipe.class_names) for i in range(images)]
    drawn = pipe(labels, method="ar", seed=0, batch_size=50, output_type="pt").images
    guesses = judge(drawn.to(device) * 2 - 1).argmax(-1).cpu()
    return (guesses == torch.tensor(labels)).float().mean().item()


def _measure(
    name: str, model: Any, tokenizer: Any, work: Path, weights: Path, device: torch.device
) -> dict[str, float]:
    if name == "pocket-vq":
        return vq.measure(model, work, device=device)
    if name == "pocket-classifier":
        return classifier.measure(model, work, device=device)
    nats = transformer.measure(model, tokenizer, work, device=device)
    return nats | {"class_agreement": agreement(name, weights=weights, device=device)}
