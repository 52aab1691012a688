"""What runs in the replicas of Ray Serve, without Ray: models that are loaded and given up, calls that die.

tests/test_server_ray.py has the same on a cluster.
"""

import asyncio
import io
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
from vargen.server.orders import Done, Ended, Failed, Order, Shown

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
    # Those drawn together, and the one alone; a class that was read is not read again.
    assert sum(ended.forwards for _, ended in [*drawn, again, last]) >= 2 * 35
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
