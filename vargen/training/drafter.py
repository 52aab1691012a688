"""Training of an EAGLE head by distillation: it learns the laws of the model that it will draft for.

The model draws its own training images, so that nothing but its weights is needed. The head is trained under the
guidance that it will be used under, since guidance magnifies its errors, and on its own predictions: step k takes the
states that step k - 1 predicted, as drafting does (the "training-time test" of EAGLE-3, arXiv 2503.01840).
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vargen.core import checkpoints, weight_files
from vargen.core.atomic import check_writable, write_atomically
from vargen.core.types import mirrored
from vargen.core.warp import Warp
from vargen.engine.guidance import Guidance
from vargen.models.contract import embed
from vargen.models.eagle import EagleHead
from vargen.models.llama import Step
from vargen.models.llamagen import LlamaGen
from vargen.pipelines.choose_drafter import described
from vargen.pipelines.loading import load
from vargen.pipelines.raster import RasterPipeline
from vargen.pipelines.request import method
from vargen.pipelines.values import seeds, whole
from vargen.training.fit import Schedule, fit

PORTION = 64  # images drawn between saves
HELD_OUT = 256  # images that are measured on, drawn behind those that are trained on


def identity(pipe: RasterPipeline, what: Sequence[Any], method: str) -> str:
    """A digest of a model, its weights and recipe, and of what it is asked to draw."""
    told = hashlib.sha256(repr((pipe.preset.name, pipe.preset.recipe, method, list(what))).encode())
    for value in pipe.transformer.state_dict().values():
        told.update(value.flatten()[:: max(1, value.numel() // 64)].float().cpu().numpy().tobytes())
    return told.hexdigest()[:12]


def draw(pipe: RasterPipeline, what: Sequence[int] | Sequence[str], path: Path, method: str) -> Tensor:
    """Ids (images, slots) that the model draws of classes or prompts `what`, one image each, kept in `path`.

    A run that was stopped goes on where it was.
    """
    done = np.load(path) if path.exists() else np.zeros((0, pipe.transformer.spec.slots), np.int32)
    pipe.set_progress_bar_config(disable=True)
    kind = "class_labels" if pipe.transformer.spec.classes else "prompt"
    with tqdm(total=len(what), initial=len(done), unit="image", disable=None) as bar:
        while len(done) < len(what):
            some = list(what[len(done) : len(done) + PORTION])
            asked: dict[str, Any] = {kind: some, "method": method, "seed": len(done), "batch_size": PORTION}
            tokens = pipe(**asked, output_type="latent").tokens.flatten(1)
            done = np.concatenate([done, tokens.cpu().numpy().astype(np.int32)])
            bar.update(len(some))
            write_atomically(path, lambda temporary, done=done: np.save(temporary, done))
    return torch.from_numpy(done.astype(np.int64))


class Unrolled:
    """The head's keys and values in training, one set per step of the unrolled draft; a cache that only grows."""

    def __init__(self) -> None:
        self.kernels = None  # what is trained needs gradients
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def write(self, layer: int, flat: Tensor | None, k: Tensor, v: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Keep k and v (R, n, heads, dim); all that were kept so far, joined, heads first."""
        self._keys.append(k.transpose(1, 2))
        self._values.append(v.transpose(1, 2))
        return torch.cat(self._keys, dim=2), torch.cat(self._values, dim=2)


def unrolled_mask(count: int, step: int, device: torch.device) -> Tensor:
    """Who sees whom in step k of a draft, (count, (k + 1) count) bool: the query of slot s is the k-th draft behind
    slot s - k. It sees what step 0 made of slots up to there, and what step j made of slot s - k + j.
    """
    slots = torch.arange(count, device=device)
    behind = slots[:, None] - slots  # how far each key's slot lies behind the query's
    return torch.cat([behind >= step] + [behind == step - j for j in range(1, step + 1)], dim=1)


def unrolled(head: EagleHead, model: LlamaGen, states: Tensor, ids: Tensor, depth: int) -> Iterator[Tensor]:
    """The states that the head predicts in step 0, 1, ... of a draft, (R, N - 1, d), every slot being the step's draft.

    `states` (R, N, d) are the model's, of ids (R, N). In step k the first k slots have no such draft.
    """
    with torch.no_grad():
        tokens = model.embed(ids[:, :-1])
    count, cache, given = tokens.shape[1], Unrolled(), states[:, :-1]
    turns = head.turns(torch.arange(count, device=ids.device)[None])
    for step in range(depth):
        seen = unrolled_mask(count, step, ids.device)
        # The slots without a draft are run as well, seeing themselves, so that no row of the softmax is empty.
        seen[:step, -count:] |= torch.eye(count, dtype=torch.bool, device=ids.device)[:step]
        mask = torch.zeros(seen.shape, dtype=tokens.dtype, device=ids.device).masked_fill_(~seen, float("-inf"))
        predicted = head(tokens, given, Step(turns, mask[None, None], cache=cache))
        yield predicted
        given = torch.cat([states[:, :1], predicted[:, :-1]], dim=1)


def losses(
    head: EagleHead, model: LlamaGen, states: Tensor, ids: Tensor, law: tuple[Guidance, Warp], depth: int
) -> list[tuple[Tensor, Tensor]]:
    """Per depth of a draft: the cross-entropy (nats) of the head's laws, and the share of drafts that would be kept.

    `states` (R, N, d) are the model's, conditional rows first; ids (B, N).
    """
    (guidance, warp), out = law, []
    with torch.no_grad():
        wanted = warp(_mixed(guidance, model.logits(states[:, 1:])))  # (B, N - 1, V): the laws of slots 1, 2, ...
    for step, predicted in enumerate(unrolled(head, model, states, ids.repeat(len(states) // len(ids), 1), depth)):
        logits, p = _mixed(guidance, model.logits(predicted))[:, step:], wanted[:, step:]
        nats = -(p * (logits / warp.temperature).log_softmax(-1)).sum(-1).mean()  # before top-k and top-p cut it off
        out.append((nats, torch.minimum(p, warp(logits.detach())).sum(-1).mean()))
    return out


def _mixed(guidance: Guidance, logits: Tensor) -> Tensor:
    """Guided logits of rows of which the conditional ones come first."""
    return guidance.mix(mirrored(logits) if guidance.active else logits)


def train(
    head: EagleHead,
    pipe: RasterPipeline,
    what: Sequence[int] | Sequence[str],
    ids: Tensor,
    checkpoint: Path,
    *,
    steps: int,
    batch: int,
    depth: int,
    seed: int,
    data: str,
) -> None:
    """Train in place on ids (images, slots), image i of class or prompt `what[i]`; `depth` tokens are drafted.

    `data` tells these images from others, so that no run goes on from another's checkpoint.
    """
    model = pipe.transformer
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    law = law_of(pipe)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(ids), (batch,), generator=generator).tolist()
        some = ids[chosen].to(model.device)
        per_depth = losses(head, model, states_of(pipe, [what[i] for i in chosen], some), some, law, depth)
        kept = {f"kept{k + 1}": share.item() for k, (_, share) in enumerate(per_depth)}
        return torch.stack([nats for nats, _ in per_depth]).mean(), kept

    schedule = Schedule(steps=steps, rate=1e-3, weight_decay=0.02, warmup=50)
    name, data = f"{pipe.preset.name}-eagle", f"{len(ids)} images {data}, batch {batch}, depth {depth}"
    fit(head, loss, schedule, name=name, data=data, checkpoint=checkpoint, seed=seed, device=model.device)


def law_of(pipe: RasterPipeline) -> tuple[Guidance, Warp]:
    """What the model is sampled under: its first recipe."""
    asked = method("ar", pipe.preset.recipe, {}, {})
    return asked.guidance, asked.warp


@torch.no_grad()
def states_of(pipe: RasterPipeline, what: Sequence[Any], ids: Tensor) -> Tensor:
    """The model's states (R, N, d) on ids (B, N) of classes or prompts `what`, with unconditional rows if guided."""
    model, guided = pipe.transformer, law_of(pipe)[0].active
    inputs = (torch.tensor(list(what), device=model.device),) if model.spec.classes else pipe.encode_prompt(list(what))
    return model.states(embed(model, inputs, guided=guided), ids.repeat(2 if guided else 1, 1))


@torch.no_grad()
def measured(head: EagleHead, pipe: RasterPipeline, what: Sequence[Any], ids: Tensor, depth: int) -> dict[str, float]:
    """On images (N, slots) that were not trained on: cross-entropy and the share of drafts kept, by depth."""
    model, parts = pipe.transformer, []
    for start in range(0, len(ids), 16):
        some = ids[start : start + 16].to(model.device)
        states = states_of(pipe, what[start : start + 16], some)
        per_depth = losses(head, model, states, some, law_of(pipe), depth)
        parts.append([(nats.item(), kept.item()) for nats, kept in per_depth])
    means = np.mean(parts, axis=0)
    return {f"{key}_{k + 1}": float(row[i]) for i, key in enumerate(("nats", "kept")) for k, row in enumerate(means)}


def run(
    name: str,
    out: Path,
    *,
    work: Path,
    checkpoint: Path | None,
    prompts: Path | None,
    images: int,
    method: str,
    steps: int,
    batch: int,
    depth: int,
    seed: int,
    device: str,
    measure: bool,
) -> dict[str, float]:
    """Draw, train, write the head's float16 weights to `out`, and return its figures on images of other seeds."""
    for what, value in (("images", images), ("steps", steps), ("batch", batch), ("depth", depth)):
        whole(value, what, least=1)
    seeds(1, seed, None)
    if measure and not out.is_file():
        raise ValueError(f"there is no head {out} to measure")
    work.mkdir(parents=True, exist_ok=True)
    check_writable([out])
    pipe = load(name, device=device, dtype=torch.float32, checkpoint=checkpoint)
    if not isinstance(pipe, RasterPipeline):
        raise ValueError(f"{name} draws scale by scale: a head drafts only for models that draw token by token")
    whole(depth, "depth", most=pipe.transformer.spec.slots - 1)  # it guesses within an image
    asked = _asked(pipe, prompts, images + HELD_OUT)
    told = identity(pipe, asked, method)
    ids = draw(pipe, asked, work / f"drawn-{name}-{told}.npy", method)
    head = EagleHead(pipe.transformer.config).to(pipe.transformer.device)
    if not measure:
        shape = {"steps": steps, "batch": batch, "depth": depth, "seed": seed, "data": told}
        train(head, pipe, asked[:images], ids[:images], work / f"{name}-eagle.pt", **shape)
        checkpoints.save(out, {key: value.half().cpu() for key, value in head.state_dict().items()})
    checkpoints.load_into(head, out, dtype=torch.float32, device=pipe.transformer.device)
    figures = measured(head.eval(), pipe, asked[images:], ids[images:], depth)
    about = {key: f"{value:.4f}" for key, value in figures.items()} | described(pipe)
    checkpoints.save(out, weight_files.read(out), about)
    return figures


def _asked(pipe: RasterPipeline, prompts: Path | None, count: int) -> list[Any]:
    """What is drawn: the classes in turn, or the lines of a file in turn."""
    classes = pipe.transformer.spec.classes
    if classes:
        if prompts is not None:
            raise ValueError(f"{pipe.preset.name} draws classes and takes no prompts")
        return [i % classes for i in range(count)]
    lines = (
        []
        if prompts is None
        else [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    )
    if not lines:
        raise ValueError(f"{pipe.preset.name} draws what a prompt says: give --prompts, a file with a prompt per line")
    return [lines[i % len(lines)] for i in range(count)]
