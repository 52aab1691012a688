"""LlamaGen: cached equals uncached in any order of writing, and the engine equals a loop written out by hand."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from small import CONFIG, llamagen

from vargen.core import noise
from vargen.core.types import Block
from vargen.core.warp import Warp
from vargen.engine import loops
from vargen.engine.guidance import Guidance
from vargen.models.llama import RMSNorm, rope_table
from vargen.models.llamagen import LlamaGen, LlamaGenConfig
from vargen.samplers.ar import ARSettings, Autoregressive
from vargen.samplers.contract import Task

SLOTS = CONFIG.side**2
LABELS = torch.tensor([1, 4, 0])


def ids() -> torch.Tensor:
    return torch.randint(CONFIG.vocabulary, (3, SLOTS), generator=torch.Generator().manual_seed(2))


def forced(model, labels, tokens):
    return model(model.class_condition(labels, guided=False), tokens)


@pytest.mark.parametrize("width", [1, 2, 5, SLOTS - 1])
def test_blocks_equal_teacher_forcing(width):
    model, tokens = llamagen(), ids()
    full, cache = forced(model, LABELS, tokens), model.make_cache(3)
    out = [model.prefill(model.class_condition(LABELS, guided=False), cache)]
    for start in range(0, SLOTS - 1, width):
        stop = min(start + width, SLOTS - 1)
        slots = torch.arange(start, stop).expand(3, -1)
        out.append(model.decode(Block(tokens[:, start:stop], slots, start, stop), cache))
    torch.testing.assert_close(torch.cat(out, 1), full, rtol=1e-4, atol=1e-4)


def test_rows_with_their_own_pointers_and_rejected_drafts():
    """Each row stands elsewhere, and wrong drafts are written first, then the right tokens in their place."""
    model, tokens = llamagen(), ids()
    full, cache = forced(model, LABELS, tokens), model.make_cache(3)
    cache.keys.fill_(1e3)  # what was never written must never be seen
    cache.values.fill_(1e6)
    model.prefill(model.class_condition(LABELS, guided=False), cache)
    model.decode(Block(tokens[:, :8], torch.arange(8).expand(3, -1), 0, 8), cache)
    start = torch.tensor([[0], [3], [8]])  # the rows go back to slots that are written already, or ahead
    slots = start + torch.arange(4)
    model.decode(Block((tokens.gather(1, slots) + 1) % CONFIG.vocabulary, slots, 0, 12), cache)
    logits = model.decode(Block(tokens.gather(1, slots), slots, 0, 12), cache)
    expected = full.gather(1, (slots + 1)[..., None].expand(-1, -1, CONFIG.vocabulary))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_sees_hides_what_it_does_not_name():
    """Token 2 sees slots 0 and 2 only: as if slot 1 had never been."""
    model, tokens = llamagen(), ids()
    slots = torch.arange(3).expand(3, -1)
    causal = torch.ones(3, SLOTS, dtype=torch.bool).tril()

    def last(tokens, sees):
        cache = model.make_cache(3)
        model.prefill(model.class_condition(LABELS, guided=False), cache)
        return model.decode(Block(tokens[:, :3], slots, 0, 3, sees), cache)[:, 2]

    torch.testing.assert_close(last(tokens, causal.expand(3, -1, -1)), last(tokens, None))
    causal[2, 1] = False
    other = tokens.clone()
    other[:, 1] = (other[:, 1] + 1) % CONFIG.vocabulary
    hidden = causal.expand(3, -1, -1)
    torch.testing.assert_close(last(tokens, hidden), last(other, hidden))
    assert not torch.allclose(last(tokens, None), last(tokens, hidden))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [12, 100])
def test_head_widths_and_precisions(dim, dtype):
    """100 is GPT-3B's. In half precision a block's logits are those of the float32 weights up to its rounding."""
    config = replace(CONFIG, heads=2, width=2 * dim)
    exact, model, tokens = llamagen(config), llamagen(config).to(dtype), ids()
    full, cache = forced(exact, LABELS, tokens), model.make_cache(3)
    out = [model.prefill(model.class_condition(LABELS, guided=False), cache)]
    for start, stop in ((0, 1), (1, 9), (9, SLOTS - 1)):
        slots = torch.arange(start, stop).expand(3, -1)
        out.append(model.decode(Block(tokens[:, start:stop], slots, start, stop), cache))
    logits = torch.cat(out, 1)
    assert (cache.keys.dtype, logits.dtype) == (dtype, torch.float32)
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    assert (logits - full).norm() / full.norm() < bound


@pytest.mark.parametrize(("interval", "doubled"), [(-1, SLOTS - 1), (0, 1), (4, 5), (SLOTS, SLOTS - 1)])
def test_unconditional_rows_are_dropped_when_guidance_ends(interval, doubled, monkeypatch):
    model, rows, decode = llamagen(), [], LlamaGen.decode
    monkeypatch.setattr(
        LlamaGen, "decode", lambda self, block, cache: rows.append(len(block.slots)) or decode(self, block, cache)
    )
    sampler = Autoregressive(ARSettings(), Task(model.spec, torch.tensor([5, 6, 7]), Warp()))
    condition, clock = model.class_condition(LABELS, guided=True), loops.Clock(model.device)
    for _ in loops.raster(model, condition, sampler, Guidance(3.0, interval), clock, loops.Counts()):
        pass
    assert rows == [6] * doubled + [3] * (SLOTS - 1 - doubled)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_engine_equals_a_plain_loop(scale):
    model, seeds, warp = llamagen(), torch.tensor([5, 6, 7]), Warp(temperature=0.9, top_k=20)
    guidance = Guidance(scale)
    sampler = Autoregressive(ARSettings(), Task(model.spec, seeds, warp))
    condition = model.class_condition(LABELS, guided=guidance.active)
    counts = loops.Counts()
    for _ in loops.raster(model, condition, sampler, guidance, loops.Clock(model.device), counts):
        pass
    assert counts.forwards == SLOTS
    tokens = torch.zeros(3, SLOTS, dtype=torch.int64)
    nothing = torch.full_like(LABELS, CONFIG.classes)
    for slot in range(SLOTS):
        c, u = forced(model, LABELS, tokens)[:, slot], forced(model, nothing, tokens)[:, slot]
        g = noise.gumbel(seeds, torch.tensor([[slot]]), noise.Purpose.TOKEN, CONFIG.vocabulary)[:, 0]
        tokens[:, slot] = (warp.scores(u + (c - u) * scale) + g).argmax(-1)
    assert torch.equal(sampler.tokens, tokens)


@pytest.mark.parametrize("dim", [32, 64, 100])
def test_rope_against_angles_written_out(dim):
    config = LlamaGenConfig(1, 1, dim, 3, vocabulary=4, caption_width=8, caption_tokens=2)
    tables, half = rope_table(config, 2), dim // 2
    assert [table.shape for table in tables] == [(11, 3, 1, dim)] * 2
    for table, kept in zip(tables, (1, 0), strict=True):
        assert (table[:2, :2] == 0).all()  # the condition's keys and queries are multiplied by zero, as in training
        assert (table[:, 2] == kept).all()  # and values by one
        assert torch.equal(table[:, 0], table[:, 1])
    (cos, sin), (start, end) = (table[:, 0, 0] for table in tables), (slice(half), slice(half, None))
    assert torch.equal(cos[:, start], cos[:, end])
    assert torch.equal(sin[:, start], -sin[:, end])
    table = torch.complex(cos[:, end], sin[:, end])
    for slot in range(9):
        for k in range(half // 2):
            theta = 10000.0 ** (-2 * k / half)
            row, column = divmod(slot, 3)
            for angle, value in ((row * theta, table[2 + slot, k]), (column * theta, table[2 + slot, half // 2 + k])):
                expected = torch.polar(torch.tensor(1.0), torch.tensor(angle))
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_official_shapes():
    """GPT-B's key count and parameter count, from the published table."""
    with torch.device("meta"):
        from vargen.models.llamagen import LlamaGen

        model = LlamaGen(LlamaGenConfig())
    keys = model.state_dict()
    assert len(keys) == 7 * 12 + 4
    assert sum(p.numel() for p in model.parameters()) == 110_888_448
    assert keys["layers.3.attention.wqkv.weight"].shape == (3 * 768, 768)
    assert keys["cls_embedding.embedding_table.weight"].shape == (1001, 768)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_casts_down_before_it_multiplies(dtype):
    norm = RMSNorm(64, 1e-5).to(dtype)
    generator = torch.Generator().manual_seed(0)
    norm.weight.data.copy_(torch.rand(64, generator=generator) + 0.5)
    x = torch.randn(200, 64, generator=generator).to(dtype)
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    once, twice = (exact * norm.weight.double()).to(dtype), exact.to(dtype) * norm.weight
    assert (norm(x) == twice).float().mean() > 0.999  # float32 inside: a rounding may fall the other way
    assert (once == twice).float().mean() < 0.9


def test_impossible_heads():
    with pytest.raises(ValueError, match="head width"):
        llamagen(LlamaGenConfig(layers=1, heads=5, width=32))


def test_joined_weights_go_where_a_model_is_pickled_to_or_copied():
    model = llamagen()
    state = model.state_dict()
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert list(other.state_dict()) == list(state)
        other.load_state_dict({key: value + 1 for key, value in state.items()})
        assert all(torch.equal(value, state[key] + 1) for key, value in other.state_dict().items())
