"""Workers as LitServe's processes: its queue brings batches, its loop (ours, `Loop`) draws them, its transport answers.

LitServe starts a worker for each device, and another where one dies; it runs the front (`app.py`) in a process of its
own. What is ours: who goes to a worker is decided at the desk, where hang-ups and deadlines are known, and a batch is
one item of LitServe's queue; a worker's events come back through LitServe's buffer under the batch's id; and what a
worker must know while it draws, until when each order is wanted, stands on the board, in memory that both share.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import torch
from fastapi import FastAPI
from litserve import LitAPI, LitServer
from litserve.loops import LitLoop
from litserve.utils import LitAPIStatus, LoopResponseType, ResponseBufferItem, WorkerSetupStatus

from vargen.server import logs
from vargen.server.app import Service, build
from vargen.server.desk import Desk
from vargen.server.options import Options
from vargen.server.orders import Batch, Begun, Card, Ended, Event, Hello

log = logging.getLogger(__name__)
HELLO = "hello"  # the id under which workers say that they are there
PATH = "/images"  # LitServe's name of our queue
SECONDS = 1.0  # between looks at whether the others live
EVERY = 0.02  # seconds between looks at the queue while something is drawn: each asks another process
HUNG = 30.0  # seconds behind the last deadline of its batch after which a worker is taken for stuck


class Loop(LitLoop):
    """Takes batches off the queue while there is room, and draws them."""

    _greeted = False
    _look = 0.0  # when the queue is looked at again, while something is drawn

    def run(
        self,
        lit_api: Any,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """One turn: a forward of what runs, or at most a second where nothing comes. LitServe calls it without end."""
        painter = lit_api.painter

        def send(uid: str, event: Hello | Event, consumer: int = 0) -> None:
            status: Any = LitAPIStatus.OK  # a string, whatever LitServe's annotation says
            self.put_response(transport, consumer, uid, event, status, LoopResponseType.STREAMING)

        try:
            if not self._greeted:
                self._greeted = True
                send(HELLO, Hello(os.getpid(), painter.cards))
            wait, due = (SECONDS, True) if painter.idle else (0.0, time.monotonic() >= self._look)
            while due and painter.room and (item := self.get_request(request_queue, timeout=wait)) is not None:
                consumer, uid, _, batch = item
                send(uid, Begun(os.getpid()), consumer)
                painter.place((uid, consumer), batch, _board(lit_api.board, batch))
                wait = 0.0
            self._look = time.monotonic() + EVERY if due else self._look
            if painter.idle:
                if not _parent_lives():
                    raise SystemExit(1)
                return
            for (uid, consumer), event in painter.turn():
                send(uid, event, consumer)
        except (OSError, EOFError):  # the server is gone, and its queue with it
            raise SystemExit(1) from None


def _board(board: Any, batch: Batch) -> Callable[[int], bool]:
    """Whether the order of a ticket is wanted, as the board says; a ticket may be somebody else's by now."""
    until = dict(zip(batch.tickets, batch.until, strict=True))
    return lambda ticket: board[ticket] == until[ticket] > time.monotonic()


def _parent_lives() -> bool:
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


class Studio(LitAPI):
    """What a worker is made of: its models, and the board."""

    def __init__(self, options: Options) -> None:
        super().__init__(api_path=PATH, stream=True, loop=Loop())
        self._options = options
        self.board: Any = None

    def setup(self, device: str) -> None:
        """Load the models, in the worker: no other process imports what they are made of."""
        from vargen.server.painter import Painter, load

        logs.start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the server stops this one in time
        if device == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // self._options.workers_per_device))
        pipes, joins = load(self._options.model, device, self._options.fast), self._options.batching == "continuous"
        self.painter = Painter(pipes, self._options.batch_size, joins=joins)


class Workers:
    """The engine of LitServe's workers, as the front sees it."""

    def __init__(self, server: "Server") -> None:
        self._server, self._cards = server, {}
        self.board: Any = ()

    @property
    def workers(self) -> int:
        """How many batches may run at a time."""
        return len(self._server.devices) * self._server.options.workers_per_device

    @property
    def ready(self) -> int:
        """How many workers could take a batch or run one."""
        try:
            states = self._server.workers_setup_status.values()
        except (OSError, EOFError):  # their keeper has died, and the server is about to end
            return 0
        return sum(state == WorkerSetupStatus.READY for state in states)

    def kept(self) -> bool:
        """Whether the process that keeps the queues lives."""
        try:
            return len(self._server.workers_setup_status) >= 0
        except (OSError, EOFError):
            return False

    @property
    def cards(self) -> dict[str, Card]:
        """What they draw with, by model."""
        return self._cards

    async def greeted(self) -> None:
        """Wait until a worker has said what it draws with."""
        buffer = self._server.response_buffer[HELLO]
        await buffer.event.wait()
        assert buffer.response_queue is not None
        hello, _ = buffer.response_queue[0]
        self._cards.update({card.model: card for card in hello.cards})

    async def run(self, batch: Batch) -> AsyncIterator[Event]:
        """Have a batch drawn. RuntimeError where its worker died."""
        uid, item = uuid4().hex, ResponseBufferItem(asyncio.Event(), deque())
        queue, answers = self._server.litapi_request_queues[PATH], item.response_queue
        assert answers is not None
        self._server.response_buffer[uid] = item
        worker = None
        try:
            queue.put((0, uid, time.monotonic(), batch))
            while True:
                while answers:
                    event, _ = answers.popleft()
                    worker = event.pid if isinstance(event, Begun) else worker
                    yield event
                    if isinstance(event, Ended):
                        return
                item.event.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(item.event.wait(), SECONDS)
                    continue
                self._look(worker, batch)
        finally:
            self._server.response_buffer.pop(uid, None)

    def _look(self, worker: int | None, batch: Batch) -> None:
        """RuntimeError where a batch's worker has died, or where nobody took the batch while it was wanted."""
        if worker is None and max(self.board[ticket] for ticket in batch.tickets) < time.monotonic():
            raise RuntimeError("no worker took the batch in time")
        if worker is None:
            return
        if not _lives(worker):
            raise RuntimeError(f"worker {worker} has died")
        if max(batch.until) + HUNG < time.monotonic():  # it should have seen long ago that nobody waits
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)  # LitServe starts another
            raise RuntimeError(f"worker {worker} was stuck, and has been stopped")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Server(LitServer):
    """LitServe's server with our routes instead of its own."""

    def __init__(self, options: Options, accelerator: str, key: str | None) -> None:
        self.options, self._key, self.engine = options, key, Workers(self)
        self.front_died: int | None = None  # its exit code, where it was not told to end
        self.service = Service(self.engine, options)
        studio, devices = Studio(options), options.devices or "auto"
        super().__init__(
            studio,
            accelerator=accelerator,  # type: ignore[arg-type]
            devices=devices,  # type: ignore[arg-type]
            workers_per_device=options.workers_per_device,
            timeout=False,  # deadlines are the desk's
            restart_workers=True,
        )
        context = multiprocessing.get_context("spawn")
        studio.board = self.engine.board = context.RawArray("d", self.engine.workers * options.batch_size)
        self.response_buffer[HELLO] = ResponseBufferItem(asyncio.Event(), deque())
        self.uvicorn_graceful_timeout = int(options.deadline) + 5

    def launch_inference_worker(self, lit_api: LitAPI) -> list[Any]:
        """LitServe's, in the first process; what that has started before is the keeper of the queues."""
        self._helpers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        return super().launch_inference_worker(lit_api)

    def _start_server(self, *arguments: Any, **options: Any) -> Any:
        """LitServe's; where the front dies, the server ends, so that whoever watches it can start another."""
        fronts = super()._start_server(*arguments, **options)
        threading.Thread(target=self._outlive, args=(fronts[0],), daemon=True).start()
        return fronts

    def _outlive(self, front: Any) -> None:
        front.join()
        if front.exitcode not in (0, -signal.SIGTERM, -signal.SIGINT):
            self.front_died = front.exitcode
        stop: Any = self._shutdown_event
        with contextlib.suppress(OSError, EOFError):  # the event's keeper may be gone as well
            stop.set()

    def register_endpoints(self) -> None:
        """Ours; LitServe's own are left out."""
        self.app = build(self.service, self._key, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The front's life: from the first worker that is ready until every request is answered."""
        logs.start()
        async with super().lifespan(app), self.service.desk.working():
            await self.engine.greeted()
            _stop_gently(self.service.desk)
            where, models = f"http://{self.options.host}:{self.options.port}", ", ".join(self.options.names)
            print(f"vargen: ready at {where} ({models}); {where}/docs says what it takes", file=sys.stderr, flush=True)
            watch = asyncio.create_task(_watch(self._helpers, self.engine.kept))
            yield
            watch.cancel()


async def _watch(helpers: list[int], kept: Callable[[], bool]) -> None:
    """End this process where the one that started it, or the keeper of its queues, is gone, and the keeper with it."""
    while _parent_lives() and await asyncio.to_thread(kept):
        await asyncio.sleep(SECONDS)
    for pid in helpers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    os._exit(1)


def _stop_gently(desk: Desk) -> None:
    """On SIGTERM or SIGINT take no more orders, and stop once those at the desk are done; a second Ctrl-C stops now."""
    loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)  # uvicorn's
    if not callable(stop):
        return

    async def when_idle() -> None:
        while not desk.idle:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)  # answers are on their way
        stop(signal.SIGTERM, None)

    def begin(number: int, frame: Any) -> None:
        if desk.open:
            desk.close()
            loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(when_idle())))
        elif number == signal.SIGINT:
            stop(signal.SIGTERM, None)
            stop(signal.SIGINT, None)

    tasks: list[asyncio.Task[None]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, begin)
