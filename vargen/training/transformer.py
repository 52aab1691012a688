"""Training of `pocket-llamagen` and its small drafter: next-token prediction over the tokens of pocket scenes."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.models.llamagen import LlamaGen
from vargen.scenes.dataset import HELD_OUT, labels
from vargen.tokenizers.multiscale_vq import MultiScaleVQTokenizer
from vargen.tokenizers.vq import VQTokenizer
from vargen.training.data import described, encoded, pick_labelled
from vargen.training.fit import Schedule, fit


def tokens(
    tokenizer: VQTokenizer | MultiScaleVQTokenizer, folder: Path, count: int, first_seed: int, device: torch.device
) -> Tensor:
    """Ids (count, N) of `data.scenes`, encoded once."""
    ids = encoded("tokens", tokenizer, folder, count, first_seed, device, np.int16)
    return torch.from_numpy(ids.astype(np.int64)).flatten(1)


def initialise(model: LlamaGen, seed: int) -> None:
    """Normal with deviation 0.02; the output head starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    torch.nn.init.zeros_(model.output.weight)


def train(
    model: LlamaGen,
    ids: Tensor,
    folder: Path,
    *,
    name: str,
    steps: int,
    batch: int,
    seed: int,
    device: torch.device,
) -> None:
    """Train in place on tokens `ids` (images, N) of `data.scenes`."""
    classes = labels(len(ids))
    initialise(model, seed)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen, condition = pick_labelled(classes, batch, generator, model.config.classes)
        value = _nats(model, condition.to(device), ids[chosen].to(device))
        return value, {"nats": value.item()}

    schedule = Schedule(steps=steps, rate=2e-3, weight_decay=0.05, warmup=100)
    run = {"name": name, "data": described(batch, ids), "seed": seed}
    fit(model, loss, schedule, checkpoint=folder / f"{name}.pt", device=device, **run)


@torch.no_grad()
def measure(
    model: LlamaGen, tokenizer: VQTokenizer, folder: Path, *, images: int = 1000, device: torch.device
) -> dict[str, float]:
    """On held-out scenes: the cross-entropy in nats per token, teacher-forced and without guidance."""
    ids, classes = tokens(tokenizer, folder, images, HELD_OUT, device), labels(images)
    batches = range(0, images, 50)
    nats = [_nats(model, classes[i : i + 50].to(device), ids[i : i + 50].to(device)).item() for i in batches]
    return {"nats_per_token": float(np.mean(nats)), "images": images}


def _nats(model: LlamaGen, labels: Tensor, ids: Tensor) -> Tensor:
    logits = model(model.class_condition(labels, guided=False), ids)
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten())
