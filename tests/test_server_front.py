"""The front of Ray Serve without Ray: calls that die or are given up, and what an application is made of.

tests/test_server_ray.py has the same on a cluster.
"""

import asyncio
import re
import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("litserve", reason="the server is an extra: pip install 'vargen[serve]'")

from served import limits

from vargen.commands import main, serve
from vargen.core import registry
from vargen.server import ray
from vargen.server.metrics import Metrics
from vargen.server.orders import Card, Done, Ended, Failed, Order

ORDER = Order("small", "ar", None, (), None, None, 2, (7,))


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name in ("small", "small-scales"):
        monkeypatch.setitem(registry.MODELS, name, "small:PRESETS")


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
    without_ray(monkeypatch)
    with pytest.raises(ValueError, match=re.escape(words)):
        ray.app(args)


def without_ray(monkeypatch):
    for name in ("ray", "ray.serve"):
        monkeypatch.setitem(sys.modules, name, None)


def test_the_command_says_what_to_install(monkeypatch, capsys):
    without_ray(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SystemExit):
        main.guarded(serve.command, ["--ray", "--port", str(port)])
    said = capsys.readouterr().err
    assert said.startswith("vargen: this needs Ray Serve, pip install 'vargen[ray]'")
    assert len(said.splitlines()) == 1


class Fakes(SimpleNamespace):
    """Ray and Ray Serve, as far as an application is made with them; what they are told is kept."""

    def __init__(self, gpus):
        super().__init__(told={}, cluster_resources=lambda: {"CPU": 2.0, "GPU": gpus} if gpus else {"CPU": 2.0})

    def multiplexed(self, max_num_models_per_replica):
        self.told["models"] = max_num_models_per_replica
        return lambda method: method

    def ingress(self):
        return lambda kind: kind

    def deployment(self, kind):
        return self

    def options(self, name, **options):
        self.told[name] = options
        return self

    def bind(self, *arguments):
        return self


@pytest.mark.parametrize(
    ("gpus", "options", "share", "most"),
    [
        (4.0, {}, 1, 4),
        (4.0, {"workers_per_device": 2, "devices": 3}, 0.5, 6),
        (4.0, {"device": "cpu"}, 0, 1),
        (0, {"workers_per_device": 2}, 0, 2),
        (0, {"max_replicas": 5}, 0, 5),
    ],
)
def test_replicas_have_gpus(gpus, options, share, most, monkeypatch):
    fakes = Fakes(gpus)
    monkeypatch.setattr(ray, "module", lambda name: fakes)
    ray.application(limits(ray=True, **options))
    drawer = fakes.told["Drawer"]
    assert drawer["ray_actor_options"] == {"num_cpus": 1, "num_gpus": share}
    assert drawer["autoscaling_config"] == {"min_replicas": 1, "max_replicas": most, "target_ongoing_requests": 6}
    assert fakes.told["models"] == 3
    with pytest.raises(ValueError, match=f"expected at most {most}"):
        ray.application(limits(ray=True, min_replicas=most + 1, **options))


def test_a_gpu_that_nobody_has(monkeypatch):
    monkeypatch.setattr(ray, "module", lambda name: Fakes(0))
    with pytest.raises(ValueError, match="Ray knows no GPU"):
        ray.application(limits(ray=True, device="cuda"))
