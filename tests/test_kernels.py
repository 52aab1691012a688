"""Kernels under Triton's interpreter, on small odd shapes: against float64, and the choice of what runs."""

import math
from dataclasses import replace

import chameleon
import pytest
import small
import torch

import vargen
from vargen.core import noise
from vargen.core.dispatch import Kernels, constexpr, jit, power, tl, triton
from vargen.core.noise import Purpose, Table, Uniforms
from vargen.core.warp import Warp, together
from vargen.kernels import gsd, hashed, lantern, sample, verify
from vargen.pipelines.prompted import PromptedPipeline
from vargen.pipelines.raster import RasterPipeline

pytestmark = pytest.mark.skipif(triton is None, reason="Triton is not installed for this platform")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = torch.finfo(torch.float32).eps
SEEDS = torch.tensor([5, -(2**60), 2**62], device=DEVICE)


LAYERS = {"attention", "norm", "add_norm", "silu_mul", "rope"}  # every forward has them


def kernels():
    return Kernels("triton")


def logits(vocabulary=37, rows=3, width=4, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, width, vocabulary, generator=generator) * spread).to(DEVICE)


WARPS = (
    Warp(),
    Warp(temperature=0.7),
    Warp(top_k=1),
    Warp(top_k=5, temperature=1.3),
    Warp(top_p=0.8),
    Warp(top_k=20, top_p=0.5, temperature=2.0),
    Warp(top_p=1e-6),
    Warp(top_k=7, allowed=torch.arange(37, device=DEVICE) % 3 > 0),
    Warp(top_k=30, allowed=torch.arange(37, device=DEVICE) < 4),
)
OWN = (Warp(0.7, 5, 1.0), Warp(1.0, 5, 0.8), Warp(1.3, 5, 0.5))  # of three images in one batch


def exactly(warp, scores):
    """The law in float64, by sorting."""
    x = scores.double()
    if warp.allowed is not None:
        x = x.masked_fill(~warp.allowed, -math.inf)
    x = x / warp.temperature
    if warp.top_k:
        x = x.masked_fill(x < x.sort(-1, descending=True).values[..., [min(warp.top_k, x.shape[-1]) - 1]], -math.inf)
    p = x.softmax(-1)
    if warp.top_p < 1:
        above = torch.stack([torch.where(p > p[..., [i]], p, 0).sum(-1) for i in range(p.shape[-1])], dim=-1)
        p = torch.where(above <= warp.top_p, p, 0)
    return p / p.sum(-1, keepdim=True)


@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_law(warp):
    for vocabulary, seed in ((37, 0), (37, 1)):
        given = logits(vocabulary, seed=seed)
        want, ran = exactly(warp, given), kernels()
        got, plain = sample.law(given, warp, ran), warp(given)
        assert ran.ran == {"sample": "triton"}
        assert torch.equal(got > 0, want > 0)
        assert (got - want).abs().max() <= max(2 * (plain - want).abs().max(), 2 * EPS)


def test_laws_of_images_of_their_own():
    given, ran, warp = logits(37), kernels(), together(OWN, torch.device(DEVICE))
    alone = torch.cat([sample.law(given[i : i + 1], one, ran) for i, one in enumerate(OWN)])
    assert torch.allclose(sample.law(given, warp, ran), alone, atol=2 * EPS)
    assert torch.allclose(warp(given), alone, atol=1e-6)
    table, slots = Table(noise.gumbel, SEEDS, 1, size=37, reach=4), torch.arange(12, device=DEVICE).view(3, 4)
    drawn = sample.draw(given, warp, table, slots, [4, 8, 12], ran)
    assert ran.ran == {"sample": "triton"}
    assert torch.equal(drawn, sample.draw(given, warp, table, slots, [4, 8, 12], Kernels("torch")))


def test_law_of_equal_logits_and_of_one():
    flat = torch.zeros(1, 2, 50, device=DEVICE)
    flat[0, 1, ::2] = -0.0  # the two zeros are one number
    for warp in (Warp(), Warp(top_k=3), Warp(top_p=0.3), Warp(temperature=0.1)):  # all tie, and ties stay
        assert torch.allclose(sample.law(flat, warp, kernels()), torch.full_like(flat, 0.02))
        assert torch.allclose(warp(flat), torch.full_like(flat, 0.02))
    sure = torch.full((1, 1, 50), -math.inf, device=DEVICE)
    sure[..., 49] = 3.0
    for warp in (Warp(), Warp(top_k=3), Warp(top_p=0.3), Warp(temperature=0.1)):
        assert sample.law(sure, warp, kernels())[0, 0, 49] == 1


def test_law_of_large_vocabularies_and_of_half_floats():
    for vocabulary in (1, 17, 4099):
        given = logits(vocabulary, 1, 2).bfloat16()  # many ties
        for warp in (Warp(), Warp(top_k=11), Warp(top_p=0.6)):
            want = exactly(warp, given) if vocabulary < 100 else warp(given.double())
            got = sample.law(given, warp, kernels())
            assert torch.equal(got > 0, want > 0)
            assert torch.allclose(got.double(), want, atol=1e-6)
    with pytest.raises(ValueError, match="vocabulary of 32769 ids is above 32768"):
        sample.law(torch.zeros(1, 1, 32769, device=DEVICE), Warp(), kernels())
    with pytest.raises(ValueError, match="top-n-sigma"):
        sample.law(logits(), Warp(top_n_sigma=1.0), kernels())


@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_draw_equals_the_twin(warp):
    given, slots = logits(), torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5], [9, 10, 11, 12]], device=DEVICE)
    table = Table(noise.gumbel, SEEDS, Purpose.TOKEN, size=37, reach=4)
    got = sample.draw(given, warp, table, slots, [4, 6, 13], kernels())
    assert torch.equal(got, sample.draw(given, warp, table, slots, [4, 6, 13], Kernels("torch")))
    assert len(got.unique()) > (1 if warp.top_p > 1e-3 and warp.top_k != 1 else 0)


@jit
def drawn(seeds, slots, raw, flat, peaked, purpose, SIZE: constexpr):
    row, ids = tl.program_id(0), tl.arange(0, SIZE)
    seed, slot = tl.load(seeds + row), tl.load(slots + row)
    tl.store(raw + row * SIZE + ids, hashed.bits(seed, slot, purpose, ids).to(tl.int64))
    tl.store(flat + row * SIZE + ids, hashed.uniform(seed, slot, purpose, ids))
    tl.store(peaked + row * SIZE + ids, hashed.gumbel(seed, slot, purpose, ids))


def test_noise_is_bit_equal():
    slots, size = torch.tensor([0, 7, 2**40], device=DEVICE), 64
    raw = torch.empty(3, size, dtype=torch.int64, device=DEVICE)
    flat, peaked = torch.empty(3, size, device=DEVICE), torch.empty(3, size, device=DEVICE)
    drawn[(3,)](SEEDS, slots, raw, flat, peaked, int(Purpose.TOKEN), SIZE=size)
    assert torch.equal(raw, noise.bits(SEEDS, slots[:, None], Purpose.TOKEN, size)[:, 0])
    assert torch.equal(flat, noise.uniform(SEEDS, slots[:, None], Purpose.TOKEN, size)[:, 0])
    # Its logarithms are in float64 and rounded once: the last bit shows only where a logarithm lies on the edge.
    assert torch.allclose(peaked, noise.gumbel(SEEDS, slots[:, None], Purpose.TOKEN, size)[:, 0], rtol=1e-7, atol=0)


def laws(vocabulary, seed):
    return (logits(vocabulary, seed=seed) * 0.7).softmax(-1)


@pytest.mark.parametrize("vocabulary", [3, 37, 4099])
def test_verify(vocabulary):
    p, q = laws(vocabulary, 1), laws(vocabulary, 2)
    drafts = q.flatten(0, 1).multinomial(1).view(3, 4)
    uniforms, ran, kept_ever = Uniforms(SEEDS, 9), kernels(), 0
    uniforms.steps = uniforms.steps + torch.tensor([[0], [5], [9]], device=DEVICE)  # each image has its own
    uniforms._stops = [1, 6, 10]
    for _ in range(20 if vocabulary < 1000 else 6):
        kept, tokens = verify.verify(drafts, q, p, uniforms, ran)
        plain, theirs = verify.verify(drafts, q, p, uniforms, Kernels("torch"))
        assert torch.equal(kept, plain)
        rest = (p.double() - q.double()).clamp(min=0)
        cumulative = rest.cumsum(-1) / rest.sum(-1, keepdim=True)
        u = uniforms.of(Purpose.REDRAW, 4).double()
        upper = cumulative.gather(-1, tokens[..., None])[..., 0]
        lower = upper - (rest / rest.sum(-1, keepdim=True)).gather(-1, tokens[..., None])[..., 0]
        redrawn = ~kept
        assert (lower[redrawn] <= u[redrawn] + 1e-6).all()
        assert (upper[redrawn] >= u[redrawn] - 1e-6).all()
        assert (rest.gather(-1, tokens[..., None])[..., 0][redrawn] > 0).all()
        assert torch.equal(tokens[kept], drafts[kept])
        assert (tokens == theirs).float().mean() > 0.9
        kept_ever += int(kept.sum())
        uniforms.advance()
    assert ran.ran == {"verify": "triton"}
    assert 0 < kept_ever < 240


def test_verify_where_laws_are_equal_disjoint_or_certain():
    uniforms, p = Uniforms(SEEDS, 4), laws(37, 1)
    drafts = p.flatten(0, 1).multinomial(1).view(3, 4)
    kept, tokens = verify.verify(drafts, p, p, uniforms, kernels())
    assert kept.all()
    assert torch.equal(tokens, drafts)
    one, other = torch.zeros_like(p), torch.zeros_like(p)
    one[..., :5], other[..., 30:] = 0.2, 1 / 7
    kept, tokens = verify.verify(torch.full_like(drafts, 3), one, other, uniforms, kernels())
    assert not kept.any()
    assert (tokens >= 30).all()
    certain = torch.zeros_like(p)
    certain[..., 36] = 1.0
    kept, tokens = verify.verify(torch.full_like(drafts, 36), p, certain, uniforms, kernels())
    assert kept.all()
    kept, tokens = verify.verify(torch.full_like(drafts, 36), certain, p, uniforms, kernels())
    assert torch.equal(tokens == 36, kept)
    nothing = torch.zeros_like(p)  # no law: nothing is left to draw from, and the draft stays
    kept, tokens = verify.verify(drafts, p, nothing, uniforms, kernels())
    assert not kept.any()
    assert torch.equal(tokens, drafts)


@pytest.mark.parametrize(("vocabulary", "count"), [(37, 5), (300, 299), (2500, 40)])
@pytest.mark.parametrize("bound", [{"delta": 0.2}, {"delta": 0.0}, {"delta": 1.0}, {"factor": 2.0}, {"factor": 0.0}])
def test_shifted(vocabulary, count, bound):
    p, ran = laws(vocabulary, 1), kernels()
    drafts = p.flatten(0, 1).multinomial(1).view(3, 4)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(vocabulary, vocabulary, generator=generator).fill_diagonal_(2.0).argsort(-1)
    near = order[:, :count].to(DEVICE)
    got = lantern.shifted(drafts, p, near, ran, **bound)
    want = lantern.plain(drafts, p.double(), near, **bound)
    plain = lantern.shifted(drafts, p, near, Kernels("torch"), **bound)
    assert ran.ran == {"shifted": "triton"}
    assert (got - want).abs().max() <= max(2 * (plain - want).abs().max(), EPS)
    assert torch.allclose(got.sum(-1), torch.ones(3, 4, device=DEVICE), atol=1e-5)


@pytest.mark.parametrize("ranks", [(7, 6), (0, 0), (1, 0), (0, 3), (40, 40)])
def test_cluster(ranks):
    below, above = ranks
    p, q, ran = laws(37, 1)[:, :2], laws(37, 2)[:, :2], kernels()
    p[0, 0, 3:30] = p[0, 0, 3]  # ties are ranked by their ids
    p[0] /= p[0].sum(-1, keepdim=True)
    drafts = q.flatten(0, 1).multinomial(1).view(3, 2)
    drafts[0, 0], drafts[1, 0], drafts[1, 1] = 12, p[1, 0].argmax(), p[1, 1].argmin()  # and the ends of the order
    codes = torch.randn(37, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for cut in ({"gap": 0.15, "distance": 2.0}, {"gap": 1.0, "distance": 99.0}, {"gap": 0.0, "distance": 99.0}):
        got = gsd.cluster(drafts, q, p, codes, ran, below=below, above=above, **cut)
        want = gsd.plain(drafts, q, p, codes, below=below, above=above, **cut)
        assert torch.allclose(torch.stack(got), torch.stack(want), atol=1e-6)
    assert ran.ran == {"cluster": "triton"}


def test_what_runs(monkeypatch):
    plain = Kernels()
    sample.law(logits(), Warp(), plain)
    assert plain.ran == {"sample": "triton" if DEVICE == "cuda" else "torch"}
    with pytest.raises(ValueError, match="got impl 'cuda', expected auto, triton or torch"):
        Kernels("cuda")  # pyright: ignore[reportArgumentType]
    with monkeypatch.context() as patch:
        patch.setattr("vargen.core.dispatch.triton", None)
        with pytest.raises(ValueError, match="kernel of sample cannot run: Triton is not installed"):
            sample.law(logits(), Warp(), kernels())
        assert sample.law(logits(), Warp(), Kernels()).isfinite().all()
    if DEVICE == "cpu":
        monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
        with pytest.raises(ValueError, match="the tensors are on the cpu, and TRITON_INTERPRET is not set"):
            sample.law(logits(), Warp(), kernels())
    assert [power(size) for size in (1, 16, 17, 1024, 1025)] == [16, 16, 32, 1024, 2048]


def drawing(family, side=2):
    """A tiny pipeline of a family, and its inputs: a program takes milliseconds under the interpreter."""
    if family == "llamagen":
        config = replace(small.CONFIG, side=side, layers=1)
        pipe = RasterPipeline(small.llamagen(config), small.vq())
        pipe.drafter = small.llamagen(config, scale=1.4)
        inputs = {"class_labels": [1, 2], "guidance_scale": 2.0}
    else:
        config = replace(chameleon.CONFIG, layers=1, heads=2, kv_heads=1)
        model = chameleon.lumina(chameleon.SIZES[1], config=config)
        pipe = PromptedPipeline(model, chameleon.vqgan(), None, chameleon.text())
        inputs = {"prompt": ["a red boat", "sea"], "guidance_scale": 3.0}  # of two lengths: rows are padded
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(DEVICE), inputs


@pytest.mark.parametrize(
    ("family", "method", "used"),
    [
        ("llamagen", "ar", {"sample"}),
        ("llamagen", "sjd-coupled:window=4", {"sample", "verify"}),
        ("llamagen", "sjd-coupled:window=4:rule=gsd", {"sample", "cluster"}),
        ("llamagen", "sjd-coupled:window=4:rule=lantern:k=5", {"sample", "shifted"}),
        ("llamagen", "sjd-pac:window=4:tree=4", {"sample", "verify"}),
        ("llamagen", "speculative:length=2", {"sample", "verify"}),
        ("llamagen", "zipar:window=2", set()),
        ("lumina", "sjd-coupled:window=4", {"sample", "verify"}),
    ],
)
def test_whole_images_with_kernels_and_without(family, method, used):
    """The trace names what ran. In float32 the tokens are the same."""
    pipe, inputs = drawing(family, 3 if method in ("ar", "sjd-coupled:window=4") else 2)
    how = {"method": method, "seed": 3, "output_type": "latent", "top_k": 9, **inputs}
    pipe.fast = "off"
    plain = pipe(**how)
    pipe.fast = "triton"
    fast = pipe(**how)
    assert fast.trace.kernels.pop("decode", None) == ("graph" if DEVICE == "cuda" else None)
    assert fast.trace.kernels == dict.fromkeys(used | LAYERS, "triton")
    assert plain.trace.kernels == dict.fromkeys(used | LAYERS, "torch")
    assert torch.equal(fast.tokens, plain.tokens)
    assert fast.trace.forwards == plain.trace.forwards


def test_bad_wishes():
    pipe, inputs = drawing("llamagen")
    pipe.fast = "quick"
    with pytest.raises(ValueError, match="got fast 'quick', expected auto, off, triton"):
        pipe(**inputs)
    with pytest.raises(ValueError, match="got fast 'quick', expected auto, off, triton"):
        vargen.load("pocket-llamagen", fast="quick")
