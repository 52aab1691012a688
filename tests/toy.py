"""A model whose law can be written down: a 2x2 image of 4 ids, each token's law a table indexed by those before it."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from vargen.core.specs import RasterSpec
from vargen.core.types import Block, Condition, KVCache
from vargen.core.warp import Warp
from vargen.engine import loops
from vargen.engine.drafters import ModelDrafter
from vargen.engine.guidance import Guidance
from vargen.samplers.contract import Task

SIDE, IDS = 2, 4
SLOTS = SIDE * SIDE
WARP, GUIDANCE = Warp(top_k=3, temperature=0.8), Guidance(1.7)


SQUARE = RasterSpec(SIDE, SIDE, IDS, 1)
LINED = RasterSpec(SIDE, SIDE, IDS, 1, newline=IDS - 1)  # rows of one token and a newline


@cache
def tables(seed: int = 3) -> tuple[Tensor, ...]:
    """Per slot, logits (2, 4^slot, 4), conditional and unconditional; sharp enough that drafts are often rejected."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, IDS**slot, IDS, generator=generator) * 1.5 for slot in range(SLOTS))


class ToyModel:
    """The raster contract over `tables`. Its cache is the tokens themselves, written by slot like any other."""

    device = torch.device("cpu")
    _starts = (IDS ** torch.arange(SLOTS) - 1) // (IDS - 1)

    def __init__(self, seed: int = 3, spec: RasterSpec = SQUARE, *, guided: bool = True) -> None:
        self.spec, self._guided = spec, guided
        # All tables in one; the law of slot s starts at row (4^s - 1) / 3, a row is the number that earlier ids spell.
        self._tables = tables(seed)
        self._rows = torch.cat(self._tables, dim=1).flatten(0, 1)

    def class_condition(self, labels: Tensor, *, guided: bool) -> Condition:
        return Condition(torch.arange(2 if guided else 1).repeat_interleave(len(labels)).float()[:, None, None])

    def make_cache(self, batch: int, extra: int = 0, front: int = 1) -> KVCache:
        return KVCache(1, batch, SLOTS + extra, 1, 1, dtype=torch.float64, device=self.device)

    def prefill(self, condition: Condition, cache: KVCache, first: int = 0) -> Tensor:
        return self._tables[0][condition.embedding[:, 0, 0].long()]  # 0 is conditional, 1 unconditional

    def decode(self, block: Block, cache: KVCache) -> Tensor:
        """Keys hold the ids and values the slots, so that a token may read those it sees wherever they are cached."""
        places = block.slots if block.places is None else block.places
        assert int(block.slots.min()) >= block.first
        assert int(places.max()) < block.stop <= cache.keys.shape[2]
        assert int(block.slots.max()) < SLOTS
        if block.moves is not None:
            cache.move(*block.moves)
        keys, values = (x.double()[..., None, None] for x in (block.tokens, block.slots))
        keys, values = cache.write(0, cache.flat(places), keys, values, block.stop)
        causal = torch.arange(block.stop) <= places[..., None]
        seen = causal if block.sees is None else block.sees[..., : block.stop]  # (R, n, stop)
        power = block.slots[..., None] - values[:, :, :, 0]
        spelled = torch.where(seen, keys[:, :, :, 0] * float(IDS) ** power, 0.0).sum(-1)  # (R, n)
        target = (block.slots + 1).clamp(max=SLOTS - 1)
        index = self._starts[target] + torch.where(target == block.slots, 0, spelled.long())
        unconditional = cache.keys.shape[1] // 2 - (cache.end - len(index))  # rows, in front, unless they were dropped
        index[: max(0, unconditional) if self._guided else 0] += len(self._rows) // 2
        return self._rows[index]


@cache
def law(guidance: Guidance = GUIDANCE, spec: RasterSpec = SQUARE) -> np.ndarray:
    """Probabilities (256,) of all images under WARP and `guidance`, in float64."""
    p = torch.ones(1, dtype=torch.float64)
    for slot, logits in enumerate(tables()):
        conditional, unconditional = logits.double()
        guided = guidance.interval < 0 or slot - 1 <= guidance.interval
        mixed = unconditional + (conditional - unconditional) * (guidance.scale if guided else 1.0)
        if spec.newline is not None:
            at_end = slot % spec.columns == spec.columns - 1
            ruled_out = (torch.arange(IDS) == spec.newline) != at_end
            mixed = mixed.masked_fill(ruled_out, -float("inf"))
        p = (p[:, None] * WARP(mixed)).flatten()
    return p.numpy()


def images(
    sampler_class,
    settings,
    count: int,
    batch: int,
    first_seed: int = 0,
    guidance: Guidance = GUIDANCE,
    codebook: Tensor | None = None,
    drafter: ToyModel | None = None,
    spec: RasterSpec = SQUARE,
) -> np.ndarray:
    """Indices (count,) into `law` of sampled images, decoded `batch` at a time."""
    model, out, powers = ToyModel(spec=spec), [], IDS ** torch.arange(SLOTS - 1, -1, -1)
    for start in range(first_seed, first_seed + count, batch):
        seeds = torch.arange(start, min(start + batch, first_seed + count))
        condition = model.class_condition(seeds, guided=True)
        small = ModelDrafter(drafter, condition, guidance, WARP) if drafter else None
        sampler = sampler_class(settings, Task(model.spec, seeds, WARP, drafter=small, codebook=codebook))
        for _ in loops.raster(model, condition, sampler, guidance, loops.Clock(model.device), loops.Counts()):
            pass
        out.append((sampler.tokens * powers).sum(-1))
    return torch.cat(out).numpy()


def checked(sampler_class, settings, count: int, **rest) -> np.ndarray:
    """Images of many seeds, 128 at a time, which costs least. Batches of one and of four must draw the same of them, so
    that what the law of all is shown to be it is behind any batch.
    """
    drawn = images(sampler_class, settings, count, 128, **rest)
    for batch, few in ((1, 48), (4, 192)):
        assert (images(sampler_class, settings, few, batch, **rest) == drawn[:few]).all()
    return drawn


def p_value(observed: np.ndarray, guidance: Guidance = GUIDANCE, spec: RasterSpec = SQUARE) -> float:
    """Chi-square of image counts against `law`, images expected fewer than five times taken together."""
    from scipy.stats import chisquare

    counts, expected = np.bincount(observed, minlength=IDS**SLOTS).astype(float), law(guidance, spec) * len(observed)
    assert counts[expected == 0].sum() == 0, "an image that the law rules out was drawn"
    large = expected >= 5
    seen, should = (np.append(x[large], x[~large].sum()) for x in (counts, expected))
    if should[-1] == 0:
        seen, should = seen[:-1], should[:-1]
    return float(chisquare(seen, should).pvalue)
