"""What a running batch has read of prompts is of use under the same weights alone."""

import gc
import weakref

import chameleon
import pytest
import torch
from test_prefixes import LAW, LONG, alone, drawn, pipe

from vargen.pipelines.running import RunningImages

__all__ = ["pipe"]


def change_in_place(pipe):
    with torch.no_grad():
        next(pipe.transformer.parameters()).mul_(1.5)


def change_by_data(pipe):
    for value in pipe.transformer.parameters():
        value.data.mul_(1.3)


def change_the_model(pipe):
    pipe.register_modules(transformer=chameleon.lumina(seed=4))


def change_the_dtype(pipe):
    pipe.to(torch.float64)


def change_the_order(pipe):
    """What sums and first values do not tell."""
    with torch.no_grad():
        for name, value in pipe.transformer.named_parameters():
            if "attn" in name and value.dim() == 2 and len(value) > 8:
                value[8:] = value[8:].flip(0).clone()


CHANGES = [change_in_place, change_by_data, change_the_model, change_the_dtype, change_the_order]


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_read_anew(pipe, change):
    batch = RunningImages(pipe, 2)
    for step in (lambda _: None, change):
        step(pipe)
        batch.admit(prompt=LONG, seed=3, **LAW)
        out = drawn(batch)[3].partial
        assert torch.equal(out.tokens[0], alone(pipe, LONG, 3))
        assert out.trace.cached_tokens == 0


@pytest.mark.parametrize("change", CHANGES[:3])
def test_nobody_joins_those_under_other_weights(pipe, change):
    """They wait until those that run are done, and traces say which weights drew."""
    batch = RunningImages(pipe, 4)
    (first,) = batch.admit(prompt="a boat", seed=1, **LAW)
    batch.step()
    batch.step()
    change(pipe)
    (second,) = batch.admit(prompt=LONG, seed=2, **LAW)
    while batch.drawing:
        assert not (first in batch.running and second in (*batch.running, *batch.joining))
        batch.step()
    assert torch.equal(second.partial.tokens[0], alone(pipe, LONG, 2))
    *_, last = pipe.stream(prompt=LONG, seed=2, **LAW)
    weights = [one.trace.drawn["weights"] for one in (first.partial, second.partial, last)]
    assert weights[0] != weights[1] == weights[2]


def test_weights_are_those_that_draw_and_not_those_of_who_asked(pipe):
    """Changed after one was asked for, drawn, and changed back: what was read meanwhile is of no use."""
    batch, part = RunningImages(pipe, 2), pipe.transformer.decoder.model.layers[0].self_attn.o_proj.weight
    before = part.detach().clone()
    (image,) = batch.admit(prompt=LONG, seed=3, **LAW)
    with torch.no_grad():
        part.mul_(-1)
    changed = alone(pipe, LONG, 3)
    drawn(batch)
    assert torch.equal(image.partial.tokens[0], changed)
    with torch.no_grad():
        part.copy_(before)
    batch.admit(prompt=LONG, seed=3, **LAW)
    assert torch.equal(drawn(batch)[3].partial.tokens[0], alone(pipe, LONG, 3))


def test_nothing_is_kept_of_a_model_that_is_gone(pipe):
    batch = RunningImages(pipe, 2)
    batch.admit(prompt=LONG, seed=3, **LAW)
    drawn(batch)
    assert len(batch.prefixes)
    gone = weakref.ref(pipe.transformer)
    pipe.register_modules(transformer=chameleon.lumina(seed=4))
    batch.admit(prompt="sea", seed=3, **LAW)
    drawn(batch)
    pipe._runners.clear()
    gc.collect()
    assert gone() is None
    batch.admit(prompt="sea", seed=3, **LAW)
    assert torch.equal(drawn(batch)[3].partial.tokens[0], alone(pipe, "sea", 3))


def test_who_looks_at_the_model_sees_every_forward(pipe):
    batch, seen = RunningImages(pipe, 2), []
    for hooked in (False, True, True):
        if hooked:
            pipe.transformer.decoder.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
        (image,) = batch.admit(prompt=LONG, seed=3, **LAW)
        drawn(batch)
        assert image.partial.trace.cached_tokens == 0
    assert seen
