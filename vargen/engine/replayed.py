"""Forwards of a raster model with static shapes: captured once as a CUDA graph, and replayed (`graphs.py`).

`Replayed` has the model's contract; its caches stay where they are from call to call (`caches.py`). Whether the host
knows where an image ends or not, what nobody may see is masked, so that one graph serves every step.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels
from vargen.core.specs import RasterSpec
from vargen.core.types import Block, Condition, KVCache
from vargen.engine.caches import Held, Replaying
from vargen.engine.graphs import Tensors
from vargen.engine.seats import NOTES
from vargen.models.contract import RasterModel


class Replayed(Replaying[RasterSpec]):
    """A raster model whose blocks are replayed."""

    model: RasterModel

    def make_cache(self, batch: int, extra: int = 0, front: int = 1) -> KVCache:
        """A cache as the model makes it, of zeros."""
        cache = self.caches.hand((batch, extra, front), partial(self.model.make_cache, batch, extra, front))
        cache.keys.zero_()  # a number that was none would be seen, even at weight 0
        cache.values.zero_()
        return cache

    def prefill(self, condition: Condition, cache: KVCache, first: int = 0) -> Tensor:
        """The model's.

        Padded prompts are not replayed, since their lengths differ from call to call, and others once they come again.
        """
        held = self.caches.of(cache)
        if condition.padding is None and condition.places is None and not first:
            for kept in (cache, held.cache):
                kept.padding = kept.shift = kept.places = None
            now, given = partial(self.model.prefill, condition), {"embedding": condition.embedding}
            return self._run(held, cache, now, given, partial(self._opening, held), patience=1)
        return self.model.prefill(condition, cache, first)

    def decode(self, block: Block, cache: KVCache) -> Tensor:
        """The model's logits; they may be in a buffer that the next block takes again."""
        held = self.caches.of(cache)
        _note(held, cache)
        now = partial(self.model.decode, block)  # with the bounds that the host knows
        return self._run(held, cache, now, _inputs(block, self.spec.slots, held), partial(self._whole, held))

    def _run(
        self,
        held: Held,
        cache: KVCache,
        now: Callable[[KVCache], Tensor],
        given: Tensors,
        whole: Callable[[Tensors], Tensor],
        patience: int = 0,
    ) -> Tensor:
        notes = {"decode": "graph"}
        held.cache.kernels = Kernels(cache.kernels.impl, notes, captured=True)
        held.cache.end = cache.end
        fixed = (held.cache.padding is None, held.cache.places is None, cache.kernels.impl, cache.end)
        how: dict[str, Any] = {"repeated": _moved, "replayed": whole, "notes": notes, "patience": patience}
        logits, ran = held.graphs.run(lambda _: now(cache), given, fixed, **how)
        cache.kernels.ran.update(ran or {})
        return logits

    def _opening(self, held: Held, inputs: Tensors) -> Tensor:
        """The prefill's logits."""
        return self.model.prefill(Condition(inputs["embedding"]), copy.copy(held.cache))

    def _whole(self, held: Held, inputs: Tensors) -> Tensor:
        """The logits of a block of which the host knows nothing."""
        stop = self.spec.slots if "sees" not in inputs else inputs["sees"].shape[-1]
        moves = (inputs["source"], inputs["target"]) if "source" in inputs else None
        block = Block(inputs["tokens"], inputs["slots"], 0, stop, inputs.get("sees"), inputs.get("places"), moves=moves)
        return self.model.decode(block, held.cache)


def _note(held: Held, cache: KVCache) -> None:
    """What a cache has noted of its conditions, put where the graphs for as many rows read it."""
    for name in NOTES:
        value = getattr(cache, name)
        if value is not None:
            kept = held.condition.setdefault((name, value.shape), value.clone())
            value = kept if kept is value else kept.copy_(value)
            setattr(cache, name, value)
        setattr(held.cache, name, value)


def _inputs(block: Block, slots: int, held: Held) -> Tensors:
    """The tensors of a block, what it sees widened to the whole cache."""
    out = {"tokens": block.tokens, "slots": block.slots}
    if block.sees is not None:
        _, extra, _ = held.key
        out["sees"] = F.pad(block.sees, (0, slots + extra - block.sees.shape[-1]))
    if block.places is not None:
        out["places"] = block.places
    if block.moves is not None:
        out["source"], out["target"] = block.moves
    return out


def _moved(inputs: Tensors) -> None:
    """What a block has moved must not be moved again."""
    if "source" in inputs:
        inputs["source"].copy_(inputs["target"])
