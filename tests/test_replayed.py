"""Replayed forwards. A CUDA graph fixes every number that the host knew and reads tensors where they were: so does a
traced function over the same buffers, which stands for it here on a CPU.
"""

from dataclasses import replace

import chameleon
import every_kind
import pytest
import small
import torch
from traced import Traced

from vargen.core.dispatch import Kernels
from vargen.core.types import Block
from vargen.engine.caches import KEPT
from vargen.engine.replayed import Replayed
from vargen.engine.runners import Runners
from vargen.pipelines.prompted import PromptedPipeline
from vargen.pipelines.raster import RasterPipeline
from vargen.samplers.width import WidthPolicy
from vargen.samplers.window import Copied

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LATENT = {"output_type": "latent", "seed": 3}


@pytest.fixture
def capture():
    return None if torch.cuda.is_available() else Traced()


def replaying(pipe, capture):
    """The pipeline, its forwards replayed on any device."""
    pipe._runners = Runners(capture)
    return pipe


def caches(pipe):
    return pipe._runners.of("model", pipe.transformer, "auto").caches


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
    hows = [{"guidance_scale": 2.0}, {"guidance_scale": 2.0, "cfg_interval": 9}, {"guidance_scale": 1.0}]
    for how in hows[-1:] if method.startswith(("jacobi", "zipar")) else hows[:2]:  # these have many shapes to capture
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
    for texts in (["a red boat", "sea"], ["sea", "a red boat"], ["sea", "sea"]):
        want = plain(prompt=texts, method=method, guidance_scale=3.0, **LATENT)
        got = pipe(prompt=texts, method=method, guidance_scale=3.0, **LATENT)
        assert torch.equal(got.tokens, want.tokens)


@pytest.mark.parametrize("method", ["ar", "sjd-exact:window=4", "sjd-pac:window=4:tree=4", "zipar:window=2"])
@pytest.mark.parametrize("family", ["emu", "janus", "glm"])
def test_wrapped_decoders(family, method, capture):
    """transformers' layers, for prompts of any length in the same graphs."""
    made = {"emu": every_kind.emu, "janus": every_kind.janus, "glm": every_kind.glm}[family]
    plain, pipe = without(made().to(DEVICE)), replaying(made().to(DEVICE), capture)
    pipe.set_progress_bar_config(disable=True)
    plain.set_progress_bar_config(disable=True)
    how = {"method": method, **LATENT, **({} if family == "glm" else {"guidance_scale": 3.0})}
    captured = []
    for texts in ("sea", "a red boat", "a red sea"):
        want, got = plain(prompt=[texts, "sea"], **how), pipe(prompt=[texts, "sea"], **how)
        assert torch.equal(got.tokens, want.tokens)
        assert got.trace.kernels["decode"] == "graph"
        captured.append(caches(pipe).captures)
    assert method.startswith("zipar") or captured[0] == captured[2]


def test_graphs_survive_a_change_of_batch_guidance_and_window(capture):
    plain, pipe = without(classes()), replaying(classes(), capture)
    calls = [
        ([1], {"guidance_scale": 2.0, "window": 4}),
        ([1, 2], {"guidance_scale": 2.0, "window": 4}),
        ([1, 2], {"guidance_scale": 1.0, "window": 6}),
    ]
    made = []
    for turn in range(3):
        for labels, how in calls:
            want = plain(labels, method="sjd-coupled", **how, **LATENT)
            got = pipe(labels, method="sjd-coupled", **how, **LATENT)
            assert torch.equal(got.tokens, want.tokens), (turn, how)
        made.append(caches(pipe).captures)
    # The first and the third call have caches of one shape, two rows, and so have the graphs of both.
    assert made[1] == made[2]
    assert len(caches(pipe)._held) == KEPT


def test_images_under_way_do_not_share_a_cache(capture):
    plain, pipe = without(classes()), replaying(classes(), capture)
    wanted = [plain([label], method="ar", **LATENT).tokens.flatten(1) for label in (1, 2, 3)]
    streams = [pipe.stream([label], method="ar", seed=3) for label in (1, 2, 3)]
    tokens, under_way = [], 0
    for parts in zip(*streams, strict=True):
        tokens, under_way = [part.tokens.clone() for part in parts], len(caches(pipe))
    assert all(torch.equal(got, want) for got, want in zip(tokens, wanted, strict=True))
    assert under_way == 3
    assert len(caches(pipe)) == KEPT


def test_a_cache_has_few_graphs(capture, monkeypatch):
    monkeypatch.setattr("vargen.engine.graphs.MOST", 2)
    plain, pipe = without(classes()), replaying(classes(), capture)
    want = plain([1, 2], method="jacobi-2d:window=2", **LATENT)
    for _ in range(2):
        assert torch.equal(pipe([1, 2], method="jacobi-2d:window=2", **LATENT).tokens, want.tokens)
    assert caches(pipe).captures == 2


def test_what_a_run_fixes_shows():
    """Were the host's numbers of the first block fixed in the graph, the last block's logits would differ."""
    model = small.llamagen()
    runner = Replayed(model, Traced())
    with torch.inference_mode():
        condition = model.class_condition(torch.tensor([1]), guided=False)
        caches = model.make_cache(1), runner.make_cache(1)
        for each, cache in zip((model, runner), caches, strict=True):
            each.prefill(condition, cache)
        for slot in range(10):
            block = Block(torch.tensor([[slot]]), torch.tensor([[slot]]), slot, slot + 1)
            want, got = (each.decode(block, cache) for each, cache in zip((model, runner), caches, strict=True))
            assert torch.allclose(got, want, atol=1e-5)
    assert runner.caches.captures == 1  # of a token: a prefill is captured once it has come again


@pytest.mark.parametrize("method", ["sjd:window=6", "sjd-coupled:window=4:guess=left", "sjd-exact:window=4"])
def test_pointers_are_read_a_step_late(method, capture):
    """Until a row is near the end of its image; nothing else changes."""

    def pipeline():
        return RasterPipeline(small.llamagen(replace(small.CONFIG, side=6)), small.vq()).to(DEVICE)

    plain, pipe = without(pipeline()), replaying(pipeline(), capture)
    parts = [(x.settled, x.tokens.clone()) for x in plain.stream([1, 2, 3], method=method, guidance_scale=2.0, seed=3)]
    late = [(x.settled, x.tokens.clone()) for x in pipe.stream([1, 2, 3], method=method, guidance_scale=2.0, seed=3)]
    assert len(late) == len(parts)
    assert torch.equal(late[-1][1], parts[-1][1])
    assert late[-1][0] == parts[-1][0] == [36] * 3
    widest, behind = int(method.split("window=")[1].split(":")[0]), 0
    for step, (settled, _) in enumerate(late):
        before, now = parts[max(0, step - 1)][0], parts[step][0]
        far = step > 0 and all(n == 36 or n + 2 * widest < 36 for n in before)
        assert settled == (before if far else now)
        behind += settled != now
    assert behind > 3


def test_what_is_read_late_is_told_to_the_policy_once(capture):
    """Every step's tokens are told with its own width."""
    told = []
    for late in (False, True):
        pipe = RasterPipeline(small.llamagen(replace(small.CONFIG, side=6)), small.vq()).to(DEVICE)
        pipe = replaying(pipe, capture) if late else without(pipe)
        pipe._step_costs = lambda *_: dict.fromkeys((1, 4, 8), 1.0)
        told.append([])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WidthPolicy, "observe", lambda self, *seen: told[-1].append(seen))
            pipe([1, 2], method="sjd-coupled", guidance_scale=2.0, **LATENT)
    assert told[0] == told[1]
    assert len({width for width, _ in told[0]}) > 1


def test_a_capture_that_fails_is_said_once(monkeypatch):
    class OutOfResources(Exception):  # Triton's, which is no RuntimeError
        pass

    def broken(run, device):
        raise OutOfResources("operation not permitted")

    plain, pipe = without(classes()), replaying(classes(), broken)
    want = plain([1, 2], method="sjd-coupled:window=4", **LATENT)
    with pytest.warns(UserWarning, match="vargen: forwards are not captured as graphs.*not permitted") as said:
        got = pipe([1, 2], method="sjd-coupled:window=4", **LATENT)
    assert len(said) == 1
    assert torch.equal(got.tokens, want.tokens)
    assert "decode" not in got.trace.kernels


def test_large_caches_are_not_spared(capture, monkeypatch):
    pipe = replaying(classes(), capture)
    pipe([1], method="ar", **LATENT)
    monkeypatch.setattr("vargen.engine.caches.SPARE_BYTES", caches(pipe)._held[0].cache.bytes)
    pipe([1, 2], method="ar", **LATENT)
    assert len(caches(pipe)._held) == 2  # the first one is small enough to be kept beside it
    pipe([1, 2, 3], method="ar", **LATENT)
    assert [held.key[0] for held in caches(pipe)._held] == [2, 6]


def test_the_trace_names_what_a_graph_has_in_it():
    """Triton's kernels cannot be traced: what is captured runs as it is."""
    tiny = RasterPipeline(small.llamagen(replace(small.CONFIG, side=2, layers=1)), small.vq()).to(DEVICE)
    pipe = replaying(tiny, None if torch.cuda.is_available() else lambda run, device: run)
    pipe.fast = "triton"
    ran = pipe([1], method="ar", **LATENT).trace.kernels
    inside = dict.fromkeys(("attention", "norm", "add_norm", "silu_mul", "rope"), "triton")
    assert {key: ran[key] for key in (*inside, "decode")} == inside | {"decode": "graph"}


def test_kernels_of_a_graph_run_from_the_first_time_on(capture, monkeypatch):
    """They may round otherwise than those outside, and a seed's image is to be the same in the first call."""
    pipe, seen = replaying(classes(), capture), []
    decode = type(pipe.transformer).decode

    def noting(model, block, cache):
        seen.append(cache.kernels.captured)
        return decode(model, block, cache) * (1 + cache.kernels.captured)  # so that it shows

    monkeypatch.setattr(type(pipe.transformer), "decode", noting)
    first, second = (pipe([1], method="ar", **LATENT) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    assert set(seen) == {False, True}
    assert first.trace.kernels["decode"] == "graph"


def test_what_the_host_reads_is_on_the_host():
    with torch.device("meta"):
        copied = Copied(torch.tensor([[3], [5]], device="cpu"))
    assert copied.numbers() == [3, 5]


def test_torch_compile_takes_a_forward_in_one_piece():
    """Else a benchmark against it would be unfair."""
    model = small.llamagen()
    with torch.inference_mode():
        cache = model.make_cache(1)
        cache.kernels = Kernels("torch")
        model.prefill(model.class_condition(torch.tensor([1]), guided=False), cache)
        block = Block(torch.tensor([[1, 2]]), torch.tensor([[0, 1]]), 0, 2)
        want = model.decode(block, cache)
        got = torch.compile(model.decode, backend="eager", fullgraph=True)(block, cache)
    assert torch.allclose(got, want)


def test_what_stands_for_graphs_fixes_numbers_and_reads_tensors():
    """And as in a graph nothing may wait for the device."""
    buffer, numbers = torch.arange(4.0), [2]
    replay = Traced()(lambda: buffer[numbers[0]] * numbers[0] + torch.ones(()), torch.device("cpu"))
    assert replay() == 5
    numbers[0] = 3
    assert replay() == 5
    buffer += 1
    assert replay() == 7
    with pytest.raises(RuntimeError, match="waits for the device"):
        Traced()(lambda: buffer * float(buffer[0]), torch.device("cpu"))
