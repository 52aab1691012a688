"""Orders that join a running batch: each is drawn as soon as there is a seat, and is gone a step after nobody waits.

Seats are given in turns: of an order of many images the next one waits for a first one of those that came meanwhile.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vargen.pipelines.base import Pipeline
from vargen.pipelines.running import Drawing, RunningImages
from vargen.server import pictures
from vargen.server.orders import Batch, Ended, Event, Failed, Order

log = logging.getLogger(__name__)

Wanted = Callable[[int], bool]  # whether somebody still waits for the order of a ticket
Alone = Callable[[Batch, Wanted], Iterator[Event]]  # draws a batch, and ends with `Ended`


@dataclass(eq=False)
class Placed:
    """A batch of orders that was taken."""

    uid: Hashable
    batch: Batch
    wanted: Wanted
    left: set[int]  # orders that were not answered yet
    abandoned: int = 0


@dataclass(eq=False)
class Work:
    """An order that is drawn."""

    placed: Placed
    index: int  # in its batch
    images: list[Drawing]
    shares: pictures.Shares = field(init=False)

    def __post_init__(self) -> None:
        self.shares = pictures.Shares(self.order)

    @property
    def order(self) -> Order:
        return self.placed.batch.orders[self.index]

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return self.placed.wanted(self.placed.batch.tickets[self.index])


class RunningOrders:
    """Orders that one pipeline draws, at most `capacity` images at a time."""

    def __init__(self, pipe: Pipeline, capacity: int) -> None:
        self.pipe, self._images, self._counted = pipe, RunningImages(pipe, capacity), 0
        self._works: list[Work] = []
        self._taken: list[tuple[Placed, int]] = []  # orders that are yet to be read

    @property
    def free(self) -> int:
        """Seats that nobody has, and nobody waits for."""
        return max(0, self._images.capacity - len(self._images.running) - len(self._images.waiting))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to draw."""
        return not self._taken and not self._works

    def take(self, uid: Hashable, batch: Batch, wanted: Wanted) -> None:
        """Take a batch of orders; they join at the next turn."""
        placed = Placed(uid, batch, wanted, set(range(len(batch.orders))))
        self._taken += [(placed, index) for index in range(len(batch.orders))]

    def turn(self, alone: Alone) -> Iterator[tuple[Hashable, Event]]:
        """A forward, and what became of whom. Never raises: what breaks is answered. Of every batch the last event is
        `Ended`. `alone` draws those of whom it is not known which one is refused.
        """
        yield from self._admit()
        done: list[Drawing] = []
        try:
            if self._images.drawing:
                done = self._images.step()
        except Exception as error:
            yield from self._give_up(error, alone)
        yield from self._answer(done)

    def _admit(self) -> Iterator[tuple[Hashable, Event]]:
        taken, self._taken = self._taken, []
        for placed, index in taken:
            order = placed.batch.orders[index]
            try:
                one = asked(self.pipe, [replace(order, seeds=order.seeds[:1])])  # a prompt is read once
                count = {"seed": list(order.seeds), "num_images_per_prompt": len(order.seeds)}
                self._works.append(Work(placed, index, self._images.admit(**one | count, priority=order.priority)))
            except ValueError as error:
                yield from self._settled(placed, index, Failed(index, 400, str(error)))
            except Exception as error:
                yield from self._settled(placed, index, Failed(index, *broken(error, 1)))

    def _answer(self, done: Sequence[Drawing]) -> Iterator[tuple[Hashable, Event]]:
        for work in list(self._works):
            if not work.wanted:
                self._works.remove(work)
                self._images.leave(work.images)
                work.placed.abandoned += 1
                yield from self._settled(work.placed, work.index)
            elif all(image.finished is not None for image in work.images):
                self._works.remove(work)
                images = [(image.partial, 0) for image in work.images]
                try:
                    answer: Event = pictures.done(work.index, images, work.order)
                except Exception as error:
                    answer = Failed(work.index, *broken(error, 1))
                yield from self._settled(work.placed, work.index, answer)
            elif work.order.partials and self.pipe.sketches:
                try:
                    shown = list(self._shown(work))
                except Exception as error:
                    self._works.remove(work)
                    self._images.leave(work.images)
                    answer = Failed(work.index, *broken(error, 1))
                    yield from self._settled(work.placed, work.index, answer)
                else:
                    yield from shown

    def _shown(self, work: Work) -> Iterator[tuple[Hashable, Event]]:
        """Pictures of an order's images on their way."""
        slots = self.pipe.transformer.spec.slots
        settled = [self._images.settled(image) for image in work.images]
        due = [image for image in work.shares.due(settled, slots) if work.images[image] in self._images.running]
        images = [self._images.shown(work.images[image]).images()[0] for image in due]
        yield from ((work.placed.uid, event) for event in work.shares.shown(work.index, due, images))

    def _give_up(self, error: Exception, alone: Alone) -> Iterator[tuple[Hashable, Event]]:
        """A forward failed: all that was drawn in it is answered, and the batch begins anew.

        Where something was refused, and it is not known of whom, each is drawn alone.
        """
        works, self._works = self._works, []
        self._images = RunningImages(self.pipe, self._images.capacity)
        self._counted = 0
        told = (400, str(error)) if isinstance(error, ValueError) else broken(error, len(works))
        for work in works:
            placed, index = work.placed, work.index
            if not isinstance(error, ValueError) or len(works) == 1:
                yield from self._settled(placed, index, Failed(index, *told))
                continue
            for event in alone(Batch((work.order,), (placed.batch.tickets[index],)), placed.wanted):
                if isinstance(event, Ended):
                    placed.abandoned += event.abandoned
                else:
                    yield placed.uid, replace(event, order=index)
            yield from self._settled(placed, index)

    def _settled(self, placed: Placed, index: int, event: Event | None = None) -> Iterator[tuple[Hashable, Event]]:
        """An order is answered, or nobody waits for it."""
        placed.left.discard(index)
        if event is not None:
            yield placed.uid, event
        if not placed.left:
            forwards, self._counted = self._images.forwards - self._counted, self._images.forwards
            yield placed.uid, Ended(forwards, placed.abandoned)


def asked(pipe: Pipeline, orders: Sequence[Order]) -> dict[str, Any]:
    """The options of a call that draws orders which are kin."""
    first, subjects = orders[0], [order.subject for order in orders for _ in order.seeds]
    arguments: dict[str, Any] = dict(first.law)
    arguments["class_labels" if pipe.transformer.spec.classes else "prompt"] = subjects
    if any(order.negative for order in orders):
        arguments["negative_prompt"] = [order.negative for order in orders for _ in order.seeds]
    if first.pictures:
        arguments |= edited(pipe, first, len(subjects))
    if first.size is not None:
        arguments["height"], arguments["width"] = first.size
    seeds = [seed for order in orders for seed in order.seeds]
    return arguments | {"method": first.method, "preset": first.preset, "image_size": first.image_size, "seed": seeds}


def edited(pipe: Pipeline, order: Order, rows: int) -> dict[str, Any]:
    """The options of a call in which the pictures of an order are edited; each of so many images is read alike."""
    if pipe.edits == "repaint":
        return {"image": order.pictures[0], "mask_image": order.mask}
    return {"image": [list(order.pictures)] * rows}


def broken(error: Exception, count: int) -> tuple[int, str]:
    """The status and the words for `count` orders that were drawn when something broke; it is logged."""
    if isinstance(error, torch.OutOfMemoryError):
        log.warning("out of memory in a batch of %d orders", count)
        torch.cuda.empty_cache()
        return 503, "the batch did not fit the device's memory: ask for fewer images"
    log.error("a batch of %d orders failed", count, exc_info=error)
    return 500, "the images could not be drawn"
