"""Prompts that join a running batch are read once, in pieces, and never under other weights."""

from typing import Any

import chameleon
import pytest
import small
import torch

from vargen.core.types import Condition, KVCache
from vargen.engine import prefixes
from vargen.engine.prefixes import Prefix, Prefixes, Reading, digests
from vargen.pipelines.prompted import PromptedPipeline
from vargen.pipelines.running import RunningImages

METHOD = "sjd-exact:window=4"
LAW: dict[str, Any] = {"method": METHOD, "guidance_scale": 2.0}
LONG = "a red boat by the sea a red boat by the sea"


@pytest.fixture
def pipe():
    made = PromptedPipeline(chameleon.lumina(), chameleon.vqgan(), None, chameleon.text())
    made.set_progress_bar_config(disable=True)
    return made


def drawn(batch):
    """All that is asked for, drawn: tokens by seed."""
    out = {}
    while batch.drawing:
        out |= {image.seed: image for image in batch.step()}
    return out


def alone(pipe, prompt, seed, **more):
    *_, last = pipe.stream(prompt=prompt, seed=seed, **LAW, **more)
    return last.tokens[0]


def test_a_prompt_of_several_images_is_read_once(pipe):
    batch = RunningImages(pipe, 4)
    batch.admit(prompt=LONG, num_images_per_prompt=3, seed=5, **LAW)
    out = drawn(batch)
    _, mask = pipe.encode_prompt(LONG)
    opening = len(pipe.transformer.opening())
    both = int(mask.sum()) + 2 * opening  # of the prompt, and of what guidance is against
    assert sum(image.partial.trace.cached_tokens for image in out.values()) == 2 * both
    assert all(torch.equal(image.partial.tokens[0], alone(pipe, LONG, seed)) for seed, image in out.items())


def test_a_prompt_that_comes_again_takes_no_forward(pipe):
    batch, counts = RunningImages(pipe, 4, adaptive_window=False), []
    for seed, prompt in ((1, LONG), (1, LONG), (1, "the sea"), (1, LONG)):
        before = batch.forwards
        batch.admit(prompt=prompt, seed=seed, **LAW)
        out = drawn(batch)[seed].partial
        assert torch.equal(out.tokens[0], alone(pipe, prompt, seed))
        counts.append((batch.forwards - before, out.trace.forwards, out.trace.cached_tokens > 0))
    first, again, other, third = counts
    assert again == third == (first[0] - 1, first[1] - 1, True)
    assert not first[2]
    assert other[2]  # what guidance is against was read before


def test_classes_are_kept_too():
    pipe = small.pipeline()
    batch = RunningImages(pipe, 2, adaptive_window=False)
    forwards = []
    for _ in range(2):
        (image,) = batch.admit([1], seed=3, **LAW)
        drawn(batch)
        forwards.append(image.partial.trace.forwards)
    assert forwards[1] == forwards[0] - 1


@pytest.mark.parametrize("room", [0, 20_000])
def test_what_is_kept_is_bounded(pipe, room):
    batch = RunningImages(pipe, 2, prefix_bytes=room)
    for seed, prompt in enumerate(["a boat", "the sea", LONG, "red", "a boat", LONG]):
        batch.admit(prompt=prompt, seed=seed, **LAW)
        assert torch.equal(drawn(batch)[seed].partial.tokens[0], alone(pipe, prompt, seed))
        assert batch.prefixes.bytes <= room
    assert (len(batch.prefixes) > 1) == (room > 0)


def test_those_used_last_are_kept():
    def prefix(bytes_):
        return Prefix(torch.zeros(bytes_, dtype=torch.uint8), torch.zeros(0))

    pool = Prefixes(10)
    for name in "abc":
        pool.keep(name, prefix(3))
    pool.find("a")
    pool.keep("d", prefix(4))
    assert [name for name in "abcd" if pool.find(name)] == ["a", "c", "d"]
    pool.keep("e", prefix(11))  # which would take the place of all
    assert [name for name in "abcde" if pool.find(name)] == ["a", "c", "d"]
    pool.keep("a", prefix(1))
    assert pool.bytes == 8
    with pytest.raises(ValueError, match="got -1 bytes"):
        Prefixes(-1)


def in_pieces(monkeypatch, least=3):
    monkeypatch.setattr(prefixes, "PIECE", 1)
    monkeypatch.setattr(prefixes, "LEAST", least)


def test_long_prompts_are_read_in_pieces_between_the_steps_of_others(pipe, monkeypatch):
    in_pieces(monkeypatch)
    batch = RunningImages(pipe, 4)
    ar: dict[str, Any] = LAW | {"method": "ar"}
    (first,) = batch.admit(prompt="a boat", seed=1, **ar)
    while not batch.settled(first):
        batch.step()
    batch.admit(prompt=LONG, num_images_per_prompt=2, seed=2, **ar)
    settled = [batch.settled(first)]
    while len(batch.running) == 1:
        batch.step()
        settled.append(batch.settled(first))
    out = drawn(batch) | {1: first}
    for seed, prompt in ((1, "a boat"), (2, LONG), (3, LONG)):
        *_, last = pipe.stream(prompt=prompt, seed=seed, **ar)
        assert torch.equal(out[seed].partial.tokens[0], last.tokens[0])
    pieces = out[3].partial.trace.forwards - (last.forwards - 1)
    assert pieces == 6
    assert settled[-1] - settled[0] >= pieces - 1  # a token between any two pieces


@pytest.mark.parametrize("who", [(2,), (2, 3), (1, 2, 3)])
def test_one_that_leaves_while_it_is_read(pipe, monkeypatch, who):
    in_pieces(monkeypatch)
    batch = RunningImages(pipe, 4)
    images = {1: batch.admit(prompt="a boat", seed=1, **LAW)[0]}
    batch.step()
    images |= {image.seed: image for image in batch.admit(prompt=LONG, seed=[2, 3], **LAW, **TWO)}
    while not batch.joining:
        batch.step()
    batch.leave([images[seed] for seed in who])
    out = drawn(batch)
    assert set(out) == {1, 2, 3} - set(who)
    for seed, image in out.items():
        assert torch.equal(image.partial.tokens[0], alone(pipe, "a boat" if seed == 1 else LONG, seed))


TWO = {"num_images_per_prompt": 2}


def test_what_breaks_while_it_is_read_is_read_anew(pipe, monkeypatch):
    in_pieces(monkeypatch)
    batch = RunningImages(pipe, 4)
    batch.admit(prompt="a boat", seed=1, **LAW)
    batch.admit(prompt=LONG, seed=2, **LAW)
    prefill, calls = type(pipe.transformer).prefill, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of luck")
        return prefill(*arguments)

    monkeypatch.setattr(type(pipe.transformer), "prefill", failing)
    with pytest.raises(RuntimeError, match="out of luck"):
        drawn(batch)
    out = drawn(batch)
    assert torch.equal(out[2].partial.tokens[0], alone(pipe, LONG, 2))
    assert set(out) == {1, 2}


def test_rows_that_say_the_same():
    """Padding in front does not count; places do."""
    states = torch.randn(3, 4, 5)
    states[1, 1:] = states[0, :3]
    padding = torch.tensor([[False] * 4, [True, False, False, False], [False] * 4])
    keys = digests(Condition(states, padding))
    short = digests(Condition(states[:1, :3]))
    assert keys[1] == short[0]
    assert len(set(keys)) == 3
    places = torch.arange(4).expand(3, 3, 4)
    assert digests(Condition(states, padding, places)) != keys


def test_another_rows_keys_are_found_out(pipe, monkeypatch):
    """A planted fault: what was read of the first row is taken for all."""
    write = Reading.write

    def wrong(self, condition, cache):
        self._keys = [self._keys[0]] * len(self._keys)
        return write(self, condition, cache)

    monkeypatch.setattr(Reading, "write", wrong)
    batch = RunningImages(pipe, 2)
    batch.admit(prompt=LONG, seed=3, **LAW)
    assert not torch.equal(drawn(batch)[3].partial.tokens[0], alone(pipe, LONG, 3))


def test_a_cache_notes_its_condition():
    cache = KVCache(1, 2, 4, 1, 1, dtype=torch.float32, device=torch.device("cpu"))
    cache.note(Condition(torch.zeros(2, 2, 1), torch.tensor([[True, False], [False, False]])))
    assert cache.shift is not None
    assert cache.shift.tolist() == [[1], [0]]
    cache.note(Condition(torch.zeros(2, 2, 1)))
    assert cache.padding is None
    assert cache.shift is None
