"""The part of a worker that draws: batches of orders in, pictures out, as each order's rows settle.

What is drawn token by token joins what runs (`running.py`). Of other models a batch begins together: an order is
answered once its own rows are settled, whatever the others still need, and a batch ends once nobody waits for it.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vargen.models import pocket
from vargen.pipelines.base import Pipeline
from vargen.pipelines.partial import Partial
from vargen.server import pictures
from vargen.server.options import numbers, parsed
from vargen.server.orders import Batch, Card, Done, Ended, Event, Failed, Order, Shown
from vargen.server.running import RunningOrders, Wanted, asked, broken


def load(specs: Sequence[str], device: str | None, fast: str = "auto") -> dict[str, Pipeline]:
    """Pipelines by name, of models as `parsed` reads them."""
    import vargen

    pipes = {}
    for name, given in map(parsed, specs):
        arguments: dict[str, Any] = {**given, **numbers(given)}
        pipes[name] = vargen.load(name, device=device, fast=fast, **arguments)
        pipes[name].set_progress_bar_config(disable=True)
    return pipes


def described(name: str, pipe: Pipeline, *, joins: bool = True) -> Card:
    """A model's card."""
    preset = pipe.preset
    ships = preset.head if preset.drafter == "eagle" else pocket.WEIGHTS / f"{preset.drafter}.safetensors"
    drafts = pipe.drafter is not None or (ships is not None and ships.exists())
    return Card(name, pipe.sizes, drafts, pipe.sketches, joins and pipe.kind == "raster", pipe.edits)


class Painter:
    """Draws with the pipelines that it is given, raster models `capacity` images at a time."""

    def __init__(self, pipes: Mapping[str, Pipeline], capacity: int = 16, *, joins: bool = True) -> None:
        """Without `joins`, nobody joins a batch that runs."""
        self._pipes, self._capacity, self._joins = pipes, capacity, joins
        self._placed: deque[tuple[Hashable, Batch, Wanted]] = deque()
        self._running: RunningOrders | None = None
        self._last: RunningOrders | None = None  # what ran last, with its cache

    @property
    def cards(self) -> tuple[Card, ...]:
        """What there is to draw with."""
        return tuple(described(name, pipe, joins=self._joins) for name, pipe in self._pipes.items())

    @property
    def idle(self) -> bool:
        """Whether there is nothing to draw."""
        return self._running is None and not self._placed

    @property
    def room(self) -> bool:
        """Whether an image more could be drawn at once, as far as can be told before it is known which."""
        return not self._placed and (self._running is None or (self._joins and self._running.free > 0))

    def place(self, uid: Hashable, batch: Batch, wanted: Wanted) -> None:
        """Take a batch; `wanted` tells, of a ticket, whether somebody still waits. Its events come under `uid`."""
        self._placed.append((uid, batch, wanted))

    def turn(self) -> Iterator[tuple[Hashable, Event]]:
        """A forward of what runs, or a whole batch of what cannot be joined: what became of whom. Never raises.

        Of every batch that was placed, the last event is `Ended`.
        """
        self._join()
        if self._running is not None:
            yield from self._running.turn(self._alone)
            if self._running.idle:
                self._running, self._last = None, self._running
        elif self._placed:
            uid, batch, wanted = self._placed.popleft()
            self._last = None  # its cache makes room
            yield from ((uid, event) for event in self._alone(batch, wanted))

    def paint(self, batch: Batch, wanted: Wanted) -> Iterator[Event]:
        """Draw a batch while nothing else is to be drawn."""
        self.place(None, batch, wanted)
        while not self.idle:
            yield from (event for _, event in self.turn())

    def _join(self) -> None:
        """Let what was placed join what runs, in order, up to the first that cannot; or begin with it."""
        begun = self._running is None
        while self._placed and (begun or self._joins):
            first = self._placed[0][1]
            pipe = self._pipes.get(first.orders[0].model)
            if pipe is None or pipe.kind != "raster" or first.alone or self._other(pipe):
                return
            if self._running is None:
                last = self._last if self._last is not None and self._last.pipe is pipe else None
                self._running, self._last = last or RunningOrders(pipe, self._capacity), None
            self._running.take(*self._placed.popleft())

    def _other(self, pipe: Pipeline) -> bool:
        """Whether another one runs."""
        return self._running is not None and self._running.pipe is not pipe

    def _alone(self, batch: Batch, wanted: Wanted) -> Iterator[Event]:
        """Draw a batch that nobody joins; ends with `Ended`, and never raises.

        Where the batch as a whole is refused, each order is drawn alone, so that only what is wrong is refused.
        """
        left, tally = dict(enumerate(batch.orders)), Tally()

        def live(index: int) -> bool:
            return wanted(batch.tickets[index])

        try:
            yield from self._paint(left, live, tally)
        except ValueError as error:
            if len(batch.orders) == 1:
                yield from _fail(left, 400, str(error))
            for index in list(left):
                alone = Batch((left.pop(index),), (batch.tickets[index],))
                for event in self._alone(alone, wanted):
                    if isinstance(event, Ended):
                        tally.forwards, tally.abandoned = (
                            tally.forwards + event.forwards,
                            tally.abandoned + event.abandoned,
                        )
                    else:
                        yield replace(event, order=index)
        except Exception as error:
            yield from _fail(left, *broken(error, len(batch.orders)))
        yield Ended(tally.forwards, tally.abandoned)

    def _paint(self, left: dict[int, Order], live: Callable[[int], bool], tally: "Tally") -> Iterator[Shown | Done]:
        """Draw orders that are kin; takes from `left` those that are answered or that nobody waits for."""
        rows, first = {}, 0
        for index, order in left.items():
            rows[index] = range(first, first + len(order.seeds))
            first += len(order.seeds)
        shares = {index: pictures.Shares(order) for index, order in left.items()}
        for partial in self._stream(list(left.values())):
            tally.forwards = partial.forwards
            gone = [index for index in left if not live(index)]
            for index in gone:
                del left[index]
                tally.abandoned += 1
            if gone and left and partial.staying is not None:
                partial.keep([row for index in left for row in rows[index]])
            slots = partial.pipeline.transformer.spec.slots
            for index in list(left):
                settled = [partial.settled[partial.place(row)] for row in rows[index]]
                if min(settled) >= slots:
                    yield pictures.done(index, [(partial, row) for row in rows[index]], left[index])
                    del left[index]
                elif left[index].partials:
                    due = shares[index].due(settled, slots)
                    if due:
                        shown = partial.of([rows[index][image] for image in due])
                        yield from shares[index].shown(index, due, shown.images())
            if not left:
                return

    def _stream(self, orders: list[Order]) -> Iterator[Partial]:
        """A batch in the making."""
        return self._pipes[orders[0].model].stream(**asked(self._pipes[orders[0].model], orders))


@dataclass
class Tally:
    """What a batch came to."""

    forwards: int = 0
    abandoned: int = 0


def _fail(left: dict[int, Order], status: int, message: str) -> Iterator[Failed]:
    for index in list(left):
        del left[index]
        yield Failed(index, status, message)
