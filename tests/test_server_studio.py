"""What runs in the replicas of Ray Serve, without Ray: models that are loaded and given up, calls that die.

tests/test_server_ray.py has the same on a cluster.
"""

import asyncio
import io
import re
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import small
from PIL import Image

pytest.importorskip("litserve", reason="the server is an extra: pip install 'vargen[serve]'")

from served import limits

from vargen.core import registry
from vargen.server import ray, studio
from vargen.server.metrics import Metrics
from vargen.server.orders import Card, Done, Ended, Failed, Order, Shown

ORDER = Order("small", "ar", None, (), None, None, 2, (7,))
PIPES = {"small": small.pipeline, "small-scales": small.scale_pipeline}


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name in PIPES:
        monkeypatch.setitem(registry.MODELS, name, "small:PRESETS")
    monkeypatch.setattr(studio, "load", lambda specs, device, fast: {name: PIPES[name]() for name in specs})


class Drawer(ray.Drawer):
    """Keeps what it has loaded, as Ray's multiplexing does."""

    def __init__(self, options):
        super().__init__(options)
        self.kept = {}

    async def studio(self, model):
        if model not in self.kept:
            self.kept[model] = await super().studio(model)
        return self.kept[model]


async def idle(drawer):
    while not all(one._desk.idle for one in drawer.kept.values()):
        await asyncio.sleep(0.01)


async def told(drawer, order, alone=False):
    return [event async for event in drawer.draw(order, 60, alone)]


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(file)))


def test_orders_of_two_models_are_drawn_together_and_each_is_told_its_own():
    async def play():
        drawer = Drawer(limits(ray=True))
        assert [(await drawer.card(name)).joins for name in PIPES] == [True, False]
        scales = replace(ORDER, model="small-scales", method="var")
        orders = [
            ORDER,
            replace(ORDER, seeds=(8, 9)),
            scales,
            replace(scales, seeds=(3,)),
            replace(ORDER, method="none"),
        ]
        found = await asyncio.gather(*(told(drawer, order) for order in orders), told(drawer, ORDER, alone=True))
        await idle(drawer)
        drawer.check_health()
        return [*found, await told(drawer, ORDER)]

    *drawn, refused, again, last = asyncio.run(play())
    for events in (*drawn, again, last):
        done, ended = events
        assert isinstance(done, Done)
        assert isinstance(ended, Ended)
        assert done.order == 0
    assert [len(done.pictures) for done, _ in drawn] == [1, 2, 1, 1]
    assert (
        sum(ended.forwards for _, ended in [*drawn, again, last]) >= 2 * 36
    )  # those drawn together, and the one alone
    assert isinstance(refused[0], Failed)
    assert refused[0].status == 400
    assert drawn[0][0].pictures == again[0].pictures == last[0].pictures
    alone = small.pipeline()(2, seed=7, method="ar", batch_size=1).images[0]
    assert np.array_equal(pixels(drawn[0][0].pictures[0]), np.asarray(alone))


def test_a_call_that_is_given_up_is_drawn_no_further():
    """The images that are left would be a thousand forwards."""

    async def play():
        drawer = Drawer(limits(ray=True, batch_size=1))
        call = drawer.draw(replace(ORDER, seeds=tuple(range(32)), partials=2), 60, False)
        assert isinstance(await anext(call), Shown)
        waiting = asyncio.ensure_future(anext(call))
        waiting.cancel()  # as Ray cancels a call
        await asyncio.wait([waiting])
        await call.aclose()
        await idle(drawer)
        return drawer.kept["small"]._metrics.forwards.value()

    assert asyncio.run(play()) < 10 * 36


def test_a_model_is_given_up_once_nobody_waits_for_its_images():
    async def play():
        drawer = Drawer(limits(ray=True))
        drawing = asyncio.create_task(told(drawer, ORDER))
        while not drawer.kept or drawer.kept["small"]._desk.idle:
            await asyncio.sleep(0)
        model = drawer.kept.pop("small")
        leaving = asyncio.create_task(model.__del__())  # as Ray calls it
        done, _ = await drawing
        await leaving
        assert isinstance(done, Done)
        assert not model._thread.ready
        assert not model._thread._thread.is_alive()
        assert not model.stuck(0.0)
        assert isinstance((await told(drawer, ORDER))[0], Done)  # loaded anew

    asyncio.run(play())


def test_what_is_stuck_is_not_healthy(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(ray, "HUNG", -limits().deadline)  # a turn may take no time at all

    async def play():
        drawer = Drawer(limits(ray=True))
        await drawer.card("small")
        drawer.check_health()
        monkeypatch.setattr("vargen.server.painter.Painter.turn", lambda painter: gate.wait() and iter(()))
        call = asyncio.create_task(told(drawer, ORDER))
        while drawer.kept["small"]._thread._since is None:
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="stuck"):
            drawer.check_health()
        call.cancel()

    asyncio.run(play())
    gate.set()


def test_a_model_that_does_not_load_is_answered(monkeypatch):
    def broken(specs, device, fast):
        raise RuntimeError("no such weights")

    monkeypatch.setattr(studio, "load", broken)
    failed, ended = asyncio.run(told(Drawer(limits(ray=True)), ORDER))
    assert (failed.status, ended.forwards) == (500, 0)


class Handle:
    """A handle of Ray's, of replicas that die as often as they are told to, in the middle of a call."""

    def __init__(self, deaths):
        self.deaths, self.calls = deaths, []
        self.draw = self.card = self

    def options(self, **options):
        return self

    def remote(self, order, seconds, alone):
        self.calls.append(call := Call(self, alone))
        return call


class Call:
    def __init__(self, handle, alone):
        self.handle, self.alone, self.cancelled = handle, alone, False
        self.dies, handle.deaths = handle.deaths > 0, handle.deaths - 1

    def cancel(self):
        self.cancelled = True

    async def __aiter__(self):
        await asyncio.sleep(0.01)
        if self.dies:
            raise RuntimeError("the actor has died")
        yield Done(0, (b"png",))
        yield Ended(5, 0)


def gate(handle, **more):
    engine = ray.Drawers(handle, 1, 4)
    engine.cards["small"] = Card("small", ((12, 12),), False)
    return engine, ray.Gate(engine, Metrics(), batch_size=4, **more)


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_what_a_replica_died_of_is_drawn_once_more(deaths):
    async def play():
        handle = Handle(deaths)
        _, desk = gate(handle)
        async with desk.working():
            job = desk.place(ORDER, 60)
            if deaths < 2:
                assert isinstance(await job.next(), Done)
            else:
                with pytest.raises(ray.Refusal, match="could not be drawn"):
                    await job.next()
            desk.leave(job)
            while not desk.idle:
                await asyncio.sleep(0.01)
        assert len(desk._free) == 8
        assert desk._metrics.abandoned.value() == 0
        return [call.alone for call in handle.calls]

    assert asyncio.run(play()) == [False, True][: deaths + 1]


def test_who_hangs_up_cancels_the_call():
    async def play():
        handle = Handle(0)
        _, desk = gate(handle)
        async with desk.working():
            job, other = desk.place(ORDER, 60), desk.place(ORDER, 60)
            await asyncio.sleep(0)
            while len(handle.calls) < 2:
                await asyncio.sleep(0)
            desk.leave(job)
            assert isinstance(await other.next(), Done)
            while not desk.idle:
                await asyncio.sleep(0.01)
        assert job.events.empty() or isinstance(job.events.get_nowait(), Failed)
        return desk._metrics.abandoned.value(), handle.calls[0].cancelled

    assert asyncio.run(play()) == (1, True)


def test_every_request_is_a_call_of_its_own_as_long_as_there_are_any():
    async def play():
        handle = Handle(0)
        _, desk = gate(handle, max_queue=99)
        async with desk.working():
            jobs = [desk.place(replace(ORDER, seeds=(1, 2, 3)), 60) for _ in range(12)]
            while len(handle.calls) < 8:  # of three images, in a gate of eight calls
                await asyncio.sleep(0)
            for job in jobs:
                await job.next()
        return len(handle.calls)

    assert asyncio.run(play()) == 12


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"port": 8001}, "got port: Ray Serve's proxies listen where `serve start --http-port` says"),
        ({"modell": "pocket-var"}, "unrecognized arguments: --modell=pocket-var"),
        ({"batch_size": "many"}, "argument --batch-size: invalid int value: 'many'"),
        ({"model": "pocket-var,pocket-vax"}, "unknown model 'pocket-vax'"),
        ({"model": ["pocket-var"]}, "pip install 'vargen"),
        ({"strict": True, "models_per_replica": 2, "log_prompts": "false"}, "pip install 'vargen"),
    ],
)
def test_what_an_application_is_made_of(args, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(ValueError, match=re.escape(words)):
        ray.app(args)
