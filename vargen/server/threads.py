"""The same application with its worker in a thread of this process: for whoever runs ASGI applications by other means.

    app = application(Options(model=("pocket-var",)))    # for uvicorn

One thread draws. There is no second process that a crash would leave alive: what starts this one
should look at `/healthz`.
"""

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, MutableSequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from vargen.server import logs
from vargen.server.app import Service, build
from vargen.server.options import Options
from vargen.server.orders import Batch, Begun, Card, Ended, Event
from vargen.server.painter import Painter, load


class Thread:
    """An engine of one thread; models are loaded in it when it starts."""

    workers = 1

    def __init__(self, make: Callable[[], Mapping[str, Any]], batch_size: int, *, joins: bool = True) -> None:
        self.board: MutableSequence[float] = [0.0] * batch_size
        self._make, self._how, self._painter = make, {"capacity": batch_size, "joins": joins}, None
        self._placed: queue.SimpleQueue[tuple[Callable[[Event], None], Batch] | None] = queue.SimpleQueue()
        self._since: float | None = None  # when what is drawn now was begun: a forward, or a batch that nobody joins

    @property
    def ready(self) -> int:
        """1 once the models are loaded."""
        return int(self._painter is not None)

    @property
    def cards(self) -> dict[str, Card]:
        """What it draws with, by model."""
        return self._cards

    def start(self) -> None:
        """Load the models."""
        painter = Painter(self._make(), **self._how)
        self._cards, self._painter = {card.model: card for card in painter.cards}, painter
        self._thread = threading.Thread(target=self._draw, args=(painter,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Draw no more, and give up the models; nobody may be waiting for images."""
        self._placed.put(None)
        self._thread.join()
        self._painter = None

    def stuck(self, seconds: float) -> bool:
        """Whether nothing is drawn any more: the thread has died, or been busy with one thing for longer than that."""
        since = self._since
        return not self._thread.is_alive() or (since is not None and time.monotonic() - since > seconds)

    def _draw(self, painter: Painter) -> None:
        """Take batches while there is room, and draw them, until None comes."""
        tellers, uids = dict[Hashable, Callable[[Event], None]](), itertools.count()
        while True:
            with contextlib.suppress(queue.Empty):
                while painter.room:
                    if (placed := self._placed.get(block=painter.idle)) is None:
                        return
                    tellers[uid := next(uids)], batch = placed
                    painter.place(uid, batch, lambda ticket: self.board[ticket] > time.monotonic())
            self._since = time.monotonic()
            for uid, event in painter.turn():
                tellers[uid](event)
                if isinstance(event, Ended):
                    del tellers[uid]
            self._since = None

    async def run(self, batch: Batch) -> AsyncIterator[Event]:
        """Have a batch drawn."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        yield Begun(0)

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._placed.put((tell, batch))
        while not isinstance(event := await events.get(), Ended):
            yield event
        yield event


def application(options: Options, make: Callable[[], Mapping[str, Any]] | None = None) -> FastAPI:
    """The server as an ASGI application. `make` gives pipelines by name; None: those that the options name."""

    def loaded() -> Mapping[str, Any]:
        return load(options.model, options.device, options.fast)

    engine = Thread(make or loaded, options.batch_size, joins=options.batching == "continuous")
    service = Service(engine, options)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        logs.start()
        await asyncio.to_thread(engine.start)
        async with service.desk.working():
            yield

    return build(service, options.key(), living)
