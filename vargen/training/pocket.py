"""How each shipped model is trained and measured; the recipes are those of the committed weights."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vargen.core import checkpoints, weight_files
from vargen.core.preset import Sources
from vargen.models.chameleon import Chameleon
from vargen.models.classifier import Classifier
from vargen.models.llamagen import LlamaGen
from vargen.models.mar import MAR
from vargen.models.pocket import WEIGHTS, WORDS_FILE, build, load
from vargen.models.var import VAR
from vargen.presets.pocket import build as pipeline
from vargen.tokenizers.kl import KLTokenizer
from vargen.tokenizers.multiscale_vq import MultiScaleVQTokenizer
from vargen.tokenizers.vq import VQTokenizer
from vargen.training import classifier, kl, lumina, mar, multiscale_vq, transformer, var, vq

__all__ = ["RECIPES", "WEIGHTS", "measure", "train"]


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch: int
    images: int  # scenes in the training set


RECIPES = {
    "pocket-vq": Recipe(steps=1000, batch=48, images=20_000),
    "pocket-classifier": Recipe(steps=600, batch=64, images=20_000),
    "pocket-multiscale-vq": Recipe(steps=800, batch=48, images=20_000),
    "pocket-llamagen": Recipe(steps=1500, batch=32, images=20_000),
    "pocket-llamagen-small": Recipe(steps=1500, batch=32, images=20_000),
    "pocket-var": Recipe(steps=1500, batch=32, images=20_000),
    "pocket-var-small": Recipe(steps=1500, batch=32, images=20_000),
    "pocket-kl": Recipe(steps=500, batch=48, images=20_000),
    "pocket-mar": Recipe(steps=3000, batch=32, images=20_000),
    "pocket-mar-small": Recipe(steps=3000, batch=32, images=20_000),
    "pocket-judge": Recipe(steps=1200, batch=64, images=20_000),
    "pocket-lumina": Recipe(steps=3400, batch=24, images=21_000),
}


def train(
    name: str, *, work: Path, weights: Path, seed: int, device: torch.device, steps: int | None = None
) -> dict[str, float]:
    """Train one model, write its float16 weights, and return its figures on held-out scenes.

    Those that come later in RECIPES may need those before them in `weights`. Stopped runs resume from `work`.
    """
    for folder in (work, weights):
        folder.mkdir(parents=True, exist_ok=True)
    recipe, model = RECIPES[name], build(name).to(device)
    steps, batch, images = recipe.steps if steps is None else steps, recipe.batch, recipe.images
    if isinstance(model, VQTokenizer | MultiScaleVQTokenizer):
        training = vq.VQTraining(model)
        if isinstance(model, MultiScaleVQTokenizer):
            multiscale_vq.initialise(model, _pocket_vq(weights, device))
            training = multiscale_vq.MultiScaleTraining(model)
        vq.train(training, work, name=name, steps=steps, batch=batch, images=images, seed=seed, device=device)
    elif isinstance(model, KLTokenizer):
        kl.initialise(model, _pocket_vq(weights, device))
        kl.train(model, work, name=name, steps=steps, batch=batch, images=images, seed=seed, device=device)
    elif isinstance(model, Classifier):
        classifier.train(model, work, name=name, steps=steps, batch=batch, images=images, seed=seed, device=device)
    elif isinstance(model, LlamaGen):
        ids = transformer.tokens(_pocket_vq(weights, device), work, images, 0, device)
        transformer.train(model, ids, work, name=name, steps=steps, batch=batch, seed=seed, device=device)
    elif isinstance(model, VAR):
        options = {"name": name, "images": images, "steps": steps, "batch": batch, "seed": seed, "device": device}
        var.train(model, _pyramid(weights, device), work, **options)
    elif isinstance(model, MAR):
        options = {"name": name, "images": images, "steps": steps, "batch": batch, "seed": seed, "device": device}
        mar.train(model, _pocket_kl(weights, device), work, **options)
    elif isinstance(model, Chameleon):
        options = {"name": name, "images": images, "steps": steps, "batch": batch, "seed": seed, "device": device}
        lumina.train(model, _pocket_vq(weights, device), work, weights / WORDS_FILE, **options)
    checkpoints.save(
        weights / f"{name}.safetensors", {key: value.half().cpu() for key, value in model.state_dict().items()}
    )
    return measure(name, work=work, weights=weights, device=device)


def measure(name: str, *, work: Path, weights: Path, device: torch.device) -> dict[str, float]:
    """Figures of the weights as they ship, in float16, on held-out scenes; noted in the weights file as well."""
    model = load(name, weights, device=device)
    if isinstance(model, VQTokenizer | MultiScaleVQTokenizer):
        figures = vq.measure(model, work, device=device)
    elif isinstance(model, KLTokenizer):
        figures = kl.measure(model, work, device=device)
    elif isinstance(model, Classifier):
        figures = classifier.measure(model, work, device=device)
    elif isinstance(model, Chameleon):
        figures = lumina.measure(model, _pocket_vq(weights, device), work, weights / WORDS_FILE, device=device)
    else:
        if isinstance(model, VAR):
            figures = var.measure(model, _pyramid(weights, device), work, device=device)
        elif isinstance(model, MAR):
            figures = mar.measure(model, _pocket_kl(weights, device), work, device=device)
        else:
            assert isinstance(model, LlamaGen)
            figures = transformer.measure(model, _pocket_vq(weights, device), work, device=device)
        figures["class_agreement"] = agreement(name, weights, device=device)
    path = weights / f"{name}.safetensors"
    checkpoints.save(path, weight_files.read(path), {key: f"{value:.4f}" for key, value in figures.items()})
    return figures


def agreement(name: str, weights: Path, *, images: int = 500, device: torch.device) -> float:
    """Share of plain samples, at the model's recipe, in which `pocket-classifier` sees the class asked for."""
    pipe = pipeline(name, Sources(weights), device, torch.float32)
    judge = load("pocket-classifier", weights, device=device)
    labels = [i % len(pipe.class_names) for i in range(images)]
    method = "ar" if pipe.kind == "raster" else None  # the plain one
    drawn = pipe(labels, method=method, seed=0, batch_size=50, output_type="pt").images
    guesses = judge(drawn.to(device) * 2 - 1).argmax(-1).cpu()
    return (guesses == torch.tensor(labels)).float().mean().item()


def _pyramid(weights: Path, device: torch.device) -> MultiScaleVQTokenizer:
    model = load("pocket-multiscale-vq", weights, device=device)
    assert isinstance(model, MultiScaleVQTokenizer)
    return model


def _pocket_kl(weights: Path, device: torch.device) -> KLTokenizer:
    model = load("pocket-kl", weights, device=device)
    assert isinstance(model, KLTokenizer)
    return model


def _pocket_vq(weights: Path, device: torch.device) -> VQTokenizer:
    model = load("pocket-vq", weights, device=device)
    assert isinstance(model, VQTokenizer)
    return model
