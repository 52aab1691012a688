"""The part of a worker that draws: batches of orders in, pictures out, as each order's rows settle.

Rows move on alone, so that an order is answered once its own rows are settled, whatever the others still need. A batch
ends as soon as nobody waits for it: rows whose client has hung up, or whose deadline has passed, hold nobody up.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vargen.core.png import encode, texts
from vargen.models import pocket
from vargen.pipelines.base import Pipeline
from vargen.pipelines.partial import Partial
from vargen.server.options import numbers, parsed
from vargen.server.orders import Batch, Card, Done, Ended, Failed, Order, Shown

log = logging.getLogger(__name__)


def load(specs: Sequence[str], device: str | None, fast: str = "auto") -> dict[str, Pipeline]:
    """Pipelines by name, of models as `parsed` reads them."""
    import vargen

    pipes = {}
    for name, given in map(parsed, specs):
        arguments: dict[str, Any] = {**given, **numbers(given)}
        pipes[name] = vargen.load(name, device=device, fast=fast, **arguments)
        pipes[name].set_progress_bar_config(disable=True)
    return pipes


def described(name: str, pipe: Pipeline) -> Card:
    """A model's card."""
    preset = pipe.preset
    ships = preset.head if preset.drafter == "eagle" else pocket.WEIGHTS / f"{preset.drafter}.safetensors"
    drafts = pipe.drafter is not None or (ships is not None and ships.exists())
    return Card(name, pipe.sizes, drafts, pipe.sketches)


@dataclass
class Work:
    """An order in a batch: its rows, and how many pictures of each were shown."""

    order: Order
    rows: range
    shares: list[int] = field(init=False)  # of an image, in parts of `partials + 1`
    numbers: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.shares, self.numbers = [0] * len(self.rows), [0] * len(self.rows)

    def due(self, settled: Sequence[int], slots: int) -> Iterator[int]:
        """The images of which a picture is to be shown now."""
        for image, row in enumerate(self.rows):
            share = settled[row] * (self.order.partials + 1) // slots
            if self.shares[image] < share <= self.order.partials:
                self.shares[image] = share
                yield image


class Painter:
    """Draws with the pipelines that it is given."""

    def __init__(self, pipes: Mapping[str, Pipeline]) -> None:
        self._pipes = pipes

    @property
    def cards(self) -> tuple[Card, ...]:
        """What there is to draw with."""
        return tuple(described(name, pipe) for name, pipe in self._pipes.items())

    def paint(self, batch: Batch, wanted: Callable[[int], bool]) -> Iterator[Shown | Done | Failed | Ended]:
        """Draw a batch; `wanted` tells, of a ticket, whether somebody still waits. Ends with `Ended`, and never raises.

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
                for event in self.paint(alone, wanted):
                    if isinstance(event, Ended):
                        tally.forwards, tally.abandoned = (
                            tally.forwards + event.forwards,
                            tally.abandoned + event.abandoned,
                        )
                    else:
                        yield replace(event, order=index)
        except torch.OutOfMemoryError:
            log.warning("out of memory in a batch of %d orders", len(batch.orders))
            torch.cuda.empty_cache()
            yield from _fail(left, 503, "the batch did not fit the device's memory: ask for fewer images")
        except Exception:
            log.exception("a batch of %d orders failed", len(batch.orders))
            yield from _fail(left, 500, "the images could not be drawn")
        yield Ended(tally.forwards, tally.abandoned)

    def _paint(self, left: dict[int, Order], live: Callable[[int], bool], tally: "Tally") -> Iterator[Shown | Done]:
        """Draw orders that are kin; takes from `left` those that are answered or that nobody waits for."""
        work, first = {}, 0
        for index, order in left.items():
            work[index] = Work(order, range(first, first + len(order.seeds)))
            first += len(order.seeds)
        for partial in self._stream(list(left.values())):
            tally.forwards = partial.forwards
            for index in [index for index in left if not live(index)]:
                del left[index]
                tally.abandoned += 1
            slots = partial.pipeline.transformer.spec.slots
            for index in list(left):
                if all(partial.settled[row] >= slots for row in work[index].rows):
                    pictures = tuple(_final(partial, row, left[index]) for row in work[index].rows)
                    read = _read(partial.pipeline, left[index]) * len(pictures)
                    yield Done(index, pictures, read, slots * len(pictures))
                    del left[index]
                elif left[index].partials:
                    yield from _shown(partial, index, work[index], slots)
            if not left:
                return

    def _stream(self, orders: list[Order]) -> Iterator[Partial]:
        """A batch in the making."""
        first = orders[0]
        pipe, subjects = self._pipes[first.model], [order.subject for order in orders for _ in order.seeds]
        arguments: dict[str, Any] = dict(first.law)
        arguments["class_labels" if pipe.transformer.spec.classes else "prompt"] = subjects
        if any(order.negative for order in orders):
            arguments["negative_prompt"] = [order.negative for order in orders for _ in order.seeds]
        if first.size is not None:
            arguments["height"], arguments["width"] = first.size
        seeds = [seed for order in orders for seed in order.seeds]
        arguments |= {"method": first.method, "preset": first.preset, "image_size": first.image_size, "seed": seeds}
        return pipe.stream(**arguments)


@dataclass
class Tally:
    """What a batch came to."""

    forwards: int = 0
    abandoned: int = 0


def _fail(left: dict[int, Order], status: int, message: str) -> Iterator[Failed]:
    for index in list(left):
        del left[index]
        yield Failed(index, status, message)


def _read(pipe: Pipeline, order: Order) -> int:
    """The tokens of what an order asks for, a class being one."""
    return 1 if isinstance(order.subject, int) else len(pipe.text_tokenizer(order.subject)["input_ids"])


def _final(partial: Partial, row: int, order: Order) -> bytes:
    """An image that is done: decoded alone, so that its last bits do not hang on how many are decoded together."""
    image = partial.of([row]).images()[0]
    told = texts(partial.trace, row, alone=True)  # of its company, who asked for it learns nothing
    return encode(image, told, order.kind, order.quality)


def _shown(partial: Partial, index: int, work: Work, slots: int) -> Iterator[Shown]:
    """The pictures of an order that are due."""
    due = list(work.due(partial.settled, slots))
    if not due:
        return
    pictures = partial.of([work.rows[image] for image in due]).images()
    for image, picture in zip(due, pictures, strict=True):
        yield Shown(index, image, work.numbers[image], encode(picture, {}, work.order.kind, work.order.quality))
        work.numbers[image] += 1
