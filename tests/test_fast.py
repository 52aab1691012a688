"""Replayed forwards. A CUDA graph fixes every number that the host knew and reads tensors where they were: so does a
traced function over the same buffers, which stands for it here on a CPU.
"""

import chameleon
import pytest
import small
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vargen.core import Block
from vargen.fast import KEPT, Replayed, captured
from vargen.prompting import PromptedPipeline

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LATENT = {"output_type": "latent", "seed": 3}


def traced(run, device):
    return make_fx(run)()


@pytest.fixture
def capture():
    return captured if torch.cuda.is_available() else traced


def replaying(pipe, capture):
    """The pipeline, its forwards replayed on any device."""
    pipe.runner = Replayed(pipe.transformer, capture)
    pipe._runner = lambda: pipe.runner
    return pipe


def without(pipe):
    """The pipeline in plain PyTorch, which runs its forwards anew."""
    pipe.fast = "off"
    return pipe


def classes():
    pipe = small.pipeline()
    pipe.drafter = small.llamagen(scale=1.4)
    return pipe.to(DEVICE)


def prompts():
    pipe = PromptedPipeline(chameleon.lumina(), chameleon.vqgan(), None, chameleon.text())
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(DEVICE)


METHODS = [
    "ar",
    "sjd:window=4",
    "sjd-coupled:window=5",
    "sjd-exact:window=4",
    "sjd-pac:window=4:tree=4",
    "zipar:window=2",
    "jacobi-2d:window=2",
    "speculative:length=2",
    "speculative-tree:tree=2-1",
]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_tokens(method, capture):
    plain, pipe = without(classes()), replaying(classes(), capture)
    for how in ({"guidance_scale": 2.0}, {"guidance_scale": 2.0, "cfg_interval": 9}, {"guidance_scale": 1.0}):
        want = plain([1, 2, 3], method=method, **how, **LATENT)
        # The second time from the graphs of the first, in a cache that is full of it.
        for got in [pipe([1, 2, 3], method=method, **how, **LATENT) for _ in range(2)]:
            assert torch.equal(got.tokens, want.tokens)
            assert got.trace.forwards == want.trace.forwards
        assert pipe([1, 2, 3], method=method, **how, **LATENT).trace.kernels["decode"] == "graph"


@pytest.mark.parametrize("method", ["ar", "sjd-coupled:window=4", "zipar:window=2"])
def test_padded_prompts(method, capture):
    """The padding is another in every call, in the same graphs."""
    plain, pipe = without(prompts()), replaying(prompts(), capture)
    for texts in (["a red boat", "sea"], ["sea", "a red boat"], ["the boat", "sea"], ["sea", "sea"]):
        want = plain(prompt=texts, method=method, guidance_scale=3.0, **LATENT)
        got = pipe(prompt=texts, method=method, guidance_scale=3.0, **LATENT)
        assert torch.equal(got.tokens, want.tokens)


def test_graphs_survive_a_change_of_batch_guidance_and_window(capture):
    plain, pipe = without(classes()), replaying(classes(), capture)
    calls = [
        ([1], {"guidance_scale": 2.0, "window": 4}),
        ([1, 2], {"guidance_scale": 2.0, "window": 4}),
        ([1, 2], {"guidance_scale": 1.0, "window": 6}),
    ]
    made = []
    for turn in range(2):
        for labels, how in calls:
            want = plain(labels, method="sjd-coupled", **how, **LATENT)
            got = pipe(labels, method="sjd-coupled", **how, **LATENT)
            assert torch.equal(got.tokens, want.tokens), (turn, how)
        made.append(pipe.runner.captures)
    # The first and the third call have caches of one shape, two rows, and so have the graphs of both.
    assert made[0] == made[1]
    assert len(pipe.runner._held) == KEPT


def test_images_under_way_do_not_share_a_cache(capture):
    plain, pipe = without(classes()), replaying(classes(), capture)
    wanted = [plain([label], method="ar", **LATENT).tokens.flatten(1) for label in (1, 2, 3)]
    streams = [pipe.stream([label], method="ar", seed=3) for label in (1, 2, 3)]
    tokens = [[part.tokens.clone() for part in parts] for parts in zip(*streams, strict=True)][-1]
    assert all(torch.equal(got, want) for got, want in zip(tokens, wanted, strict=True))
    assert len(pipe.runner._held) == 3  # those under way; the next call keeps few of them
    del streams
    pipe([1], method="ar", **LATENT)
    assert len(pipe.runner._held) <= KEPT


def test_a_cache_has_few_graphs(capture, monkeypatch):
    monkeypatch.setattr("vargen.fast.MOST", 2)
    plain, pipe = without(classes()), replaying(classes(), capture)
    want = plain([1, 2], method="jacobi-2d:window=2", **LATENT)
    for _ in range(2):
        assert torch.equal(pipe([1, 2], method="jacobi-2d:window=2", **LATENT).tokens, want.tokens)
    assert pipe.runner.captures == 2


def test_what_a_run_fixes_shows():
    """Were the host's numbers of the first block fixed in the graph, the last block's logits would differ."""
    model = small.llamagen()
    runner = Replayed(model, traced)
    with torch.inference_mode():
        condition = model.class_condition(torch.tensor([1]), guided=False)
        caches = model.make_cache(1), runner.make_cache(1)
        for each, cache in zip((model, runner), caches, strict=True):
            each.prefill(condition, cache)
        for slot in range(10):
            block = Block(torch.tensor([[slot]]), torch.tensor([[slot]]), slot, slot + 1)
            want, got = (each.decode(block, cache) for each, cache in zip((model, runner), caches, strict=True))
            assert torch.allclose(got, want, atol=1e-5)
    assert runner.captures == 1
