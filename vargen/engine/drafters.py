"""Drafters: what proposes tokens for a large model to verify. They keep their own cache and count their forwards.

Which one works for a pipeline, or which small model refines, is found in `pipelines/choose_drafter.py`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vargen.core.dispatch import Kernels
from vargen.core.types import Block, Condition, Group, KVCache
from vargen.core.warp import Warp
from vargen.engine.guidance import AnyGuidance
from vargen.engine.seats import Seats, joined, kept
from vargen.engine.sound import Sound
from vargen.engine.staying import both
from vargen.kernels.sample import law
from vargen.models.contract import ContinuousModel, RasterModel
from vargen.models.eagle import EagleHead


class ModelDrafter:
    """A small model of the same vocabulary and grid, under the large one's guidance and truncation."""

    _seats: Seats

    def __init__(self, model: RasterModel, condition: Condition, guidance: AnyGuidance, warp: Warp) -> None:
        self._model, self._guidance, self._warp = model, guidance, warp
        self._condition = condition.mirrored() if guidance.active else condition
        self._images = len(condition.embedding) // (2 if guidance.active else 1)
        self.forwards, self.kernels, self.sound = 0, Kernels(), Sound("the drafter", model.device)
        self.capacity, self.beside = self._images, None  # see `engine/running.py`

    def watch(self, model: RasterModel) -> RasterModel:
        """`model` as it is to be run: a small model drafts from tokens alone."""
        return model

    def reserve(self, extra: int) -> None:
        """Begin, with so many places in the cache behind the image's slots."""
        condition, guided = self._condition, self._guidance.active
        if self.beside is None:
            self._seats = Seats.of(self._model, condition, self.capacity, extra, guided=guided)
        else:
            condition = self.beside._seats.fitting(condition)
            self._seats = self.beside._seats.small(self._images)
        self._seats.cache.kernels = self.kernels
        self._model.prefill(condition, self._seats.cache)
        self.forwards = 1

    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""
        self._seats.keep(rows.tolist(), self._seats.cache.keys.shape[2])

    def join(self, other: "ModelDrafter") -> None:
        """Take the images of another one as well, behind its own: it was to join."""
        self._seats.join(other._seats)
        self.forwards += other.forwards

    def under(self, guidance: AnyGuidance, warp: Warp) -> None:
        """From now on, its laws are under these."""
        self._guidance, self._warp = guidance, warp

    def laws(self, block: Block) -> Tensor:
        """Laws (B, n, V) of the slots behind a block of tokens, which enters the drafter's cache."""
        self.forwards += 1
        logits = self._model.decode(self._guidance.spread(replace(block, moves=None)), self._seats.cache)
        mixed = self._guidance.mix(logits, block)
        self.sound.note(mixed)
        return law(self._model.spec.given(mixed, block.slots + 1), self._warp, self.kernels)


class LatentModelDrafter:
    """A small model of continuous tokens of the same layout, under the large one's guidance."""

    def __init__(self, model: ContinuousModel, condition: Condition, images: int) -> None:
        self._model, self._condition, self._cache = model, condition, model.make_cache(len(condition.embedding))
        self._images, self.forwards = images, 0

    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""
        here = both(rows.tolist(), self._images, len(self._condition.embedding))
        self._condition, self._images = Condition(self._condition.embedding[here]), len(rows)
        if self._cache is not None:
            self._cache.keep(here)

    def law(self, group: Group) -> tuple[Any, Any]:
        """Its head, and what that needs to draw the group."""
        self.forwards += 1
        return self._model.head, self._model.decode(self._condition, group, self._cache)


class HeadDrafter:
    """An EAGLE head on the large model itself. It keeps the state of every place: the model's where the model has run
    (`see`), its own predictions where it has not.
    """

    _seats: Seats
    _states: Tensor  # (R, places, d), of the rows in use

    def __init__(self, head: EagleHead, model: Any, images: int, guidance: AnyGuidance, warp: Warp) -> None:
        self._head, self._model, self._images, self._guidance, self._warp = head, model, images, guidance, warp
        self.forwards, self.kernels, self.sound = 0, Kernels(), Sound("the drafter", head.device)
        self.capacity, self.beside = images, None  # see `engine/running.py`

    def watch(self, model: RasterModel) -> RasterModel:
        """`model` as it is to be run, so that its states are seen."""
        return Watched(model, self)

    def reserve(self, extra: int) -> None:
        """Begin, with so many places in the cache behind the image's slots."""
        guided = self._guidance.active
        if self.beside is None:
            cache = self._head.make_cache(self.capacity * (2 if guided else 1), extra)
            self._seats = Seats(cache, self.capacity, self._images, 0, guided=guided)
        else:
            self._seats = self.beside._seats.small(self._images)
        self._seats.cache.kernels = self.kernels
        places = 1 + self._head.spec.slots + extra  # row 0 has the state of the condition, row 1 + s that of place s
        width = self._head.config.width
        self._states = torch.zeros(self._seats.rows, places, width, dtype=self._head.dtype, device=self._head.device)
        self.forwards = 0

    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""
        self._states = kept(self._states, rows, self._seats.taken, guided=self._seats.guided)
        self._seats.keep(rows.tolist(), self._seats.cache.keys.shape[2])

    def join(self, other: "HeadDrafter") -> None:
        """Take the images of another one as well, behind its own: it was to join."""
        self._states = joined(self._states, other._states, guided=self._seats.guided)
        self._seats.join(other._seats)
        self.forwards += other.forwards

    def under(self, guidance: AnyGuidance, warp: Warp) -> None:
        """From now on, its laws are under these."""
        self._guidance, self._warp = guidance, warp

    def see(self, states: Tensor, places: Tensor | None = None) -> None:
        """Keep the model's states (R, n, d) of `places` (R, n), or that of the condition."""
        self._keep(states, torch.full_like(states[..., 0], -1, dtype=torch.int64) if places is None else places)

    def laws(self, block: Block) -> Tensor:
        """Laws (B, n, V) of the slots behind a block of tokens, which enters the drafter's cache.

        Where the tokens follow one another, only the last one's state is predicted: the model has run the others.
        """
        self.forwards += 1
        rows = self._guidance.spread(block)
        if rows.moves is not None:
            source, target = rows.moves
            self._keep(self._at(source), target)
        before = rows.slots - 1 if rows.parents is None else rows.parents
        tokens = self._model.embed(rows.tokens)
        states = self._head.decode(tokens, self._at(before), replace(rows, moves=None), self._seats.cache)
        places = rows.slots if rows.places is None else rows.places
        predicted = slice(-1, None) if rows.parents is None else slice(None)
        self._keep(states[:, predicted], places[:, predicted])
        mixed = self._guidance.mix(self._model.logits(states), block)
        self.sound.note(mixed)
        return law(mixed, self._warp, self.kernels)

    def _at(self, places: Tensor) -> Tensor:
        """The states (R, n, d) of `places` (R, n), -1 being the condition."""
        return self._states[self._rows(places), places + 1]

    def _keep(self, states: Tensor, places: Tensor) -> None:
        self._states[self._rows(places), places + 1] = states

    def _rows(self, places: Tensor) -> Tensor:
        """Fewer rows than there are states of are the last ones."""
        count = len(self._states)
        return torch.arange(count - len(places), count, device=places.device)[:, None]


class Watched:
    """A raster model whose states an EAGLE head sees as it runs."""

    def __init__(self, model: Any, drafter: HeadDrafter) -> None:
        self._model, self._drafter = model, drafter
        self.spec, self.device, self.make_cache = model.spec, model.device, model.make_cache

    def prefill(self, condition: Condition, cache: KVCache, first: int = 0) -> Tensor:
        states = self._model.prefill_states(condition, cache, first)
        self._drafter.see(states)
        return self._model.logits(states)

    def decode(self, block: Block, cache: KVCache) -> Tensor:
        states = self._model.decode_states(block, cache)
        self._drafter.see(states, block.slots if block.places is None else block.places)
        return self._model.logits(states)
