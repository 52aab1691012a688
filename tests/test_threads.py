"""Threads: few where steps are short, as many as before afterwards, and two processes that bear each other."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from every_kind import ASKED

import vargen
from vargen.engine import threads
from vargen.engine.threads import ALL, BYTES, LONG, PRODUCTS, Threads


@pytest.fixture
def two():
    had = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(had)


def test_short_products_take_one_thread_and_long_ones_all():
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Conv2d(1, 1, 3))
    tokens = int(LONG * PRODUCTS / 256**2)
    assert [Threads(model).of(8, n) for n in (1, tokens - 1, tokens + 2)] == [1, 1, 8]
    assert [Threads(model).of(8, 1, seen) for seen in (BYTES * LONG * 0.9, BYTES * LONG * 1.1)] == [1, 8]
    wide = torch.nn.Linear(4096, 4096, device="meta")
    assert Threads(wide).of(8, 1) == 8  # of another device
    assert Threads(torch.nn.Conv2d(1, 1, 3)).of(8, 1) == Threads(object()).of(8, 1) == ALL.of(8, 1) == 8


def test_large_weights_take_long_to_read(monkeypatch):
    monkeypatch.setattr(threads, "BYTES", 4 * 64**2 / LONG)
    assert Threads(torch.nn.Linear(64, 64)).of(8, 1) == 8
    assert Threads(torch.nn.Linear(64, 63)).of(8, 1) == 1


def test_afterwards_there_are_as_many_as_before(two):
    def fails():
        with Threads(torch.nn.Linear(8, 8)).step(1):
            raise KeyError(torch.get_num_threads())

    with pytest.raises(KeyError, match="1"):
        fails()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["raster", "next-scale", "mar", "flowar", "xar"])
def test_steps_of_every_loop_are_short_here(name, two):
    make, asked = ASKED[name]
    pipe, seen = make(), []
    layer = next(each for each in pipe.transformer.modules() if isinstance(each, torch.nn.ModuleList))[0]
    layer.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    for _ in pipe.stream(**asked, seed=0):
        assert torch.get_num_threads() == 2  # the caller's own work has what it had
    assert {*seen} == {1}


def cpu_seconds(code, count):
    """Of `count` processes at once that print theirs."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(count)]
    return [float(each.communicate()[0]) for each in running]


def test_two_processes_at_once_take_the_cpu_time_of_one_alone():
    """With a thread for every core each, theirs was four times as much, spent in waiting for each other."""
    code = """
        import time, torch, vargen
        torch.set_num_threads(2)
        pipe = vargen.load("pocket-llamagen", device="cpu")
        pipe.set_progress_bar_config(disable=True)
        times = []
        for _ in range(2):
            start = time.process_time()
            pipe([3], seed=0, method="ar", output_type="latent")
            times.append(time.process_time() - start)
        print(min(times))
    """
    (alone,) = cpu_seconds(code, 1)
    assert max(cpu_seconds(code, 2)) < 1.3 * alone


def test_threads_of_commands_do_not_spin_for_long():
    code = """
        import os, sys
        from vargen.commands import main
        assert "torch" not in sys.modules  # which looks once, as it is imported
        try:
            main.door("models", ["--help"])
        except SystemExit:
            print(os.environ["GOMP_SPINCOUNT"])
    """
    for said, found in ((None, "4000"), ("7", "7")):
        env = {**os.environ, "GOMP_SPINCOUNT": said} if said else dict(os.environ)
        if not said:
            env.pop("GOMP_SPINCOUNT", None)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == found


def test_what_is_drawn_does_not_hang_on_threads(two):
    pipe = vargen.load("pocket-llamagen", device="cpu")
    drawn = [pipe([3], seed=1, method="sjd-coupled:window=16", output_type="pt")]
    torch.set_num_threads(1)
    drawn.append(pipe([3], seed=1, method="sjd-coupled:window=16", output_type="pt"))
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)
