"""Training of `pocket-lumina`: captioned pocket scenes of three sizes, and the tokenizer of their captions."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.atomic import write_atomically
from vargen.models.chameleon import Chameleon
from vargen.models.lumina_mgpt import GRID, LuminaMGPT
from vargen.models.pocket import LUMINA_SIZES, WORDS, lumina, reader
from vargen.scenes import CLASSES, draw
from vargen.scenes.dataset import HELD_OUT
from vargen.tokenizers.vq import VQTokenizer
from vargen.training.data import CLASS_DROPOUT, described, pick, to_tensor
from vargen.training.fit import Schedule, fit

BRIEF = 0.3  # share of captions that leave the clouds out
SMALL = ("beach", "harbour", "meadow", "snow")  # scenes whose caption names the colour of something small
HARD = 0.5  # share of a batch that is of these alone: their colours are learnt last


@torch.no_grad()
def captioned(
    tokenizer: VQTokenizer, folder: Path, count: int, first_seed: int, size: tuple[int, int], device: torch.device
) -> tuple[Tensor, list[str]]:
    """Ids (count, h, w) and captions of scenes of one size; scene i has label i mod 10 and seed `first_seed` + i."""
    weights = b"".join(value.cpu().numpy().tobytes() for value in tokenizer.state_dict().values())
    what = f"{first_seed}-{count}-{size[0]}x{size[1]}-{hashlib.sha256(weights).hexdigest()[:8]}"
    path = folder / f"captioned-{what}.npz"
    if not path.exists():
        ids, captions = [], []
        for start in range(0, count, 100):
            each = [
                draw(i % len(CLASSES), first_seed + i, height=size[0], width=size[1])
                for i in range(start, min(start + 100, count))
            ]
            ids.append(tokenizer.encode(to_tensor(np.stack([scene.image for scene in each]), device)).cpu().numpy())
            captions += [scene.caption for scene in each]
        found = {"ids": np.concatenate(ids).astype(np.int16), "captions": np.array(captions)}
        write_atomically(path, lambda temporary: _store(temporary, found))
    data = np.load(path)
    return torch.from_numpy(data["ids"].astype(np.int64)), data["captions"].tolist()


def _store(path: Path, found: dict[str, Any]) -> None:
    with path.open("wb") as file:  # numpy would add an ending to a name
        np.savez(file, **found)


def train_text(captions: list[str], path: Path) -> None:
    """Learn byte pairs from captions, and write the tokenizer of `WORDS` ids: any text has ids, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    text = Tokenizer(models.BPE())
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    text.decoder = decoders.ByteLevel()
    special, alphabet = ["<s>", "<pad>", "</s>"], sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet)
    text.train_from_iterator(captions, trainer)
    write_atomically(path, lambda temporary: text.save(str(temporary), pretty=False))


def initialise(decoder: Chameleon, seed: int) -> None:
    """Normal with deviation 0.02; norms as they are; the output head starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    torch.nn.init.zeros_(decoder.lm_head.weight)


def train(
    decoder: Chameleon,
    tokenizer: VQTokenizer,
    folder: Path,
    words: Path,
    *,
    name: str,
    images: int,
    steps: int,
    batch: int,
    seed: int,
    device: torch.device,
) -> None:
    """Train in place on `images` scenes, an equal part of each size; the tokenizer of their captions goes to `words`.

    A tenth of the images have no caption, as guidance will.
    """
    each = images // len(LUMINA_SIZES)
    pools = [captioned(tokenizer, folder, each, i * each, size, device) for i, size in enumerate(LUMINA_SIZES)]
    train_text([caption for _, captions in pools for caption in captions], words)
    text, models = reader(words), [lumina(decoder, size) for size in LUMINA_SIZES]
    initialise(decoder, seed)
    names = tuple(CLASSES)
    hard = np.array([i for i in range(each) if names[i % len(names)] in SMALL] or range(each))

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        which = int(torch.randint(len(pools), (), generator=generator))
        (ids, captions), model = pools[which], models[which]
        chosen = pick(len(ids), batch, generator)
        small = hard[pick(len(hard), batch, generator)]
        chosen = np.where(torch.rand(batch, generator=generator).numpy() < HARD, small, chosen)
        brief = (torch.rand(batch, generator=generator) < BRIEF).tolist()
        some = [captions[i].rsplit(",", 1)[0] if short else captions[i] for i, short in zip(chosen, brief, strict=True)]
        kept = torch.rand(batch, generator=generator) >= CLASS_DROPOUT
        nats, sizes = losses(model, some, kept, ids[chosen], text)
        return nats + 0.01 * sizes, {"nats": nats.item(), "sizes": sizes.item()}

    schedule = Schedule(steps=steps, rate=2e-3, weight_decay=0.05, warmup=100)
    run = {"name": name, "data": described(batch, *(ids for ids, _ in pools)), "seed": seed}
    fit(decoder, loss, schedule, checkpoint=folder / f"{name}.pt", device=device, **run)


def losses(model: LuminaMGPT, captions: list[str], kept: Tensor, ids: Tensor, text: Any) -> tuple[Tensor, Tensor]:
    """Cross-entropies in nats: of a code, and of a size token. `kept` (B,) says whose caption is read."""
    read, words = model.tokenize(captions, text)
    condition = model.text_condition(
        read.to(model.device), (words & kept[:, None, None]).to(model.device), guided=False
    )
    tokens = F.pad(ids, (0, 1), value=model.vocabulary.codes).flatten(1).to(model.device)
    states, front = model.states(condition, tokens), condition.embedding.shape[1]
    drawn = ~model.spec.ends(torch.arange(model.spec.slots, device=tokens.device))
    logits = model.logits(states[:, front - 1 :][:, drawn])[..., :-1]
    nats = F.cross_entropy(logits.flatten(0, 1), tokens[:, drawn].flatten())
    steps = torch.tensor([side // GRID - 1 for side in model.size], device=tokens.device)
    sizes = model.size_logits(states[:, front - 3 : front - 1])  # (B, 2, n)
    return nats, F.cross_entropy(sizes.flatten(0, 1), steps.repeat(len(tokens)))


@torch.no_grad()
def measure(
    decoder: Chameleon, tokenizer: VQTokenizer, folder: Path, words: Path, *, images: int = 300, device: torch.device
) -> dict[str, float]:
    """On held-out scenes of each size: the cross-entropy in nats per code, teacher-forced and without guidance."""
    text, out = reader(words), {}
    for i, size in enumerate(LUMINA_SIZES):
        model = lumina(decoder, size)
        ids, captions = captioned(tokenizer, folder, images, HELD_OUT + i * images, size, device)
        nats = 0.0
        for j in range(0, images, 50):
            some, kept = ids[j : j + 50], torch.ones(len(ids[j : j + 50]), dtype=torch.bool)
            nats += losses(model, captions[j : j + 50], kept, some, text)[0].item() * len(some)
        out[f"nats_per_token_{size[0]}x{size[1]}"] = nats / images
    return {"nats_per_token": float(np.mean(list(out.values()))), **out, "images": images * len(LUMINA_SIZES)}
