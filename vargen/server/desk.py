"""The scheduler: requests wait at the desk until there are seats for their images, the first in line before all others.

Where a model's images join a batch that runs, a request goes to the workers as soon as there are seats. Of other models
a batch is made when a worker is free, and no sooner: the first in line leads, and those that are its kin (same model,
method, law, preset and size) fill the batch up. Who hangs up is taken off the queue; the board tells the worker that
nobody waits for that order any more.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, MutableSequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from vargen.server.errors import Refusal
from vargen.server.metrics import Metrics
from vargen.server.orders import Batch, Begun, Card, Done, Ended, Event, Failed, Order, Shown

log = logging.getLogger(__name__)


class Engine(Protocol):
    """Workers, wherever they are."""

    board: MutableSequence[float]  # by ticket, the time (`time.monotonic`) until which somebody waits

    @property
    def workers(self) -> int:
        """How many batches may run at a time."""
        ...

    @property
    def ready(self) -> int:
        """How many workers could take a batch or run one."""
        ...

    @property
    def cards(self) -> dict[str, Card]:
        """What they draw with, by model."""
        ...

    def run(self, batch: Batch) -> AsyncIterator[Event]:
        """Have a batch drawn. RuntimeError where its worker died."""
        ...


@dataclass(eq=False)
class Job:
    """A request at the desk."""

    order: Order
    until: float  # its deadline, in the time of `time.monotonic`
    placed: float
    events: asyncio.Queue[Shown | Done | Failed] = field(default_factory=asyncio.Queue)
    ticket: int | None = None  # while it is drawn
    began: float | None = None
    rows: int = 0  # images that were drawn when it began, its own among them
    shown: bool = False  # whether anything of it was sent
    lost: bool = False  # whether a worker died of it, or beside it: it is drawn once more, alone
    answered: bool = False

    async def next(self) -> Shown | Done:
        """What comes next. Refusal where the order cannot be drawn, or where the deadline has passed."""
        try:
            async with asyncio.timeout(self.until - time.monotonic()):
                event = await self.events.get()
        except TimeoutError:
            self.answered = True
            raise Refusal(504, "the deadline has passed before the images were done", code="deadline") from None
        self.answered = not isinstance(event, Shown)
        if isinstance(event, Failed):
            raise Refusal(event.status, event.message)
        return event


class Desk:
    """Takes orders while it is open, and has them drawn."""

    def __init__(
        self, engine: Engine, metrics: Metrics, *, batch_size: int = 16, batch_wait: float = 0.01, max_queue: int = 128
    ) -> None:
        self._engine, self._metrics = engine, metrics
        self._batch_size, self._batch_wait, self._max_queue = batch_size, batch_wait, max_queue
        self._waiting: deque[Job] = deque()  # first in line first
        self._running: dict[asyncio.Task[None], int] = {}  # with the seats that each has
        self._free: list[int] = []
        self._changed = asyncio.Event()
        self.open = True

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    def place(self, order: Order, seconds: float) -> Job:
        """Take an order that is to be done in so many seconds. Refusal where the desk is closed or the queue full."""
        if not self.open:
            raise Refusal(503, "the server is stopping and takes no more requests", code="stopping", retry_after=5)
        if len(self._waiting) >= self._max_queue:
            raise Refusal(429, f"{len(self._waiting)} requests wait already", code="queue_full", retry_after=1)
        now = time.monotonic()
        job = Job(order, now + seconds, now)
        behind = next((i for i, one in enumerate(self._waiting) if one.order.priority > order.priority), None)
        self._waiting.insert(len(self._waiting) if behind is None else behind, job)
        self._note()
        return job

    def leave(self, job: Job) -> None:
        """Nobody waits for this order any more: it is answered, its client has hung up, or it came too late."""
        if job in self._waiting:
            self._waiting.remove(job)
        if job.ticket is not None:
            self._engine.board[job.ticket] = 0.0
        self._note()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Batches are made while this is entered."""
        self._free = list(range(self._engine.workers * self._batch_size))
        task = asyncio.create_task(self._serve())
        try:
            yield
        finally:
            task.cancel()
            for other in self._running:
                other.cancel()

    def close(self) -> None:
        """Take no more orders; those that were taken are drawn."""
        self.open = False

    def _note(self) -> None:
        self._metrics.waiting.set(len(self._waiting))
        self._metrics.running.set(len(self._running))
        self._metrics.seats.set(sum(self._running.values()))
        self._changed.set()

    async def _serve(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._waiting and (seats := self._seats(self._waiting[0])):
                if time.monotonic() - self._waiting[0].placed < self._batch_wait and not self._joins(self._waiting[0]):
                    await asyncio.sleep(self._batch_wait)
                    continue
                task = asyncio.create_task(self._follow(self._gather()))
                self._running[task] = seats
                task.add_done_callback(self._over)
                self._note()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._note()

    def _joins(self, job: Job) -> bool:
        """Whether it goes to the workers by itself, to join whatever runs there."""
        card = self._engine.cards.get(job.order.model)
        return card is not None and card.joins and not job.lost

    def _seats(self, job: Job) -> int:
        """The seats that it would have, a whole worker's where nobody may join; 0 where there are not so many free.

        Who asks for more images than a worker has seats gets those that a worker has, one image after another.
        """
        wanted = min(len(job.order.seeds), self._batch_size) if self._joins(job) else self._batch_size
        free = self._engine.workers * self._batch_size - sum(self._running.values())
        return wanted if wanted <= free and self._free else 0

    def _gather(self) -> list[Job]:
        """Take what goes to a worker off the queue: the first in line, and its kin where nobody can join later."""
        first, room, chosen = self._waiting[0], self._batch_size, []
        if first.lost or self._joins(first):
            return [self._waiting.popleft()]
        for job in list(self._waiting):
            if not job.lost and job.order.kin == first.order.kin and len(job.order.seeds) <= room:
                room -= len(job.order.seeds)
                chosen.append(job)
                self._waiting.remove(job)
        return chosen

    async def _follow(self, jobs: list[Job]) -> None:
        """Have a batch drawn, and tell each of its jobs what became of it."""
        now, rows = time.monotonic(), sum(len(job.order.seeds) for job in jobs)
        rows = sum(self._running.values()) if self._joins(jobs[0]) else rows
        for job in jobs:
            job.ticket, job.began, job.rows = self._free.pop(), now, rows
            self._engine.board[job.ticket] = job.until
            self._metrics.waited.observe(now - job.placed)
        self._metrics.rows.observe(rows)
        tickets = tuple(job.ticket for job in jobs if job.ticket is not None)
        orders, until = tuple(job.order for job in jobs), tuple(job.until for job in jobs)
        batch = Batch(orders, tickets, until, alone=jobs[0].lost)
        left, again = dict(enumerate(jobs)), list[Job]()
        try:
            async for event in self._engine.run(batch):
                self._deal(event, left)
        except Exception as error:  # whatever it is, nobody may be left waiting
            log.warning("a batch of %d requests is lost: %s", len(jobs), error)
            again = [job for job in left.values() if not job.shown and not job.lost and self._wanted(job)]
        for job in left.values():  # the worker gave it up at its deadline, or died
            if job not in again:
                late = time.monotonic() >= job.until
                job.events.put_nowait(Failed(0, 504 if late else 500, "the images could not be drawn"))
        for job in jobs:
            assert job.ticket is not None
            self._free.append(job.ticket)
            job.ticket, job.lost = None, job in again
        self._waiting.extendleft(reversed(again))

    def _wanted(self, job: Job) -> bool:
        """Whether somebody waits for an order that is drawn."""
        return job.ticket is not None and self._engine.board[job.ticket] > time.monotonic()

    def _first(self, job: Job) -> None:
        """Something of a job is sent."""
        if not job.shown:
            self._metrics.first.observe(time.monotonic() - job.placed)
        job.shown = True

    def _deal(self, event: Event, left: dict[int, Job]) -> None:
        match event:
            case Shown():
                self._first(left[event.order])
                left[event.order].events.put_nowait(event)
            case Done() | Failed():
                job = left.pop(event.order)
                self._first(job)
                job.events.put_nowait(event)
                if isinstance(event, Done):
                    self._metrics.images.add(len(event.pictures), job.order.model)
                    self._metrics.tokens.add(event.drawn)
                    self._metrics.read.add(event.read + event.seen)
                    self._metrics.cached.add(event.cached)
            case Ended():
                self._metrics.abandoned.add(event.abandoned)
                self._metrics.forwards.add(event.forwards)
            case Begun():
                pass


def described(job: Job) -> dict[str, Any]:
    """What a log says of a job."""
    began = {} if job.began is None else {"waited": round(job.began - job.placed, 4), "batch": job.rows}
    return began | {"model": job.order.model, "method": job.order.method, "images": len(job.order.seeds)}
