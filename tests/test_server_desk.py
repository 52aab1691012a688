"""The desk and the painter: who is drawn with whom, who is told what, and when a batch ends. No process, no HTTP."""

import asyncio
import io
import time
from dataclasses import replace

import pytest
import small
from PIL import Image

pytest.importorskip("litserve", reason="the server is an extra: pip install 'vargen[serve]'")

from vargen.server import logs
from vargen.server.desk import Desk
from vargen.server.errors import Refusal
from vargen.server.metrics import Metrics
from vargen.server.options import parsed
from vargen.server.orders import Batch, Begun, Card, Done, Ended, Failed, Order, Shown
from vargen.server.painter import Painter, described

ORDER = Order("small", "ar", None, (), None, None, 0, (1,))
LATE = time.monotonic() + 1e6


class Fake:
    """An engine that draws nothing: each batch waits until it is let go."""

    ready, cards = 1, {"small": Card("small", ((12, 12),), False)}

    def __init__(self, workers=1, size=4):
        self.workers, self.board, self.batches, self.gate = workers, [0.0] * (workers * size), [], asyncio.Event()
        self.dies = False

    async def run(self, batch):
        self.batches.append(batch)
        yield Begun(0)
        await self.gate.wait()
        if self.dies:
            raise RuntimeError("the worker has died")
        for index, order in enumerate(batch.orders):
            if self.board[batch.tickets[index]] > time.monotonic():
                yield Done(index, (b"png",) * len(order.seeds))
        yield Ended(7, 0)


def desk(engine, **limits):
    return Desk(engine, Metrics(), **{"batch_size": 4, "batch_wait": 0.0, **limits})


def test_kin_are_drawn_together_oldest_first_and_no_more_than_fit():
    async def play():
        engine = Fake()
        found = desk(engine)
        async with found.working():
            first = found.place(ORDER, 60)
            await asyncio.sleep(0.01)  # it is drawn alone: nobody else was there
            others = [replace(ORDER, seeds=(2, 3)), replace(ORDER, method="sjd"), replace(ORDER, seeds=(4, 5, 6))]
            jobs = [found.place(order, 60) for order in (*others, replace(ORDER, subject=3, seeds=(7,)))]
            engine.gate.set()
            for job in (first, *jobs):
                assert isinstance(await job.next(), Done)
            await asyncio.sleep(0.01)
            assert found.idle
            assert sorted(found._free) == [0, 1, 2, 3]
        return [[order.seeds for order in batch.orders] for batch in engine.batches]

    assert asyncio.run(play()) == [[(1,)], [(2, 3), (7,)], [(1,)], [(4, 5, 6)]]


@pytest.mark.parametrize(
    "change", [{"model": "b"}, {"method": "b"}, {"preset": "b"}, {"law": (("top_k", 3),)}, {"size": (8, 8)}], ids=str
)
def test_what_makes_a_stranger(change):
    assert replace(ORDER, **change).kin != ORDER.kin
    assert replace(ORDER, subject=4, seeds=(9, 9), partials=3).kin == ORDER.kin


def test_a_full_queue_and_a_closed_desk_refuse():
    async def play():
        engine = Fake()
        found = desk(engine, max_queue=2)
        async with found.working():
            jobs = [found.place(ORDER, 60)]
            await asyncio.sleep(0.01)
            jobs += [found.place(ORDER, 60) for _ in range(2)]
            with pytest.raises(Refusal) as full:
                found.place(ORDER, 60)
            found.leave(jobs[1])  # who hangs up makes room
            jobs[1] = found.place(ORDER, 60)
            found.close()
            with pytest.raises(Refusal) as closed:
                found.place(ORDER, 60)
            engine.gate.set()
            for job in jobs:  # what was taken is drawn
                await job.next()
        return full.value, closed.value

    full, closed = asyncio.run(play())
    assert (full.status, full.code, closed.status, closed.code) == (429, "queue_full", 503, "stopping")
    assert full.response.headers["retry-after"] == "1"


def test_deadlines_and_hang_ups_reach_the_board():
    async def play():
        engine = Fake()
        found = desk(engine)
        async with found.working():
            early, late = found.place(ORDER, 0.05), found.place(ORDER, 60)
            await asyncio.sleep(0.01)
            tickets = engine.batches[0].tickets
            assert [engine.board[ticket] for ticket in tickets] == [early.until, late.until]
            with pytest.raises(Refusal, match="deadline") as passed:
                await early.next()
            found.leave(early)
            assert engine.board[tickets[0]] == 0.0
            engine.gate.set()
            assert isinstance(await late.next(), Done)
        return passed.value.status

    assert asyncio.run(play()) == 504


def test_a_worker_that_dies_is_told_to_those_who_wait():
    async def play():
        engine = Fake()
        found = desk(engine)
        async with found.working():
            engine.dies = True
            engine.gate.set()
            jobs = [found.place(ORDER, 60) for _ in range(3)]
            for job in jobs:
                with pytest.raises(Refusal) as error:
                    await job.next()
                assert error.value.status == 500
            engine.dies = False
            assert isinstance(await found.place(ORDER, 60).next(), Done)
            await asyncio.sleep(0.01)
            assert sorted(found._free) == [0, 1, 2, 3]

    asyncio.run(play())


def test_what_a_worker_died_beside_is_drawn_once_more_and_alone():
    """An order that kills whoever draws it takes nobody else with it; who left, or saw a part, is not."""

    class Deadly(Fake):
        async def run(self, batch):  # pyright: ignore[reportIncompatibleMethodOverride]
            self.batches.append(batch)
            yield Begun(0)
            if any(order.partials for order in batch.orders):
                yield Shown(0, 0, 0, b"png")
            await self.gate.wait()
            if any(order.seeds == (9,) for order in batch.orders):
                raise RuntimeError("the worker has died")
            for index, order in enumerate(batch.orders):
                yield Done(index, (b"png",) * len(order.seeds))
            yield Ended(7, 0)

    async def play():
        engine = Deadly()
        found = desk(engine)
        async with found.working():
            jobs = [found.place(replace(ORDER, seeds=(seed,)), 60) for seed in (1, 9, 2, 3)]
            await asyncio.sleep(0.01)
            found.leave(jobs[3])
            engine.gate.set()
            for job in (jobs[0], jobs[2]):
                assert isinstance(await job.next(), Done)
            with pytest.raises(Refusal) as error:
                await jobs[1].next()
            alone = [[order.seeds for order in batch.orders] for batch in engine.batches]
            engine.batches.clear()
            seen = found.place(replace(ORDER, seeds=(9,), partials=1), 60)
            assert isinstance(await seen.next(), Shown)
            with pytest.raises(Refusal):
                await seen.next()
            await asyncio.sleep(0.01)
            assert sorted(found._free) == [0, 1, 2, 3]
            return error.value.status, alone, len(engine.batches)

    assert asyncio.run(play()) == (500, [[(1,), (9,), (2,), (3,)], [(1,)], [(9,)], [(2,)]], 1)


def test_several_workers_draw_at_a_time():
    async def play():
        engine = Fake(workers=2)
        found = desk(engine)
        async with found.working():
            for seed in range(3):
                found.place(replace(ORDER, method=str(seed)), 60)
            await asyncio.sleep(0.01)
            assert len(engine.batches) == 2
            assert not set(engine.batches[0].tickets) & set(engine.batches[1].tickets)

    asyncio.run(play())


@pytest.fixture(scope="module")
def painter():
    return Painter({"small": small.pipeline(), "scales": small.scale_pipeline(), "latents": small.latent_pipeline()})


def paint(painter, *orders, wanted=None):
    batch = Batch(orders, tuple(range(len(orders))))
    *events, ended = painter.paint(batch, wanted or (lambda ticket: True))
    assert isinstance(ended, Ended)
    return events, ended


@pytest.mark.parametrize(
    ("model", "method"),
    [("small", "ar"), ("small", "sjd-coupled:window=4"), ("small", "zipar:window=2"), ("scales", "var")],
)
def test_images_do_not_hang_on_the_batch(painter, model, method):
    orders = [replace(ORDER, model=model, method=method, subject=i, seeds=(40 + i, 50 + i)) for i in range(3)]
    together, ended = paint(painter, *orders)
    assert ended.forwards > 1
    assert sorted(event.order for event in together) == [0, 1, 2]
    alone = [paint(painter, order)[0][0] for order in orders]
    assert [event.pictures for event in sorted(together, key=lambda e: e.order)] == [event.pictures for event in alone]


def test_an_order_is_answered_when_its_own_rows_are_settled(painter):
    orders = [replace(ORDER, method="sjd:window=8", seeds=(seed,)) for seed in range(6)]
    paint(painter, orders[0])  # from here on its class was read
    forwards = [paint(painter, order)[1].forwards for order in orders]
    assert len(set(forwards)) > 2
    events, whole = paint(painter, *orders)
    assert [forwards[event.order] for event in events] == sorted(forwards)
    slow = [index for index, count in enumerate(forwards) if count == max(forwards)]
    events, ended = paint(painter, *orders, wanted=lambda ticket: ticket not in slow)
    assert {event.order for event in events} == set(range(6)) - set(slow)
    assert ended.abandoned == len(slow)  # they hold nobody up
    assert ended.forwards < whole.forwards == max(forwards)


def test_a_batch_ends_when_nobody_waits(painter):
    left = [3]

    def wanted(ticket):
        left[0] -= 1
        return left[0] > 0

    events, ended = paint(painter, ORDER, wanted=wanted)
    assert events == []
    assert ended == Ended(forwards=3, abandoned=1)


@pytest.mark.parametrize("model", ["small", "scales", "latents"])
def test_pictures_on_their_way(painter, model):
    method = {"small": "ar", "scales": "var", "latents": "mar"}[model]
    order = replace(ORDER, model=model, method=method, seeds=(1, 2), partials=2)
    events, _ = paint(painter, order, replace(order, partials=0, seeds=(3,)))
    shown = [event for event in events if isinstance(event, Shown)]
    assert {event.order for event in shown} == {0}
    for image in (0, 1):
        assert [event.number for event in shown if event.image == image] == list(range(len(shown) // 2))
    assert 1 <= len(shown) // 2 <= 2
    stream = painter._pipes[model].stream([0, 0], method=method, seed=[1, 2])
    on_their_way = {image.tobytes() for partial in stream for image in partial.images()}
    assert {Image.open(io.BytesIO(event.picture)).tobytes() for event in shown} <= on_their_way
    assert sum(isinstance(event, Done) for event in events) == 2


def test_only_what_is_wrong_in_a_batch_is_refused(painter):
    events, ended = paint(painter, ORDER, replace(ORDER, subject=99), replace(ORDER, subject=2))
    kinds = {event.order: type(event) for event in events}
    assert kinds == {0: Done, 1: Failed, 2: Done}
    assert next(event for event in events if event.order == 1).status == 400
    alone = paint(painter, replace(ORDER, subject=2))[1].forwards
    assert ended.forwards == 1 + alone  # the others were drawn together, and their classes read


def test_what_breaks_is_answered_and_logged(painter, caplog):
    for name in (logs.NAME, f"{logs.NAME}.painter"):
        caplog.set_level("ERROR", logger=name)
    events, _ = paint(painter, replace(ORDER, law=(("nonsense", 1.0),), model="nowhere"))
    assert [(event.order, event.status) for event in events if isinstance(event, Failed)] == [(0, 500)]


def test_cards_and_models_with_arguments(painter):
    cards = {card.model: card for card in painter.cards}
    assert cards["small"] == Card("small", ((12, 12),), False, joins=True)
    assert cards["scales"] == Card("scales", ((8, 8),), True, edits="repaint")
    assert described("latents", painter._pipes["latents"]).sizes == ((8, 8),)
    assert parsed("pocket-var:dtype=bfloat16:checkpoint=a=b") == (
        "pocket-var",
        {"dtype": "bfloat16", "checkpoint": "a=b"},
    )
    for wrong in ("pocket-var:colour=red", "pocket-var:dtype", "nowhere"):
        with pytest.raises(ValueError, match=r"expected one of|unknown model"):
            parsed(wrong)
