"""Requests that join a running batch: who is sent when, who has which seat, and who is gone a forward later."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
import small

pytest.importorskip("litserve", reason="the server is an extra: pip install 'vargen[serve]'")

from vargen.pipelines.running import RunningImages
from vargen.server.desk import Desk
from vargen.server.metrics import Metrics
from vargen.server.orders import Batch, Begun, Card, Done, Ended, Failed, Order
from vargen.server.painter import Painter

ORDER = Order("small", "ar", None, (), None, None, 0, (1,))
LENGTH = 36  # forwards of an image


class Fake:
    """An engine whose batches end when they are let go, one by one."""

    ready, cards = 1, {"small": Card("small", ((12, 12),), False, joins=True), "other": Card("other", ((8, 8),), False)}

    def __init__(self, workers=1, size=4):
        self.board: Any = [0.0] * (workers * size)
        self.workers, self.batches, self.gates = workers, [], []

    async def run(self, batch):
        gate = asyncio.Event()
        self.batches.append([order.seeds for order in batch.orders])
        self.gates.append(gate)
        yield Begun(0)
        await gate.wait()
        for index, order in enumerate(batch.orders):
            yield Done(index, (b"png",) * len(order.seeds))
        yield Ended(7, 0)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)


def test_a_request_goes_as_soon_as_there_are_seats_and_in_turn():
    async def play():
        engine = Fake()
        metrics = Metrics()
        desk = Desk(engine, metrics, batch_size=4, batch_wait=0.0)
        async with desk.working():
            for seeds in ((1,), (2, 3), (4, 5), (6,)):
                desk.place(replace(ORDER, seeds=seeds), 60)
            await settle()
            sent = [list(engine.batches)]
            assert "vargen_seats_taken 3" in metrics.text()
            engine.gates[0].set()  # one seat more: enough for those that are next
            await settle()
            sent.append(list(engine.batches))
            desk.place(replace(ORDER, seeds=(7,), priority=1), 60)
            desk.place(replace(ORDER, seeds=(8,), priority=-1), 60)
            desk.place(replace(ORDER, model="other", seeds=(9,), priority=-2), 60)
            for _ in range(8):
                for gate in engine.gates:
                    gate.set()
                await settle()
            assert desk.idle
            assert sorted(desk._free) == [0, 1, 2, 3]
        return sent, engine.batches

    sent, batches = asyncio.run(play())
    assert sent == [[[(1,)], [(2, 3)]], [[(1,)], [(2, 3)], [(4, 5)]]]
    assert batches[3:] == [[(9,)], [(8,)], [(6,)], [(7,)]]


def test_more_images_than_there_are_seats():
    async def play():
        engine = Fake()
        desk = Desk(engine, Metrics(), batch_size=4, batch_wait=0.0)
        async with desk.working():
            job = desk.place(replace(ORDER, seeds=tuple(range(9))), 60)
            await settle()
            engine.gates[0].set()
            done: Any = await job.next()
            return len(done.pictures)

    assert asyncio.run(play()) == 9


@pytest.fixture
def painter():
    return Painter({"small": small.pipeline(), "scales": small.scale_pipeline()}, 4)


def turns(painter, count=1):
    return [event for _ in range(count) for event in painter.turn()]


def place(painter, uid, order, wanted=lambda ticket: True):
    painter.place(uid, Batch((order,), (0,)), wanted)


def test_who_comes_later_joins_and_draws_the_same(painter):
    alone = {}
    for seed in range(6):
        alone[seed], _ = painter.paint(Batch((replace(ORDER, seeds=(seed,)),), (0,)), lambda ticket: True)
    events = []
    for seed in range(6):
        place(painter, seed, replace(ORDER, seeds=(seed,)))
        events += turns(painter, 5)
    while not painter.idle:
        events += turns(painter)
    assert [uid for uid, event in events if isinstance(event, Done)] == [0, 1, 2, 3, 4, 5]
    assert all(event.pictures == alone[uid].pictures for uid, event in events if isinstance(event, Done))
    forwards = sum(event.forwards for _, event in events if isinstance(event, Ended))
    assert LENGTH + 5 * 5 < forwards < 3 * LENGTH  # where six alone are 6 * LENGTH


def test_the_next_request_goes_on_in_the_cache_of_the_last(painter):
    places = set()
    for seed in range(3):
        place(painter, seed, replace(ORDER, seeds=(seed,)))
        turns(painter, 2)
        places.add(painter._running._images._batch._seats.cache.keys.data_ptr())
        turns(painter, LENGTH)
        assert painter.idle
    assert len(places) == 1


def test_who_hangs_up_is_gone_a_forward_later(painter):
    here = [True]
    place(painter, "a", replace(ORDER, seeds=(1, 2, 3, 4)), lambda ticket: here[0])
    place(painter, "b", replace(ORDER, seeds=(5,)))
    turns(painter, 3)
    running = painter._running._images
    assert len(running.running) == 4
    here[0] = False
    assert turns(painter) == [("a", Ended(running.forwards, 1))]
    turns(painter)
    assert [image.seed for image in running.running] == [5]


def test_an_order_of_many_leaves_seats_to_others(painter):
    place(painter, "many", replace(ORDER, seeds=tuple(range(20))))
    turns(painter, 2)
    place(painter, "one", replace(ORDER, seeds=(99,)))
    ended = [uid for uid, event in turns(painter, 3 * (LENGTH + 2)) if isinstance(event, Done)]
    assert ended == ["one"]
    events = []
    while not painter.idle:
        events += turns(painter)
    assert len(next(event for uid, event in events if isinstance(event, Done)).pictures) == 20


def test_laws_of_their_own_in_one_batch(painter):
    laws = [(("guidance_scale", 3.0),), (("temperature", 0.7),), (("top_p", 0.9), ("guidance_scale", 1.0))]
    orders = [replace(ORDER, seeds=(4,), law=law) for law in laws]
    alone = [next(iter(painter.paint(Batch((order,), (0,)), lambda ticket: True))).pictures for order in orders]
    for uid, order in enumerate(orders):
        place(painter, uid, order)
    turns(painter)
    assert len(painter._running._images.running) == 3
    found = {uid: event.pictures for uid, event in turns(painter, LENGTH) if isinstance(event, Done)}
    assert [found[uid] for uid in range(3)] == alone


def test_other_models_wait_for_their_turn(painter):
    place(painter, "a", ORDER)
    turns(painter)
    place(painter, "b", replace(ORDER, model="scales", method="var"))
    place(painter, "c", ORDER)
    assert not painter.room
    done = [uid for uid, event in turns(painter, 3 * LENGTH) if isinstance(event, Done)]
    assert done == ["a", "b", "c"]


def test_nobody_joins_where_batches_are_static():
    painter: Any = Painter({"small": small.pipeline()}, 4, joins=False)
    assert not painter.cards[0].joins
    place(painter, "a", ORDER)
    turns(painter, 2)
    assert not painter.room
    place(painter, "b", ORDER)
    turns(painter, 2)
    assert len(painter._running._images.running) == 1


@pytest.mark.parametrize(
    ("error", "status", "uids"), [(RuntimeError("no"), 500, "ab"), (ValueError("logits that are NaN"), 400, "a")]
)
def test_what_breaks_in_a_forward_is_answered_and_the_next_one_is_drawn(painter, monkeypatch, error, status, uids):
    def broken(self):
        raise error

    for uid in uids:
        place(painter, uid, ORDER)
    with monkeypatch.context() as patched:
        patched.setattr(RunningImages, "step", broken)
        events = turns(painter)
    assert [(uid, event.status) for uid, event in events if isinstance(event, Failed)] == [
        (uid, status) for uid in uids
    ]
    assert painter.idle
    place(painter, "c", ORDER)
    assert any(isinstance(event, Done) for _, event in turns(painter, LENGTH))


def test_whose_images_are_refused_together_are_drawn_alone(painter, monkeypatch):
    monkeypatch.setattr(RunningImages, "step", lambda self: (_ for _ in ()).throw(ValueError("somebody's prompt")))
    for uid in ("a", "b"):
        place(painter, uid, ORDER)
    events = turns(painter)
    assert {uid for uid, event in events if isinstance(event, Done)} == {"a", "b"}
    assert [uid for uid, event in events if isinstance(event, Ended)] == ["a", "b"]


def test_a_long_deadline_is_looked_at_each_forward(painter):
    until = time.monotonic() + 1e6
    place(painter, "a", ORDER, lambda ticket: time.monotonic() < until)
    turns(painter, 3)
    until = 0.0
    assert [type(event) for _, event in turns(painter)] == [Ended]


def test_a_picture_on_its_way_that_cannot_be_made_is_answered(painter, monkeypatch):
    monkeypatch.setattr(RunningImages, "shown", lambda self, image: 1 / 0)
    place(painter, "a", replace(ORDER, partials=2))
    place(painter, "b", replace(ORDER, seeds=(2,)))
    events = turns(painter, LENGTH)
    assert [(uid, event.status) for uid, event in events if isinstance(event, Failed)] == [("a", 500)]
    assert [uid for uid, event in events if isinstance(event, Ended)] == ["a", "b"]
    assert [uid for uid, event in events if isinstance(event, Done)] == ["b"]
