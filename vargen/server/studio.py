"""A model that a replica of Ray Serve (`ray.py`) has loaded: it draws in a thread of its own, by running batches.

Whoever imports this imports all that models are made of.
"""

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import replace

import torch

from vargen.server.desk import Desk
from vargen.server.errors import Refusal
from vargen.server.metrics import Metrics
from vargen.server.options import Options
from vargen.server.orders import Card, Ended, Event, Failed, Order
from vargen.server.painter import load
from vargen.server.threads import Thread


class Studio:
    """A model that is loaded: its thread, and the desk where orders for it wait."""

    def __init__(self, spec: str, options: Options) -> None:
        joins = options.batching == "continuous"
        self._thread = Thread(lambda: load([spec], options.device, options.fast), options.batch_size, joins=joins)
        self._metrics, self._told = Metrics(), 0.0
        limits = {"batch_size": options.batch_size, "max_queue": sys.maxsize}  # Ray bounds what comes
        self._desk = Desk(self._thread, self._metrics, batch_wait=options.batch_wait, **limits)
        self._working, self._over = AsyncExitStack(), False
        # Ray awaits this of a model before it loads another. It is the object's and not its class's, so that Python,
        # which would not wait, does not call it.
        self.__del__ = self.close

    async def open(self) -> None:
        """Load the model."""
        await asyncio.to_thread(self._thread.start)
        await self._working.enter_async_context(self._desk.working())

    @property
    def card(self) -> Card:
        """What it draws with."""
        (card,) = self._thread.cards.values()
        return card

    def stuck(self, seconds: float) -> bool:
        """Whether it draws no more: its thread has died, or a forward has taken longer than so many seconds."""
        return not self._over and self._thread.stuck(seconds)

    async def draw(self, order: Order, seconds: float, alone: bool) -> AsyncGenerator[Event, None]:
        """What becomes of an order that is to be done in so many seconds. Who stops listening gives it up."""
        job = self._desk.place(order, seconds)
        job.lost = alone
        try:
            while not job.answered:
                yield replace(await job.next(), order=0)
        except Refusal as refusal:
            yield Failed(0, refusal.status, refusal.message)
        finally:
            self._desk.leave(job)
        forwards = self._metrics.forwards.value()
        told, self._told = forwards - self._told, forwards
        yield Ended(int(told), 0)

    async def close(self) -> None:
        """Give the model up, once nobody waits for images of it."""
        self._over = True
        while not self._desk.idle:
            await asyncio.sleep(0.02)
        await self._working.aclose()
        await asyncio.to_thread(self._thread.stop)
        gc.collect()
        torch.cuda.empty_cache()  # where there is CUDA
