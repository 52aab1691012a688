"""Continuous batching over pipelines: whoever joins, each image is the one that a call of its own draws."""

import copy
from typing import Any

import chameleon
import numpy as np
import pytest
import small
import torch
from traced import Traced

import vargen
from vargen.engine.runners import Runners
from vargen.pipelines import running
from vargen.pipelines.prompted import PromptedPipeline
from vargen.pipelines.running import RunningImages

TEXTS = ("a red boat", "a lake", "a very long walk along the beach at dawn, with a green palm and no clouds", "fog")


def classes():
    pipe = small.pipeline()
    pipe.drafter = small.llamagen(scale=1.4)
    return pipe


def prompts():
    pipe = PromptedPipeline(chameleon.lumina(), chameleon.vqgan(), None, chameleon.text())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked_for(pipe, seed) -> dict[str, Any]:
    """What image `seed` is asked for with."""
    law = {"guidance_scale": (2.0, 1.0, 3.5)[seed % 3], "temperature": (1.0, 0.9)[seed % 2]}
    law["top_p"] = (1.0, 0.95, 0.8)[seed // 2 % 3]
    if pipe.transformer.spec.classes:
        return {"class_labels": [seed % 5], **law}
    return {"prompt": TEXTS[seed % 4], **law} | ({"negative_prompt": "rain and fog"} if seed % 3 == 2 else {})


def joined(pipe, method, count, capacity, *, gone=0.0, asked=asked_for):
    """Tokens by seed of images that join at random steps; those whose client hangs up are missing."""
    batch, rng, left, out = RunningImages(pipe, capacity), np.random.default_rng(2), list(range(count)), {}
    while left or batch.drawing:
        if left and (not batch.drawing or rng.random() < 0.3):
            seed = left.pop(0)
            batch.admit(method=method, seed=seed, **asked(pipe, seed))
        for image in batch.step():
            out[image.seed] = image.partial.tokens[0]
            trace = image.partial.trace
            assert (trace.seeds, sum(trace.windows.values())) == ([image.seed], trace.forwards)
        batch.leave([image for image in (*batch.running, *batch.waiting) if rng.random() < gone])
    return out


def alone(pipe, method, seed, asked=asked_for):
    *_, last = pipe.stream(method=method, seed=seed, **asked(pipe, seed))
    return last.tokens[0].clone()


METHODS = ("ar", "sjd-exact:window=4", "sjd-coupled:window=4", "sjd-pac:window=4:tree=2-1", "zipar:window=2")


@pytest.mark.parametrize("make", [classes, prompts])
@pytest.mark.parametrize("method", METHODS)
def test_images_are_those_of_a_call_of_their_own(make, method):
    pipe = make()
    found = joined(pipe, method, 14, 4, gone=0.01)
    assert len(found) > 8
    assert all(torch.equal(tokens, alone(pipe, method, seed)) for seed, tokens in found.items())


@pytest.mark.parametrize("method", ["speculative:length=2", "speculative-tree:tree=2-1", "speculative:drafter=eagle"])
def test_drafters_go_along(method):
    pipe = classes()
    if "eagle" in method:
        from test_eagle import head_for

        pipe.drafter, method = head_for(), "speculative-tree:tree=2-1"
    found = joined(pipe, method, 10, 3)
    assert all(torch.equal(tokens, alone(pipe, method, seed)) for seed, tokens in found.items())
    batch = RunningImages(pipe, 1)
    (image,) = batch.admit([1], method=method, seed=0)
    batch.step()
    *_, last = pipe.stream([1], method=method, seed=0)
    assert batch.shown(image).trace.settings == last.trace.settings


@pytest.mark.parametrize("make", [classes, prompts])
def test_replayed_forwards(make):
    """Graphs read what is noted of prompts where it was when they were captured."""
    pipe, method = make(), "sjd-exact:window=4"
    wanted = [alone(pipe, method, seed) for seed in range(10)]
    pipe._runners = Runners(Traced())
    found = joined(pipe, method, 10, 3)
    assert all(torch.equal(found[seed], wanted[seed]) for seed in range(10))


def test_the_pocket_model_draws_the_images_of_ar():
    """In float32, images that join one after another: of every one the tokens of plain decoding."""
    pipe = vargen.load("pocket-llamagen", device="cpu")

    def asked(pipe, seed):
        return {"class_labels": [seed % 10]}

    found = joined(pipe, "sjd-exact:window=16", 6, 4, asked=asked)
    assert all(torch.equal(found[seed], alone(pipe, "ar", seed, asked)) for seed in range(6))


def test_kinds_wait_for_one_another_in_turn():
    pipe = classes()
    batch = RunningImages(pipe, 2)
    order = [("ar", 0), ("sjd:window=4", 1), ("ar", 2), ("ar", 3), ("sjd:window=4", 4)]
    for method, seed in order:
        batch.admit([seed % 5], method=method, seed=seed)
    done = []
    while batch.drawing:
        assert len({image.kind for image in batch.running}) <= 1
        done += [image.seed for image in batch.step()]
    assert sorted(done[:2]) == [0, 2]  # of one kind, beside each other
    assert sorted(done[2:]) == [1, 3, 4]


def test_what_cannot_be_drawn_is_refused_where_it_is_asked_for():
    batch = RunningImages(classes(), 2)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"class_labels": [999]}, "got class 999"),
        ({"class_labels": [0], "method": "var"}, "var"),
        ({}, "class"),
        ({"class_labels": [1], "priority": "x"}, "priority 'x'"),
    ]
    for given, words in wrong:
        with pytest.raises(ValueError, match=words):
            batch.admit(**given)
    assert not batch.drawing
    with pytest.raises(ValueError, match="capacity 0"):
        RunningImages(classes(), 0)
    with pytest.raises(ValueError, match="no raster model"):
        RunningImages(vargen.load("pocket-var", device="cpu"), 2)


@pytest.mark.parametrize("make", [classes, prompts])
def test_a_batch_that_has_run_out_goes_on_in_its_cache(make, monkeypatch):
    """What stands there of images before is never seen, whatever their prompts were."""
    places: set[int] = set()
    pipe, method = make(), "sjd-coupled:window=4"
    monkeypatch.setattr(Runners, "of", lambda self, role, model, fast: copy.copy(model))  # as where weights are packed
    batch: Any = RunningImages(pipe, 3)
    for seed in (2, 1, 3, 0):  # the longest prompt first, then shorter ones
        batch.admit(method=method, seed=seed, **{**asked_for(pipe, seed), "guidance_scale": 2.0})
        *_, done = [image for _ in range(99) for image in batch.step()]
        wanted = alone(pipe, method, seed, lambda pipe, seed: {**asked_for(pipe, seed), "guidance_scale": 2.0})
        assert torch.equal(done.partial.tokens[0], wanted)
        places.add(batch._batch._seats.cache.keys.data_ptr())
    assert len(places) == 1


@pytest.mark.parametrize(("make", "forwards"), [(classes, 19), (prompts, 3)])
def test_who_hangs_up_while_pointers_are_read_a_step_late(make, forwards):
    """The image that takes the seat brings all of its keys, those of the last step among them."""
    pipe, method = make(), "sjd-exact:window=2"
    wanted = alone(pipe, method, 2)
    pipe._runners = Runners(Traced())
    batch = RunningImages(pipe, 2)
    one, two = (batch.admit(method=method, seed=seed, **asked_for(pipe, seed))[0] for seed in (1, 2))
    for _ in range(forwards):
        batch.step()
    batch.leave([one])
    while batch.drawing:
        batch.step()
    assert torch.equal(two.partial.tokens[0], wanted)


@pytest.mark.parametrize("method", ["sjd-exact:window=4", "jacobi-2d:window=2", "speculative:length=2"])
@pytest.mark.parametrize("at", [1, 4])
def test_after_a_forward_that_broke_all_are_drawn_anew(method, at, monkeypatch):
    """At forward 4 somebody joins."""
    pipe = classes()
    batch = RunningImages(pipe, 3)
    images = [batch.admit(method=method, seed=seed, **asked_for(pipe, seed))[0] for seed in range(2)]
    for _ in range(at):
        batch.step()
    images += batch.admit(method=method, seed=2, **asked_for(pipe, 2)) if at == 4 else []

    def broken(*_):
        raise RuntimeError("no")

    with monkeypatch.context() as patched:
        for name in ("prefill", "decode"):
            patched.setattr(type(pipe.transformer), name, broken)
        with pytest.raises(RuntimeError, match="no"):
            batch.step()
    assert list(batch.waiting) == images
    assert not batch.running
    while batch.drawing:
        batch.step()
    assert all(torch.equal(one.partial.tokens[0], alone(pipe, method, one.seed)) for one in images)


def test_an_image_that_cannot_be_drawn_does_not_keep_others():
    """Its law is none; once it is given up, nothing of it is left."""
    pipe, method = classes(), "sjd-exact:window=4"
    pipe.transformer.cls_embedding.embedding_table.weight.data[3] = float("nan")
    batch = RunningImages(pipe, 2)
    (good,) = batch.admit([1], method=method, seed=0)
    batch.step()
    (bad,) = batch.admit([3], method=method, seed=1)
    batch.step()  # a block of the one that runs: it takes turns with what is read
    with pytest.raises(ValueError, match="NaN or infinite"):
        batch.step()
    batch.leave([bad, bad])
    while batch.drawing:
        batch.step()
    assert torch.equal(good.partial.tokens[0], alone(pipe, method, 0, lambda *_: {"class_labels": [1]}))


def test_the_model_may_be_another_one_between_images():
    pipe, method = classes(), "sjd-exact:window=4"
    batch = RunningImages(pipe, 2)
    for change in (
        lambda: None,
        lambda: pipe.register_modules(transformer=small.llamagen(scale=1.2)),
        lambda: pipe.to(torch.float64),
    ):
        change()
        (image,) = batch.admit(method=method, seed=2, **asked_for(pipe, 2))
        while batch.drawing:
            batch.step()
        assert torch.equal(image.partial.tokens[0], alone(pipe, method, 2))


def test_no_more_are_drawn_than_there_is_memory_for(monkeypatch):
    pipe = classes()
    row = pipe.transformer.make_cache(1, running.SPARE, running.SPARE).bytes
    for room, expected in ((0, 1), (3 * 2 * row / running.SHARE, 3), (1 << 40, 4), (None, 4)):
        monkeypatch.setattr(running, "free_memory", lambda _, room=room: room)
        batch, out, most = RunningImages(pipe, 4), {}, 0
        batch.admit([1], num_images_per_prompt=5, seed=0, method="sjd-exact:window=4")
        while batch.drawing:
            out |= {image.seed: image for image in batch.step()}
            most = max(most, len(batch.running))
        assert most == expected
        assert len(out) == 5
    assert torch.equal(out[4].partial.tokens[0], alone(pipe, "sjd-exact:window=4", 4, lambda *_: {"class_labels": [1]}))


def test_only_an_image_that_is_drawn_is_shown():
    batch = RunningImages(classes(), 2)
    (image,) = batch.admit([1], method="ar", seed=1)
    with pytest.raises(ValueError, match="expected one that is drawn now"):
        batch.shown(image)
    batch.step()
    assert batch.shown(image).settled == [1]
    batch.leave([image])
    with pytest.raises(ValueError, match="expected one that is drawn now"):
        batch.shown(image)
