"""The server on Ray Serve: `vargen serve --ray`, or `serve run vargen.server.ray:app model=pocket-var,pocket-lumina`.

    Front   the HTTP side and its queue, without a model; each request is one streaming call of a drawer
    Drawer  draws (`studio.py`); Ray starts more of them where many requests wait, and others where one dies

A drawer loads a model when it is first asked for, and gives up the one that nobody has asked for longest. What a drawer
was drawing when it died is drawn once more by another. Ray is imported when something of this is called.
"""

import asyncio
import importlib
import signal
import socket
import sys
import time
from argparse import ArgumentParser
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, MutableSequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

from fastapi import FastAPI

from vargen.server import logs
from vargen.server.app import Service, build
from vargen.server.desk import Desk, Job
from vargen.server.errors import Refusal
from vargen.server.options import Options, add_flags, read
from vargen.server.orders import Batch, Begun, Card, Done, Ended, Event, Failed, Order

if TYPE_CHECKING:
    from vargen.server.studio import Studio

NAME = "vargen"  # of the application that `vargen serve --ray` runs
LISTS = ("model", "allowed_origins")
OF_RAY = ("host", "port")  # which `serve start` sets
HUNG = 30.0  # seconds beyond the longest deadline after which a forward is taken for stuck


def module(name: str) -> Any:
    """A module of Ray's. ValueError where there is none."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"this needs Ray Serve, pip install 'vargen[ray]': {error}") from None


class Board(list[float]):
    """Until when each order is wanted, by ticket; who draws it is told as soon as nobody waits."""

    def __init__(self, size: int) -> None:
        super().__init__([0.0] * size)
        self.left: dict[int, Callable[[], None]] = {}

    def __setitem__(self, ticket: Any, until: Any) -> None:
        super().__setitem__(ticket, until)
        if until == 0.0 and (told := self.left.pop(ticket, None)):
            told()


class Drawers:
    """The engine of Ray's replicas, as the front sees it."""

    def __init__(self, handle: Any, most: int, batch_size: int) -> None:
        self.workers = 2 * most  # so that batches which nobody joins find their next one waiting
        self._board, self.cards = Board(self.workers * batch_size), dict[str, Card]()
        self.board: MutableSequence[float] = self._board
        self._handle, self._streams = handle, handle.options(stream=True)

    @property
    def ready(self) -> int:
        """How many replicas could take a request."""
        serve = module("ray.serve")
        here = serve.get_replica_context().app_name
        found = serve.status().applications[here].deployments[self._handle.deployment_name]
        return found.replica_states.get("RUNNING", 0)

    async def meet(self, name: str) -> None:
        """Know what a model is drawn with: it is loaded somewhere. Refusal where it cannot be."""
        if name not in self.cards:
            try:
                call = self._handle.options(multiplexed_model_id=name).card
                self.cards[name] = await call.remote(name)
            except Exception as error:
                logs.write("model", model=name, error=str(error))
                raise Refusal(500, f"the model {name} could not be loaded") from None

    async def run(self, batch: Batch) -> AsyncIterator[Event]:
        """Have an order drawn. Ray's exception where its replica died."""
        (order,), (ticket,), (until,) = batch.orders, batch.tickets, batch.until
        handle = self._streams.options(multiplexed_model_id=order.model)
        events = asyncio.Queue[Event | Exception]()
        call = handle.draw.remote(order, until - time.monotonic(), batch.alone)
        self._board.left[ticket] = lambda: events.put_nowait(Ended(0, 1))
        listening = asyncio.create_task(_listen(call, events))
        try:
            yield Begun(0)
            event = None
            while not isinstance(event, Ended):
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Done | Failed):
                    self._board.left.pop(ticket, None)
                yield event
        finally:
            self._board.left.pop(ticket, None)
            listening.cancel()
            call.cancel()


async def _listen(call: Any, events: asyncio.Queue[Event | Exception]) -> None:
    try:
        async for event in call:
            events.put_nowait(event)
    except Exception as error:
        events.put_nowait(error)


class Gate(Desk):
    """A desk that sends every order on by itself: who is drawn together is decided where it is drawn."""

    def _joins(self, job: Job) -> bool:
        return not job.lost

    def _seats(self, job: Job) -> int:
        return int(len(self._running) < self._engine.workers * self._batch_size)


class Fronted(Service):
    """What the routes share: models are met when they are first asked for."""

    desk_type = Gate

    def __init__(self, drawers: Drawers, options: Options) -> None:
        super().__init__(drawers, options)
        self._drawers = drawers

    async def meet(self, *names: str) -> None:
        """Know what models are drawn with."""
        await asyncio.gather(*(self._drawers.meet(name) for name in names if name in self.options.names))


class Front:
    """The deployment that answers."""

    def __init__(self, drawers: Any, options: Options, key: str | None, most: int) -> None:
        logs.start()
        self._service, self._key = Fronted(Drawers(drawers, most, options.batch_size), options), key

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for this."""
        return build(self._service, self._key)

    async def stop(self) -> None:
        """Take no more requests; over once those that were taken are answered."""
        self._service.desk.close()
        while not self._service.desk.idle:
            await asyncio.sleep(0.05)


class Drawer:
    """The deployment that draws, with any model that is served; the only one that imports what models are made of."""

    def __init__(self, options: Options) -> None:
        from vargen.server.studio import Studio

        logs.start()
        self._make, self._options, self._specs = Studio, options, dict(zip(options.names, options.model, strict=True))
        self._studios: WeakSet[Studio] = WeakSet()

    async def studio(self, model: str) -> "Studio":
        """A model, loaded; Ray Serve keeps so many of them, see `application`."""
        studio = self._make(self._specs[model], self._options)
        await studio.open()
        self._studios.add(studio)
        return studio

    async def card(self, model: str) -> Card:
        """What a model is drawn with."""
        return (await self.studio(model)).card

    async def draw(self, order: Order, seconds: float, alone: bool) -> AsyncGenerator[Event, None]:
        """What becomes of an order; the last event is `Ended`. `alone`: nobody may be drawn beside it."""
        from vargen.server.running import broken

        try:
            studio = await self.studio(order.model)
        except Exception as error:
            yield Failed(0, *broken(error, 1))
            yield Ended(0, 0)
            return
        async for event in studio.draw(order, seconds, alone):
            yield event

    def check_health(self) -> None:
        """RuntimeError where another replica should be started instead of this one."""
        if any(studio.stuck(self._options.deadline + HUNG) for studio in self._studios):
            raise RuntimeError("a thread that draws is stuck, or has died")


def application(options: Options) -> Any:
    """The application that Ray Serve runs; a cluster must have been joined."""
    serve = module("ray.serve")
    usual = {"graceful_shutdown_timeout_s": options.deadline + 5, "logging_config": {"enable_access_log": False}}
    gpus = int(module("ray").cluster_resources().get("GPU", 0)) if options.device != "cpu" else 0
    if options.device == "cuda" and not gpus:
        raise ValueError("device cuda was asked for, but Ray knows no GPU")
    most = options.max_replicas or max(1, options.devices or gpus) * options.workers_per_device
    if options.min_replicas > most:
        raise ValueError(f"got min replicas {options.min_replicas}, expected at most {most}, as many as there may be")

    class Multiplexed(Drawer):
        @serve.multiplexed(max_num_models_per_replica=options.models_per_replica)
        async def studio(self, model: str) -> Any:
            return await super().studio(model)

    drawer = serve.deployment(Multiplexed).options(
        name="Drawer",
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 / options.workers_per_device if gpus else 0},
        max_ongoing_requests=2 * options.batch_size,
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": most,
            "target_ongoing_requests": options.batch_size,
        },
        **usual,
    )
    front = serve.deployment(serve.ingress()(Front)).options(
        name="Front", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=options.max_connections, **usual
    )
    return front.bind(drawer.bind(options), options, options.key(), most)


class _Words(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def app(args: Mapping[str, Any]) -> Any:
    """The application, for `serve run vargen.server.ray:app NAME=VALUE` and configuration files of Ray Serve.

    Names are those of the flags of `vargen serve`, `batch_size=8`; several values are a list, or between commas.
    """
    words, parser = ["--ray"], _Words(prog="vargen.server.ray:app", allow_abbrev=False)
    add_flags(parser)
    for name, value in args.items():
        if name in OF_RAY:
            raise ValueError(f"got {name}: Ray Serve's proxies listen where `serve start --http-{name}` says")
        values = value.split(",") if name in LISTS and isinstance(value, str) else value
        flag = f"--{name.replace('_', '-')}"
        for one in values if isinstance(values, list) else [values]:
            words += [] if str(one).lower() == "false" else [flag] if str(one).lower() == "true" else [f"{flag}={one}"]
    return application(read(parser, words))


def serve_images(options: Options) -> None:
    """Run the application until SIGTERM or Ctrl-C, in the cluster of this machine or of RAY_ADDRESS, or in one of its
    own; what was accepted is drawn before it ends.
    """
    ray, serve = module("ray"), module("ray.serve")
    before = signal.getsignal(signal.SIGINT)
    ray.init(include_dashboard=False)
    try:
        for number, hears in ((signal.SIGINT, before), (signal.SIGTERM, _stop)):
            signal.signal(number, hears)  # as before Ray came
        serve.start(http_options={"host": options.host, "port": options.port})
        _check_listens(options.host, options.port)
        front = serve.run(application(options), name=NAME)
        where = f"http://{options.host}:{options.port}"
        print(f"vargen: ready at {where} ({', '.join(options.names)})", file=sys.stderr, flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            front.stop.remote().result(timeout_s=options.deadline + 5)
        serve.delete(NAME)
    finally:
        ray.shutdown()


def _check_listens(host: str, port: int) -> None:
    """ValueError where Ray Serve ran before, and listens elsewhere."""
    for _ in range(50):
        with suppress(OSError), socket.create_connection((host, port), timeout=1.0):
            return
        time.sleep(0.1)
    raise ValueError(f"Ray Serve runs already, and not on port {port}: serve run vargen.server.ray:app joins it")


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
