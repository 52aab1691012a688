"""What draws in a replica of Ray Serve (`ray.py`): several models, each in a thread of its own, by running batches."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from weakref import WeakSet

import torch

from vargen.server import logs
from vargen.server.desk import Desk
from vargen.server.errors import Refusal
from vargen.server.metrics import Metrics
from vargen.server.options import Options
from vargen.server.orders import Card, Ended, Event, Failed, Order
from vargen.server.painter import load
from vargen.server.running import broken
from vargen.server.threads import Thread

HUNG = 30.0  # seconds beyond the longest deadline after which a forward is taken for stuck


class Studio:
    """A model that is loaded: its thread, and the desk where orders for it wait."""

    def __init__(self, spec: str, options: Options) -> None:
        joins = options.batching == "continuous"
        self._thread = Thread(lambda: load([spec], options.device, options.fast), options.batch_size, joins=joins)
        self._metrics, self._told = Metrics(), 0.0
        limits = {"batch_size": options.batch_size, "max_queue": sys.maxsize}  # Ray bounds what comes
        self._desk = Desk(self._thread, self._metrics, batch_wait=options.batch_wait, **limits)
        self._loop, self._working, self._over = asyncio.get_running_loop(), AsyncExitStack(), False

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

    async def draw(self, order: Order, seconds: float, alone: bool) -> AsyncIterator[Event]:
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
        while not self._desk.idle:
            await asyncio.sleep(0.02)
        await self._working.aclose()
        await asyncio.to_thread(self._thread.stop)
        gc.collect()
        torch.cuda.empty_cache()  # where there is CUDA

    def __del__(self) -> None:
        """Ray calls this in a thread, and waits for it, before another model is loaded."""
        if not self._over:
            self._over = True
            with suppress(RuntimeError):  # the loop is closed: the replica ends
                asyncio.run_coroutine_threadsafe(self.close(), self._loop).result()


class Drawer:
    """Draws orders of any model that is served."""

    def __init__(self, options: Options) -> None:
        logs.start()
        self._options, self._specs = options, dict(zip(options.names, options.model, strict=True))
        self._studios = WeakSet[Studio]()

    async def studio(self, model: str) -> Studio:
        """A model, loaded; Ray Serve keeps it, and so many others."""
        studio = Studio(self._specs[model], self._options)
        await studio.open()
        self._studios.add(studio)
        return studio

    async def card(self, model: str) -> Card:
        """What a model is drawn with."""
        return (await self.studio(model)).card

    async def draw(self, order: Order, seconds: float, alone: bool) -> AsyncIterator[Event]:
        """What becomes of an order, the last event is `Ended`. `alone`: nobody may be drawn beside it."""
        try:
            studio = await self.studio(order.model)
        except Exception as error:
            yield Failed(0, *broken(error, 1))
            yield Ended(0, 0)
            return
        async for event in studio.draw(order, seconds, alone):
            yield event

    def check_health(self) -> None:
        """RuntimeError where Ray should start another replica instead of this one."""
        if any(studio.stuck(self._options.deadline + HUNG) for studio in self._studios):
            raise RuntimeError("a thread that draws is stuck, or has died")
