"""Replayed next-scale and continuous models. A traced function over the same buffers stands for a CUDA graph on a CPU:
it fixes every number that the host knew, and reads tensors where they were.
"""

import gc
import warnings
import weakref

import pytest
import small
import torch
from traced import Traced

from vargen.core.types import Denoising
from vargen.engine import caches, runners
from vargen.engine.caches import KEPT
from vargen.engine.graphs import weights
from vargen.engine.runners import ReplayedLatents, ReplayedScales, Runners
from vargen.samplers.contract import LatentTask
from vargen.samplers.latent import masked

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LATENT = {"output_type": "latent", "seed": 3}
SCALED = ["var", "code:scales=2", "code:scales=0"]
ROUNDS = ["mar:iterations=4", "disa:iterations=4", "csd:iterations=4", "csd:rule=paper:draft=3:iterations=4"]
SIZES = len({each.slots.shape[1] for each in masked(LatentTask(small.LATENTS.spec, torch.arange(1)), 4)})  # of groups


def capture():
    return None if DEVICE == "cuda" else Traced()


MAKE = {"next-scale": small.scale_pipeline, "continuous": small.latent_pipeline}


def pair(kind):
    """A pipeline in plain PyTorch, and one whose forwards are replayed on any device."""
    plain, pipe = MAKE[kind]().to(DEVICE), MAKE[kind]().to(DEVICE)
    plain.fast, pipe._runners = "off", Runners(capture())
    return plain, pipe


def runner(pipe, role="model"):
    return pipe._runners._kept[role][1]


def same(got, want):
    """On a CPU bit for bit; on CUDA, where graphs may take other kernels of the same product, nearly."""
    assert got.tokens.shape == want.tokens.shape
    assert torch.equal(got.tokens, want.tokens) if DEVICE == "cpu" else torch.allclose(got.tokens, want.tokens, 1e-3)
    assert (got.trace.forwards, got.trace.drafts_kept) == (want.trace.forwards, want.trace.drafts_kept)


@pytest.mark.parametrize("labels", [[1, 2, 3]])
@pytest.mark.parametrize("method", SCALED)
def test_next_scale_models_draw_the_same(method, labels):
    plain, pipe = pair("next-scale")
    for how in ({}, {"guidance_scale": 0.0}, {"cfg_interval": 1}, {"guidance_scale": 3.0, "seed": 9}):
        want = plain(labels, method=method, **LATENT | how)
        for _ in range(2):  # the second time from the graphs of the first, in a cache that is full of it
            got = pipe(labels, method=method, **LATENT | how)
            same(got, want)
        assert pipe(labels, method=method, **LATENT | how).trace.kernels == {"decode": "graph"}
        assert want.trace.kernels == {}


@pytest.mark.parametrize("labels", [[1, 2, 3]])
@pytest.mark.parametrize("method", ROUNDS)
def test_continuous_models_draw_the_same(method, labels):
    """Guidance grows from round to round; steps become fewer with `disa`; `csd` draws anew."""
    plain, pipe = pair("continuous")
    others = {"guidance_scale": 3.0, "temperature": 0.9, "seed": 9}
    for how in ({}, {}, {}, others, {"guidance_scale": 1.0}):  # a group is captured the second time, then replayed
        want, got = (each(labels, method=method, **LATENT | how) for each in (plain, pipe))
        same(got, want)
        assert want.trace.kernels == {}
        assert got.trace.kernels.get("head") == "graph"
        assert how is not others or got.trace.kernels["decode"] == "graph"
    drawing = runner(pipe, "drafter" if method.startswith("csd") else "model")
    assert len(drawing.steps) == 2 * SIZES  # guided or not; none of what is drawn anew


def test_shapes_beyond_the_most_run_as_they_are(monkeypatch):
    monkeypatch.setattr(runners, "GROUPS", 3)
    monkeypatch.setattr(runners, "STEPS", 2)
    plain, pipe = pair("continuous")
    for _ in range(3):
        same(pipe([1, 2], method="mar", **LATENT), plain([1, 2], method="mar", **LATENT))
    assert (len(runner(pipe).groups), len(runner(pipe).steps)) == (3, 2)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_other_solvers_run_as_they_are(solver):
    plain, pipe = pair("continuous")
    how = {"method": f"mar:solver={solver}:iterations=4:highest=950", **LATENT}
    want = plain([1, 2], **how)
    for noted in ({}, {"decode": "graph"}, {"decode": "graph"}):
        got = pipe([1, 2], **how)
        same(got, want)
        assert got.trace.kernels == noted


def test_any_number_of_steps_takes_the_same_graphs():
    plain, pipe = pair("continuous")
    made = []
    for steps, scale in ((8, 2.0), (3, 2.5), (1, 2.0), (12, 1.5)):
        how = {"method": f"mar:iterations=4:steps={steps}", "guidance_scale": scale, **LATENT}
        same(pipe([1, 2], **how), plain([1, 2], **how))
        made.append(len(runner(pipe).steps))
    assert made == [SIZES] * 4


@pytest.mark.parametrize("kind", MAKE)
def test_batch_and_guidance_change_between_calls(kind):
    plain, pipe = pair(kind)
    method = {"next-scale": "code:scales=2", "continuous": "disa:iterations=3"}[kind]
    made = []
    for _ in range(2):
        for labels, scale in (([1], 2.0), ([1, 2], 2.0), ([3, 2], 0.0)):
            how = {"method": method, "guidance_scale": scale, **LATENT}
            same(pipe(labels, **how), plain(labels, **how))
        found = runner(pipe)
        made.append(found.caches.captures if kind == "next-scale" else len(found.steps))
    assert made[0] == made[1]


@pytest.mark.parametrize(("kind", "method"), [("next-scale", "code:scales=2"), ("continuous", "csd:iterations=4")])
def test_streams_under_way_do_not_disturb_one_another(kind, method):
    plain, pipe = pair(kind)
    labels = (1, 2, 3)
    wanted = [plain([label], method=method, **LATENT).tokens for label in labels]
    for _ in range(3):
        streams = [pipe.stream([label], method=method, seed=3) for label in labels]
        tokens = [[part.tokens.clone() for part in parts] for parts in zip(*streams, strict=True)][-1]
        assert all(torch.equal(got.view_as(want), want) for got, want in zip(tokens, wanted, strict=True))
    assert {"continuous": "head", "next-scale": "decode"}[kind] in pipe([1], method=method, **LATENT).trace.kernels


def test_caches_under_way_are_not_shared_and_few_are_kept(monkeypatch):
    found = ReplayedScales(small.var().to(DEVICE), capture())
    given = [found.make_cache(2, 14) for _ in range(4)]
    assert len({cache.keys.data_ptr() for cache in given}) == len(found.caches) == 4
    kept = {cache.keys.data_ptr() for cache in given[-KEPT:]}
    given.clear()
    assert len(found.caches) == KEPT
    again = found.make_cache(2, 14)
    assert again.keys.data_ptr() in kept
    monkeypatch.setattr(caches, "SPARE_BYTES", again.bytes - 1)
    other = found.make_cache(2, 5)
    assert {held.key for held in found.caches._held} == {(2, 14), (2, 5)}  # no room for the spare one
    assert len(found.caches) == 2
    del other
    assert len(found.caches) == 2
    del again  # too large to be kept beside the last one
    assert [held.key for held in found.caches._held] == [(2, 5)]


def test_a_shape_waits_before_it_is_captured():
    _, pipe = pair("continuous")
    sizes = []
    for _ in range(3):
        got = pipe([1, 2], method="mar", **LATENT)
        sizes.append((len(runner(pipe).groups), got.trace.kernels))
    both = {"head": "graph", "decode": "graph"}
    assert sizes == [(0, {"head": "graph"}), (6, both), (6, both)]


@pytest.mark.parametrize(("kind", "method"), [("next-scale", "var"), ("continuous", "mar")])
def test_what_cannot_be_captured_runs_as_it_is(kind, method):
    plain, pipe = pair(kind)

    def fails(run, device):
        raise RuntimeError("no room")

    pipe._runners = Runners(fails)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            got = pipe([1, 2], method=method, **LATENT)
            same(got, plain([1, 2], method=method, **LATENT))
            assert got.trace.kernels == {}
    said = [str(one.message) for one in caught if "no room" in str(one.message)]
    once = ["vargen: forwards are not captured as graphs, and slower: no room"]
    assert said == once * {"next-scale": 1, "continuous": 2}[kind]  # of the backbone, and of the head


@pytest.mark.parametrize(("kind", "method"), [("next-scale", "var"), ("continuous", "mar")])
def test_graphs_are_made_anew_where_weights_moved(kind, method):
    plain, pipe = pair(kind)
    for _ in range(3):
        pipe([1, 2], method=method, **LATENT)
    first, before = runner(pipe), weights(pipe.transformer)
    for which in (plain, pipe):
        for parameter in which.transformer.parameters():
            parameter.data = parameter.data * 1.5
    assert weights(pipe.transformer) != before
    for _ in range(3):
        same(pipe([1, 2], method=method, **LATENT), plain([1, 2], method=method, **LATENT))
    assert runner(pipe) is not first
    for which in (plain, pipe):  # in place: the graphs read what is there now
        for parameter in which.transformer.parameters():
            parameter.mul_(0.8)
    second = runner(pipe)
    same(pipe([1, 2], method=method, **LATENT), plain([1, 2], method=method, **LATENT))
    assert runner(pipe) is second
    pipe.fast = "off"
    pipe([1, 2], method=method, **LATENT)
    assert not pipe._runners._kept


@pytest.mark.parametrize(("kind", "method"), [("next-scale", "var"), ("continuous", "mar")])
def test_graphs_go_with_what_made_them(kind, method):
    """At once: they take a device's memory, and nothing may go round in circles."""
    pipe = MAKE[kind]().to(DEVICE)
    pipe._runners = Runners(None if DEVICE == "cuda" else lambda run, device: run)
    for _ in range(3):
        pipe([1, 2], method=method, **LATENT)
    found = runner(pipe)
    gone = weakref.ref(found)
    gc.collect()
    gc.disable()
    try:
        del found
        pipe._runners._kept.clear()
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", MAKE)
def test_who_is_replayed(kind):
    pipe = MAKE[kind]().to(DEVICE)
    made = {"next-scale": ReplayedScales, "continuous": ReplayedLatents}[kind]
    plain = Runners().of("model", pipe.transformer, "auto")
    assert isinstance(plain, made if DEVICE == "cuda" else type(pipe.transformer))
    assert isinstance(Runners(Traced()).of("model", pipe.transformer, "triton"), made)
    assert Runners(Traced()).of("model", pipe.transformer, "off") is pipe.transformer
    pipe.fast = "quick"
    with pytest.raises(ValueError, match="got fast 'quick', expected auto, off, triton"):
        pipe([1], **LATENT)


def test_a_path_keeps_what_it_went_through():
    """The steps of a replayed path are in one buffer, one after another."""
    head, task = small.mar().head.to(DEVICE), LatentTask(small.LATENTS.spec, torch.tensor([3, 4], device=DEVICE))
    noise, z = task.noise(torch.arange(4, device=DEVICE).expand(2, -1)), torch.randn(4, 4, 32, device=DEVICE)
    found = ReplayedLatents(small.mar().to(DEVICE), capture())
    with torch.inference_mode():
        for how in (Denoising(5, 2.0, highest=950), Denoising(7, 1.7, temperature=0.8, highest=950)):
            want, got = (each.path(z, how, noise) for each in (head, found.head))
            for name in ("states", "means", "log_variances"):
                assert torch.equal(getattr(got, name), getattr(want, name)), name
    assert len(found.steps) == 1


def test_guidance_wants_rows_to_guide_with():
    noise = LatentTask(small.LATENTS.spec, torch.tensor([3, 4])).noise(torch.arange(4).expand(2, -1))
    with pytest.raises(ValueError, match="got 2 rows to guide 2 with, expected the unconditional ones behind"):
        small.mar().head.path(torch.randn(2, 4, 32), Denoising(3, 2.0, highest=950), noise)
