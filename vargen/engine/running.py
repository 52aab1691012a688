"""A batch of raster images that others may join, and that each may leave, between any two forwards.

Every image has its own pointer, its own noise and its own rows of the cache, so that it does not matter when it began:
what joins is a batch of its own for its prefill and its first token, and then rows more of this one. An image that
leaves is taken out, and the last one moves to its seat. A plain call is a running batch that all join at the start.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from vargen.core import warp as warps
from vargen.core.types import Condition
from vargen.core.warp import Warp
from vargen.engine.clock import Clock, Counts
from vargen.engine.guidance import AnyGuidance, Guidance, together
from vargen.engine.pace import Pace
from vargen.engine.prefixes import Prefixes, Reading
from vargen.engine.rows import Law, Opening, Row
from vargen.engine.seats import Seats, closed
from vargen.engine.sound import Sound
from vargen.engine.threads import ALL, Threads
from vargen.models.contract import RasterModel
from vargen.samplers.contract import RasterSampler

Make = Callable[[Tensor, Warp, Any], RasterSampler]  # of seeds (B,), their law, and what drafts for them


class RunningBatch:
    """Images of one model, one method and one size. `step` is a forward; `admit` and `leave` come between steps."""

    def __init__(
        self,
        model: RasterModel,
        clock: Clock,
        counts: Counts,
        threads: Threads = ALL,
        *,
        capacity: int,
        guided: bool,
        make: Make | None = None,
        opens: RasterModel | None = None,
        prefixes: Prefixes | None = None,
        paces: bool = False,
    ) -> None:
        """For at most `capacity` images, `guided` where some are. `make` makes the samplers of those that are admitted;
        the prefill of those that join others is run by `opens`, where that is another model with the same weights.
        What was read is kept in `prefixes`. With `paces`, blocks are as wide as pays, where no image hangs on it.
        """
        self._paces, self._pace = paces, None
        self._prefixes = Prefixes(0) if prefixes is None else prefixes
        self._model, self._opens, self._make = model, opens or model, make
        self._clock, self._counts, self._threads = clock, counts, threads
        self.capacity, self.guided, self.sound = capacity, guided, Sound("the model", model.device)
        self.rows: list[Row] = []
        self._widths: list[dict[int, int]] = []  # of each image: widths of its blocks, and how many forwards had them
        self._sampler: Any = None
        self._seats: Any = None
        self._guidance: AnyGuidance = Guidance()
        self._drafter: Any = None
        self._size, self._each = (0, 0.0), 0.0  # of a step, see `Threads`; bytes of a token's key and value in a layer

    def run_by(self, model: RasterModel, opens: RasterModel) -> None:
        """From now on, these run the same weights: see `__init__`. Nobody may be here."""
        self._model, self._opens = model, opens

    @property
    def settled(self) -> list[int]:
        """Tokens of each image that are final."""
        return [] if self._sampler is None else self._sampler.settled

    @property
    def tokens(self) -> Tensor:
        """(B, slots), of which row b is final up to `settled[b]`: a live view."""
        return self._sampler.tokens

    @property
    def committed(self) -> Any:
        """(B, slots) bool, which tokens are final, where that is not in reading order; else None."""
        return self._sampler.committed

    @property
    def forwards(self) -> list[int]:
        """Of each image, those while it was not done."""
        return [sum(widths.values()) for widths in self._widths]

    @property
    def busy(self) -> bool:
        """Whether an image has tokens to come."""
        return any(n < self._model.spec.slots for n in self.settled)

    def begin(self, condition: Condition, sampler: RasterSampler, guidance: AnyGuidance, watched: Any = None) -> None:
        """A forward: the prefill of images, and their first tokens. They are the first ones here, or join the others.

        `watched` runs the prefill in place of the model, so that a drafter sees its states.
        """
        condition = condition.mirrored() if self.guided else condition
        seats, condition = self._seats_for(condition, sampler)
        runner = watched or (self._model if self._sampler is None else self._opens)
        logits = self._forward(lambda: runner.prefill(condition, seats.cache), condition.embedding.shape[:2])
        self._start(sampler, guidance, seats, logits, {condition.embedding.shape[1]: 1})

    def _forward(self, run: Callable[[], Tensor], size: Sequence[int]) -> Tensor:
        """The logits of a prefill, of so many rows and tokens."""
        self._size = (size[0] * size[1], 0.0)
        with self._threads.step(*self._size):
            logits = run()
            self.sound.note(logits)
        self._counts.note(size[1])
        self._clock.lap("model")
        return logits

    def _start(
        self, sampler: RasterSampler, guidance: AnyGuidance, seats: Seats, logits: Tensor, widths: dict[int, int]
    ) -> None:
        """The first tokens of images whose condition was read, in forwards of `widths`; they take their seats."""
        with self._threads.step(*self._size):
            logits = guidance.mix(logits)
            sampler.accept(self._model.spec.given(logits, logits.new_zeros(logits.shape[:2], dtype=torch.int64)))
            if self._sampler is None:
                self._sampler, self._guidance = sampler, guidance
                self._each = seats.cache.bytes / seats.cache.keys.shape[:3].numel()
            else:
                self._sampler.join(sampler)
                self._seats.join(seats)
        self._widths += [dict(widths) for _ in sampler.settled]
        self._clock.lap("sampler")

    def _seats_for(self, condition: Condition, sampler: RasterSampler) -> tuple[Seats, Condition]:
        """Seats for images that are the first ones here, or that are to join, and their condition as long as theirs."""
        images = len(sampler.settled)
        if self._sampler is None:
            self._seats, condition = self._first_seats(condition, images, sampler.extra)
            return self._seats, condition
        condition = self._seats.fitting(condition)
        return self._seats.small(images), condition

    def _first_seats(self, condition: Condition, images: int, extra: int) -> tuple[Seats, Condition]:
        """An empty cache, perhaps one that others have left, and the condition as long as that wants it."""
        seats: Seats | None = self._seats
        if seats is None or seats.front < condition.embedding.shape[1]:
            seats = Seats.of(self._model, condition, self.capacity, extra, guided=self.guided)
            seats.cache.kernels = self._counts.kernels
            self._counts.cache_bytes = max(self._counts.cache_bytes, seats.cache.bytes)
            return seats, condition
        seats.clear(images)
        return seats, seats.fitting(condition)

    def step(self) -> None:
        """A forward: a block of every image that is not done."""
        spec, guidance, sampler, cache = self._model.spec, self._guidance, self._sampler, self._seats.cache
        unsettled = [n < spec.slots for n in sampler.settled]
        began, before = time.perf_counter(), sum(sampler.settled)
        if self._paces and sampler.steady:
            self._pace = self._pace or Pace(sampler.widest)
            sampler.narrow(self._pace.width(len(unsettled)))
        with self._threads.step(*self._size):
            block = sampler.propose()
        self._clock.lap("sampler")
        spread = guidance.spread(block)
        self._size = (spread.slots.numel(), len(spread.slots) * spread.stop * self._each)
        with self._threads.step(*self._size):
            logits = guidance.mix(self._model.decode(spread, cache), block)
            self.sound.note(logits)
            logits = spec.given(logits, block.slots, ahead=1)
        self._counts.note(logits.shape[1])
        self._clock.lap("model")
        with self._threads.step(*self._size):
            sampler.accept(logits)
        if self._pace is not None:
            settled = (sum(sampler.settled) - before) / len(unsettled)
            self._pace.note(len(unsettled), logits.shape[1], time.perf_counter() - began, settled)
        for at, busy in enumerate(unsettled):
            if busy:
                self._widths[at][logits.shape[1]] = self._widths[at].get(logits.shape[1], 0) + 1
        self._clock.lap("sampler")

    def admit(self, condition: Condition, seeds: Sequence[int], laws: Sequence[Law], drafter: Any = None) -> list[Row]:
        """Images of a condition, with unconditional rows where the batch is guided; each has its own seed and law.

        It takes a forward. `drafter` is one of their own, where the method drafts. ValueError where there is no room.
        """
        if drafter is None:
            opening = self.open(condition, seeds, laws)
            while opening.reading.left:
                self.read(opening)
            return self.join(opening)
        guidance, warp = self._checked(seeds, laws)
        drafter.kernels = self._counts.kernels
        if self._sampler is None:
            self._drafter, drafter.capacity = drafter, self.capacity
            self._model = watched = drafter.watch(self._opens)
        else:
            drafter.beside, watched = self._drafter, drafter.watch(self._opens)
        self.begin(condition, self._sampler_of(seeds, warp, drafter), guidance, watched)
        return self._seated([Row(seed, law) for seed, law in zip(seeds, laws, strict=True)])

    def open(
        self, condition: Condition, seeds: Sequence[int], laws: Sequence[Law], weights: Hashable = None
    ) -> Opening:
        """As `admit`, of images that nothing drafts for; but their condition is yet to be read, and then they `join`.

        Rows that were read before under the same `weights` are not read again. One at a time.
        """
        guidance, warp = self._checked(seeds, laws)
        condition = condition.mirrored() if self.guided else condition
        sampler = self._sampler_of(seeds, warp, None)
        if self._sampler is None:
            self._seats, condition = self._first_seats(condition, len(seeds), sampler.extra)
        reading = Reading(condition, self._prefixes, weights, self._seats.empty)
        return Opening(condition, reading, sampler, guidance, [Row(*each) for each in zip(seeds, laws, strict=True)])

    def read(self, opening: Opening) -> None:
        """A forward: a piece of what is to be read."""
        reading = opening.reading

        def run() -> Tensor:
            return reading.step(self._opens.prefill)

        _, width = size = reading.next
        self._forward(run, size)
        opening.widths[width] = opening.widths.get(width, 0) + 1

    def join(self, opening: Opening) -> list[Row]:
        """The images whose condition was read; no forward is run."""
        seats, condition = self._seats_for(opening.condition, opening.sampler)
        logits = opening.reading.write(condition, seats.cache)
        self.sound.note(logits)  # of what was kept as well
        images, cached = len(opening.rows), opening.reading.cached
        for at, row in enumerate(opening.rows):
            row.cached = cached[at] if not self.guided else cached[images + at] + cached[images - 1 - at]
        self._start(opening.sampler, opening.guidance, seats, logits, opening.widths)
        return self._seated(opening.rows)

    def _checked(self, seeds: Sequence[int], laws: Sequence[Law]) -> tuple[AnyGuidance, Warp]:
        """The laws of images that are to join. ValueError where there is no room."""
        free = self.capacity - len(self.rows)
        if not 0 < len(seeds) <= free:
            raise ValueError(f"got {len(seeds)} images, expected 1 to {free}: {self.capacity} in all")
        return self._law(laws)

    def _sampler_of(self, seeds: Sequence[int], warp: Warp, drafter: Any) -> RasterSampler:
        assert self._make is not None
        return self._make(torch.tensor(seeds, device=self._model.device), warp, drafter)

    def _seated(self, new: list[Row]) -> list[Row]:
        self.rows += new
        self._relaw()
        return new

    def leave(self, rows: Sequence[Row]) -> None:
        """Images go, done or not, with the tokens that they have."""
        gone = [self.rows.index(row) for row in rows]
        for at in gone:
            row = self.rows[at]
            row.tokens, row.settled, row.widths = self.tokens[at].clone(), self.settled[at], self._widths[at]
        order = closed(len(self.rows), gone)
        self.rows, self._widths = [self.rows[i] for i in order], [self._widths[i] for i in order]
        if not order:
            self._sampler = None
            return
        # What stands behind the image's slots may be wanted yet: a path that was kept is moved by the next block.
        places = self._seats.cache.keys.shape[2]
        self._sampler.keep(torch.tensor(order, device=self._model.device))  # which reads how far those that stay are
        written = places if self._sampler.extra else min(places, self._seats.front + max(self.settled))
        self._seats.keep(order, written)
        self._relaw()

    def _law(self, laws: Sequence[Law]) -> tuple[AnyGuidance, Warp]:
        device = self._model.device
        guidance = together([law.guidance for law in laws], device, guided=self.guided)
        return guidance, warps.together([law.warp for law in laws], device)

    def _relaw(self) -> None:
        """The laws of the images that are here now."""
        self._guidance, warp = self._law([row.law for row in self.rows])
        self._sampler.under(warp)
        if self._drafter is not None:
            self._drafter.under(self._guidance, warp)
