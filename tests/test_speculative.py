"""Speculative decoding: the exact law behind any drafter, everything kept from oneself, drafters that do not fit."""

from dataclasses import replace

import pytest
import torch
from small import CONFIG, PRESETS, llamagen, pipeline, vq
from toy import WARP, ToyModel, checked, images, p_value

import vargen
from vargen.core import registry, rules
from vargen.engine.drafters import ModelDrafter
from vargen.engine.guidance import Guidance
from vargen.eval import plan, runs
from vargen.models.llamagen import LlamaGen, LlamaGenConfig
from vargen.pipelines.choose_drafter import from_model
from vargen.pipelines.raster import RasterPipeline
from vargen.samplers.speculative import Speculative, SpeculativeSettings

LEVEL = 1e-5  # per case; with fixed seeds a case either always passes or always fails
COUNT = 6400


def draw(**rest):
    return images(Speculative, SpeculativeSettings(length=2), COUNT, 128, drafter=ToyModel(11), **rest)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_law_of_whole_images(length):
    assert p_value(checked(Speculative, SpeculativeSettings(length=length), COUNT, drafter=ToyModel(11))) > LEVEL


@pytest.mark.parametrize("interval", [0, 1])
def test_law_where_guidance_ends_early(interval):
    guidance = Guidance(1.7, interval)
    assert p_value(draw(guidance=guidance), guidance) > LEVEL


def test_drawing_from_p_instead_of_the_residual_is_caught(monkeypatch):
    monkeypatch.setattr(rules, "residual", lambda p, q: p)
    assert p_value(draw()) < LEVEL


def test_a_drafter_whose_laws_are_misreported_is_caught(monkeypatch):
    laws = ModelDrafter.laws
    monkeypatch.setattr(ModelDrafter, "laws", lambda self, block: WARP(laws(self, block).clamp(min=1e-9).log() * 0.5))
    honest = p_value(draw())
    assert honest > LEVEL  # another drafter, but drafts do come from the laws that it tells
    draws = rules.draw
    calls = []

    def sharper(weights, u):  # drafts come from other laws than those that are told
        calls.append(1)
        return draws(weights**2 if weights.shape[1:] == (1, 4) and len(calls) % 3 else weights, u)

    monkeypatch.setattr(rules, "draw", sharper)
    assert p_value(draw()) < LEVEL


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("length", [1, 3, 5, 8, 50])
@pytest.mark.parametrize("method", ["speculative", "lantern:delta=0:k=5", "cool:tolerance=1:decay=0"])
def test_a_model_keeps_all_that_it_drafts_itself(method, length, batch):
    """Exactly length + 1 tokens a forward. A stale row in the drafter's cache shows here and in no test of the law."""
    pipe = pipeline()
    pipe.drafter = pipe.transformer
    labels = [i % CONFIG.classes for i in range(batch)]
    out = pipe(labels, method=f"{method}:length={length}", seed=0, output_type="latent")
    count = CONFIG.side**2
    assert out.trace.forwards == 1 + -(-(count - 1) // (length + 1))
    starts = range(1, count, length + 1)
    assert out.trace.drafter_forwards == 1 + sum(min(length, count - start) for start in starts)  # none past the end
    assert out.trace.drafts == out.trace.drafts_kept
    committed = count - 1 - (count - 1) // (length + 1)  # all but the first token and the bonus tokens
    assert out.trace.drafts == batch * committed


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"top_k": 5}, {"cfg_interval": 9}])
def test_an_image_depends_on_its_seed_alone(options):
    pipe = pipeline()
    pipe.drafter = small_drafter()
    together = pipe([0, 1, 2, 3] * 4, method="speculative:length=4", seed=0, output_type="latent", **options).tokens
    for index in (0, 6, 15):
        alone = pipe([index % 4], method="speculative:length=4", seed=index, output_type="latent", **options)
        assert torch.equal(alone.tokens[0], together[index])


def small_drafter(scale=1.2):
    return llamagen(LlamaGenConfig(layers=1, heads=2, width=16, side=6, vocabulary=48, classes=5), scale=scale)


def test_the_drafter_is_worth_something():
    """A drafter that is nearly the model needs fewer forwards than one that knows nothing."""
    pipe, near = pipeline(), llamagen()
    near.output.weight.add_(0.02 * torch.randn(near.output.weight.shape, generator=torch.Generator().manual_seed(0)))
    forwards = []
    for drafter in (near, small_drafter()):
        pipe.drafter = drafter
        forwards.append(pipe([0, 1], method="speculative:length=5", seed=0, output_type="latent").trace.forwards)
    assert forwards[0] < 0.6 * forwards[1]
    assert forwards[1] <= 36


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocabulary": 47}, "vocabulary 47 instead of 48"),
        ({"side": 5}, "rows 5 instead of 6"),
        ({"classes": 6}, "classes 6 instead of 5"),
    ],
)
def test_drafters_that_do_not_fit(changes, words):
    shapes = {"layers": 1, "heads": 2, "width": 16, "side": 6, "vocabulary": 48, "classes": 5} | changes
    pipe = pipeline()
    pipe.drafter = LlamaGen(LlamaGenConfig(**shapes))
    with pytest.raises(ValueError, match=f"LlamaGen cannot draft here: {words}"):
        pipe([0], method="speculative", seed=0)


def test_acceptance_is_counted_within_images(monkeypatch):
    """Against a count by hand, from what the rule said of every step."""
    pipe, seen, rule = pipeline(), [], rules.leading
    pipe.drafter = small_drafter()
    monkeypatch.setattr(rules, "leading", lambda kept: seen.append(rule(kept)) or rule(kept))
    out = pipe([0, 1, 2], method="speculative:length=4", seed=0, output_type="latent")
    place, drafts, kept = [1, 1, 1], 0, 0
    for step in seen:
        for row in range(3):
            left = CONFIG.side**2 - place[row]
            drafts, kept = drafts + min(4, left), kept + min(int(step[row]), left)
            place[row] = min(place[row] + int(step[row]) + 1, CONFIG.side**2)
    assert (out.trace.drafts, out.trace.drafts_kept) == (drafts, kept)
    assert 0 < kept < drafts


def test_drafters_by_name(monkeypatch, tmp_path):
    pipe = vargen.load("pocket-llamagen-small", device="cpu", drafter="pocket-llamagen")
    assert isinstance(pipe.drafter, LlamaGen)
    assert pipe.drafter.config.layers == 8
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")
    with pytest.raises(ValueError, match="small cannot draft here: vocabulary 48 instead of 1024"):
        vargen.load("pocket-llamagen", device="cpu", drafter="small")
    with pytest.raises(ValueError, match="name the model that it is of"):
        vargen.load("pocket-llamagen", device="cpu", drafter_checkpoint=tmp_path)
    other = pipeline()
    other.tokenizer.quantize.embedding.weight.add_(torch.rand(48, 4))
    with pytest.raises(ValueError, match="other cannot draft for small: its image tokenizer has another codebook"):
        from_model(pipeline(), "other", other)


def test_no_drafter():
    with pytest.raises(ValueError, match="this method needs a drafter, and small has none"):
        pipeline()([0], method="speculative", seed=0)
    with pytest.raises(ValueError, match="got length 0"):
        pipeline()([0], method="speculative:length=0", seed=0)


def test_a_sampling_run_knows_its_drafter(tmp_path):
    """Images of two drafters do not mix in one folder, though model, method and settings are the same."""
    planned = plan.make(PRESETS["small"], "speculative:length=2", 2, recipe=None, law={}, batch_size=2)

    def draw(scale):
        pipe = pipeline()
        pipe.drafter = small_drafter(scale)
        return runs.sample(planned, lambda device: pipe, tmp_path / "run", device="cpu")

    draw(1.2)
    draw(1.2)
    with pytest.raises(ValueError, match="holds another run: weights"):
        draw(1.3)


def test_a_model_that_cannot_draft_is_refused_before_it_is_built():
    with pytest.raises(ValueError, match="llamagen-t2i-xl-256 cannot draft here: vocabulary 16384 instead of 48"):
        pipeline()([0], method="speculative:drafter=llamagen-t2i-xl-256", seed=0)


def test_a_text_drafter_must_read_the_same_states():
    shapes = LlamaGenConfig(layers=1, heads=2, width=16, side=4, vocabulary=48, caption_width=8, caption_tokens=5)
    pipe = RasterPipeline(llamagen(shapes), vq(), preset=replace(PRESETS["small"], classes=0))
    states, mask = torch.randn(1, 5, 8), torch.ones(1, 5)
    for change in ({"caption_width": 16}, {"caption_tokens": 6}):
        pipe.drafter = llamagen(replace(shapes, **change))
        with pytest.raises(ValueError, match=r"reads texts of \(\d, \d+\) \(tokens, width\) instead of \(5, 8\)"):
            pipe(prompt_embeds=states, prompt_attention_mask=mask, method="speculative", seed=0)


@pytest.mark.parametrize("method", ["speculative:length=1000000000", "gsd:group=3000000000"])
def test_settings_beyond_any_use_cost_nothing(method):
    pipe = pipeline()
    pipe.drafter = small_drafter()
    assert len(pipe([0], method=method, seed=0).images) == 1


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("speculative-tree:tree=99999999999", "more than 256 nodes"),
        ("speculative-dynamic:depth=256:branches=256:nodes=256", "more than 16384 candidates"),
        ("cool:tolerance=1e39", "got tolerance 1e.39"),
        ("cool:decay=1e39", "decay 1e.39"),
    ],
)
def test_settings_beyond_any_use_are_refused(method, words):
    with pytest.raises(ValueError, match=words):
        pipeline()([0], method=method, seed=0)
