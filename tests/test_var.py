"""Next-scale models: who draws which scale, seeds and batches, guidance, laws per scale, repainting, bad input."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from small import PRESETS, SCALE_PRESET, SCALES, multiscale_vq, scale_pipeline, var

from vargen.core import registry
from vargen.core.warp import Warp
from vargen.engine.guidance import Ramp
from vargen.models.var import VAR
from vargen.pipelines import choose_drafter, request
from vargen.pipelines.next_scale import NextScalePipeline, kept
from vargen.pipelines.raster import RasterPipeline
from vargen.samplers.contract import ScaleTask
from vargen.samplers.var import NextScale, NextScaleSettings

SPEC = SCALES.spec
OPTIONS = ({}, {"guidance_scale": 0.0}, {"cfg_interval": 1}, {"top_k": 5, "top_p": 0.9, "temperature": 1.3})


@pytest.fixture(scope="module")
def pipe():
    return scale_pipeline()


def tokens(pipe, labels=("a", 3, "c"), **options):
    return pipe(list(labels), **{"seed": 5, "output_type": "latent", **options}).tokens


@pytest.mark.parametrize("options", OPTIONS)
def test_the_large_model_alone_is_plain_decoding(pipe, options):
    plain = pipe(["a", 3, "c"], method="var", seed=5, **options)
    whole = pipe(["a", 3, "c"], method="code:scales=4", seed=5, **options)
    assert torch.equal(plain.tokens, whole.tokens)
    assert all(np.array_equal(a, b) for a, b in zip(plain.images, whole.images, strict=True))
    assert (plain.trace.forwards, plain.trace.drafter_forwards) == (4, 0) == (whole.trace.forwards, 0)
    assert len(plain.tokens.unique()) > 10


@pytest.mark.parametrize("options", OPTIONS)
def test_the_small_model_alone(pipe, options):
    small = NextScalePipeline(pipe.drafter, pipe.tokenizer, preset=SCALE_PRESET)
    small.set_progress_bar_config(disable=True)
    assert torch.equal(tokens(pipe, method="code:scales=0", **options), tokens(small, method="var", **options))
    assert not torch.equal(tokens(pipe, method="code:scales=0", **options), tokens(pipe, **options))


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_each_model_draws_its_own_scales(pipe, scales):
    """The first scales are the large model's; the others the small one's, given those: by hand, without a cache."""
    drawn, large = tokens(pipe, method=f"code:scales={scales}"), tokens(pipe)
    stop = SPEC.start(scales)
    assert torch.equal(drawn[:, :stop], large[:, :stop])
    labels, guidance = torch.tensor([0, 3, 2]), Ramp(1.5, 4)
    condition = pipe.drafter.class_condition(labels, guided=True)
    logits = pipe.drafter(condition, pipe.tokenizer.pyramid(drawn)[1].repeat(2, 1, 1))
    task = ScaleTask(SPEC, torch.tensor([5, 6, 7]), (Warp(),) * 4, pipe.tokenizer.quantize.codebook())
    again = NextScale(NextScaleSettings(), task)
    for scale in range(4):
        again.draw(guidance.mix(logits[:, SPEC.start(scale) : SPEC.start(scale + 1)], scale), scale)
    assert torch.equal(again.tokens[:, stop:], drawn[:, stop:])


@pytest.mark.parametrize("method", ["var", "code:scales=2", "var:more_smooth=true"])
@pytest.mark.parametrize("options", OPTIONS)
def test_an_image_depends_on_its_seed_alone(pipe, method, options):
    labels = [i % 5 for i in range(16)]
    whole = pipe(labels, method=method, seed=10, output_type="pt", **options)
    for batch in (1, 4):
        parts = pipe(labels, method=method, seed=10, output_type="pt", batch_size=batch, **options)
        assert torch.equal(whole.tokens, parts.tokens)
        assert torch.allclose(whole.images, parts.images, atol=1e-5)
    backwards = pipe(labels[::-1], method=method, seed=list(range(25, 9, -1)), output_type="latent", **options)
    assert torch.equal(whole.tokens.flip(0), backwards.tokens)
    assert not torch.equal(whole.tokens[0], whole.tokens[5])  # one class, two seeds


def test_tokens_follow_their_law():
    """Every slot from its own law, and slots independent of each other: 20,000 images."""
    count, logits = 20_000, torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    spec = replace(SCALES, vocabulary=6).spec
    warp = Warp(temperature=0.8, top_k=4, temperature_last=True)
    task = ScaleTask(spec, torch.arange(count), (warp,) * 4, torch.zeros(6, 4))
    made = NextScale(NextScaleSettings(), task)
    made.draw(logits.expand(count, -1, -1), 1)
    p, drawn = warp(logits[0]).double(), made.tokens[:, 1:5]
    for slot in range(4):
        seen, law = drawn[:, slot].bincount(minlength=6).numpy(), p[slot].numpy()
        assert seen[law == 0].sum() == 0
        assert chisquare(seen[law > 0], law[law > 0] / law.sum() * count).pvalue > 1e-5
    pairs = (drawn[:, 0] * 6 + drawn[:, 1]).bincount(minlength=36).numpy()
    joint = torch.outer(p[0], p[1]).flatten().numpy()
    assert chisquare(pairs[joint > 0], joint[joint > 0] / joint.sum() * count).pvalue > 1e-5


def test_guidance_grows_from_scale_to_scale_and_its_rows_are_gone_behind_its_end(pipe, monkeypatch):
    rows, decode = [], VAR.decode

    def watched(self, condition, inputs, scales, cache):
        rows.append((len(condition.embedding), len(inputs), list(scales)))
        return decode(self, condition, inputs, scales, cache)

    monkeypatch.setattr(VAR, "decode", watched)
    tokens(pipe, cfg_interval=1)
    assert rows == [(6, 6, [0]), (6, 6, [1]), (3, 3, [2]), (3, 3, [3])]
    rows.clear()
    tokens(pipe, method="code:scales=2", cfg_interval=1)  # the refiner never has unconditional rows
    assert rows == [(6, 6, [0]), (6, 6, [1]), (3, 3, [0, 1, 2]), (3, 3, [3])]
    rows.clear()
    tokens(pipe, guidance_scale=0)
    assert [count for count, *_ in rows] == [3] * 4
    c, u = torch.randn(2, 1, 2, 3)
    assert torch.equal(Ramp(2.0, 5).mix(torch.cat([c, u]), 0), c)
    assert torch.allclose(Ramp(2.0, 5).mix(torch.cat([c, u]), 3), c + 1.5 * (c - u))


def test_caches_hold_what_is_looked_back_at(pipe):
    """Of each model all scales but its last; the first model's is freed before the second one's is made."""
    each = 2 * 6 * 2 * SCALES.width * 4  # bytes per slot and layer: keys and values, 3 images twice, float32
    plain = pipe(["a", 3, "c"], method="var", seed=0).trace.cache_bytes
    shared = pipe(["a", 3, "c"], method="code:scales=3", seed=0).trace.cache_bytes
    assert plain == SPEC.start(3) * 2 * each / 2
    assert shared == max(SPEC.start(2) * 2, SPEC.start(3) * 1) * each / 2


def test_streams_grow(pipe):
    seen = list(pipe.stream(["a", "b"], method="code:scales=2", seed=4))
    assert [p.settled for p in seen] == [[1, 1], [5, 5], [14, 14], [30, 30]]
    assert [p.forwards for p in seen] == [1, 2, 3, 4]
    assert [len(p.images()) for p in seen] == [2] * 4
    assert torch.equal(seen[-1].tokens, tokens(pipe, ["a", "b"], method="code:scales=2", seed=4))
    assert (seen[-1].trace.forwards, seen[-1].trace.drafter_forwards) == (2, 2)
    assert seen[-1].trace.settings["refiner"] == "small-refiner"
    final = pipe(["a", "b"], method="code:scales=2", seed=4, output_type="np").images
    assert np.abs(np.asarray(seen[-1].images("np")) - final).max() < 1e-6


def test_smooth_images_keep_the_tokens_of_the_first_scale_and_mix_codes(pipe):
    plain, smooth = (pipe(["a"], method=m, seed=3, output_type="pt") for m in ("var", "var:more_smooth=true"))
    assert torch.equal(plain.tokens[:, :1], smooth.tokens[:, :1])
    assert not torch.allclose(plain.images, smooth.images)
    logits = torch.full((1, 16, 24), -1e9)
    logits[..., 7] = 0.0  # nothing to mix: the code itself
    task = ScaleTask(SPEC, torch.tensor([1]), (Warp(),) * 4, pipe.tokenizer.quantize.codebook())
    codes = NextScale(NextScaleSettings(more_smooth=True), task).draw(logits, 3)
    assert torch.allclose(codes, task.codebook[7].expand(1, 16, -1))


def test_laws_per_scale(pipe):
    assert torch.equal(tokens(pipe, top_k=[5] * 4, top_p=[0.9] * 4), tokens(pipe, top_k=5, top_p=0.9))
    late = tokens(pipe, temperature=[1.0, 1.0, 1.0, 3.0])
    assert torch.equal(late[:, : SPEC.start(3)], tokens(pipe)[:, : SPEC.start(3)])
    assert not torch.equal(late, tokens(pipe))
    described = pipe(["a"], temperature=[1.0, 1.0, 1.0, 3.0], seed=0).trace.settings
    assert (described["temperature"], described["top_k"]) == ([1.0, 1.0, 1.0, 3.0], 0)
    out = Warp(temperature=2.0, top_p=0.6, temperature_last=True)(torch.tensor([0.5, 0.3, 0.2]).log())
    assert torch.allclose(out, torch.tensor([0.5, 0.3, 0.0]).sqrt() / (0.5**0.5 + 0.3**0.5))  # as without, then flatter


def test_repainting_keeps_what_the_mask_does_not_show(pipe):
    source = pipe(["a"], seed=1, output_type="pt").images[0]
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    ids = pipe.tokenizer.encode(source[None] * 2 - 1)
    out = pipe("c", image=source, mask_image=mask, num_images_per_prompt=3, seed=7, output_type="pt")
    stays = kept(1 - mask[None, None], SPEC.sides)[0]
    assert stays[0]
    assert stays[-16:].view(4, 4).tolist() == [[True, True, False, False]] * 4
    assert torch.equal(out.tokens[:, stays], ids[:, stays].expand(3, -1))
    assert not torch.equal(out.tokens[0, ~stays], out.tokens[1, ~stays])
    pictures = [Image.fromarray((x * 255).round().byte().numpy()) for x in (source.permute(1, 2, 0), mask)]
    again = pipe("c", image=pictures[0], mask_image=pictures[1], num_images_per_prompt=3, seed=7, output_type="pt")
    assert (again.tokens == out.tokens).float().mean() > 0.5  # rounding to uint8 may move an id
    everything = pipe("c", image=source, mask_image=torch.zeros(8, 8), seed=7, output_type="pt")
    assert torch.equal(everything.tokens, ids)
    whole = pipe(-1, image=source, mask_image=torch.ones(8, 8), seed=7, output_type="latent").tokens
    assert torch.equal(whole[:, :1], ids[:, :1])
    mixed = pipe("c", image=source, mask_image=mask, method="code:scales=2:more_smooth=true", seed=7)
    assert torch.equal(mixed.tokens[0, stays], ids[0, stays])


def test_the_unconditional_class(pipe):
    """Class -1 is row `classes` of the table, so that guidance changes nothing."""
    model = pipe.transformer
    assert torch.allclose(
        model.class_condition(torch.tensor([5]), guided=False).embedding,
        model.class_condition(torch.tensor([0]), guided=True).embedding[1:],
        atol=1e-5,
    )
    same = tokens(pipe, [-1] * 8) == tokens(pipe, [-1] * 8, guidance_scale=0.0)
    assert same.double().mean() > 0.9  # but for roundings, which later scales amplify


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": [5, 5]}, "got 2 values of top-k for 4 scales"),
        ({"temperature": [1.0] * 5}, "got 5 values of temperature for 4 scales"),
        ({"temperature": [1.0, 1.0, 1.0, 0.0]}, "got temperature 0"),
        ({"top_k": [1, 2, 3, "x"]}, "got top-k 'x'"),
        ({"guidance_scale": -1.0}, "got guidance scale -1.0"),
        ({"method": "ar"}, "method ar does not draw with next-scale models; those that do: var, code"),
        ({"method": "code:scales=5"}, "got scales 5, but an image has 4"),
        ({"method": "code:scales=-1"}, "got scales -1"),
        ({"method": "code:scales=2:refiner=nobody"}, "unknown model 'nobody'"),
        (
            {"method": "code:scales=2:refiner=pocket-llamagen"},
            "pocket-llamagen cannot refine here: it is a raster model",
        ),
        ({"method": "code:scales=2:refiner=var-d16"}, "var-d16 cannot refine here: vocabulary"),
        ({"class_labels": [-2]}, "got class -2, expected -1 to 4"),
        ({"class_labels": ["beach"]}, "unknown class 'beach'"),
        ({"class_labels": None}, "draws classes"),
        ({"image": torch.zeros(3, 8, 8)}, "got an image or a mask alone"),
        ({"image": torch.zeros(3, 9, 8), "mask_image": torch.zeros(8, 8)}, "got a picture (3, 9, 8)"),
        ({"image": torch.zeros(3, 8, 8) + 2, "mask_image": torch.zeros(8, 8)}, "values out of range"),
        ({"image": "a.png", "mask_image": torch.zeros(8, 8)}, "got a str for a picture"),
        ({"output_type": "jpeg"}, "got output type 'jpeg'"),
    ],
)
def test_bad_input_is_one_sentence(pipe, options, message):
    options = {"class_labels": ["a"], **options}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        pipe(options.pop("class_labels"), **options)
    assert "\n" not in str(caught.value)


def test_raster_models_do_not_take_next_scale_methods():
    from small import pipeline

    for method in ("var", "code"):
        with pytest.raises(ValueError, match=f"method {method} does not draw with raster models"):
            pipeline()(["a"], method=method)
    with pytest.raises(ValueError, match="got top-k"):
        request.asked("ar", PRESETS["small"].recipe, {"top_k": [1, 2]}, {}, None)


def test_a_refiner_of_another_tokenizer_is_refused(pipe):
    other = scale_pipeline()
    with torch.no_grad():
        other.tokenizer.quantize.embedding.weight[3] += 1
    with pytest.raises(
        ValueError, match="other cannot refine for small-scales: its image tokenizer has another codebook"
    ):
        choose_drafter.from_model(pipe, "other", other)
    alone = NextScalePipeline(var(), multiscale_vq(), preset=SCALE_PRESET)
    with pytest.raises(ValueError, match="this method needs a refiner, and small-scales has none"):
        alone(["a"], method="code:scales=2")


def test_methods_say_what_they_draw_with():
    assert registry.methods("next-scale") == ["var", "code"]
    continuous = {"mar", "flowar", "xar", "disa", "csd"}
    assert set(registry.methods("raster")) | {"var", "code"} | continuous == set(registry.METHODS)
    assert registry.methods("continuous", "masked") == ["mar", "disa", "csd"]
    assert registry.methods("continuous", "cells") == ["xar", "disa"]


def test_a_pipeline_put_together_by_hand():
    """It is not guided, its stream shows pictures though its weights take gradients, and its parts must fit."""
    made = NextScalePipeline(VAR(SCALES), multiscale_vq())
    made.set_progress_bar_config(disable=True)
    assert (made.preset.kind, made.preset.method) == ("next-scale", "var")
    assert torch.equal(tokens(made, [0]), tokens(made, [0], guidance_scale=0.0))
    assert made([0], seed=0).trace.settings["guidance_scale"] == 0.0
    assert [len(partial.images()) for partial in made.stream([0], seed=1)] == [1] * 4
    for what, config in (
        ("sides", replace(SCALES, sides=(1, 2, 4))),
        ("codes", replace(SCALES, vocabulary=20)),
        ("code width", replace(SCALES, code_dim=6)),
    ):
        with pytest.raises(ValueError, match=f"transformer and tokenizer do not go together: {what}"):
            NextScalePipeline(var(config), multiscale_vq())([0])
    with pytest.raises(ValueError, match="a RasterPipeline draws with raster models, not with a next-scale one"):
        RasterPipeline(var(), multiscale_vq())
    for sides in ((), (0, 1), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="expected each scale larger than the one before"):
            VAR(replace(SCALES, sides=sides))
    with pytest.raises(ValueError, match="got features of 7 tokens"):
        var()(var().class_condition(torch.tensor([0]), guided=False), torch.zeros(1, 7, 4))


def test_counts_tell_who_ran(pipe):
    for scales, counted in ((0, (0, 4, 0.0, 0.0)), (1, (1, 3, 1.0, 30.0)), (4, (4, 0, 4.0, 7.5))):
        trace = pipe(["a"], method=f"code:scales={scales}", seed=1).trace
        assert (trace.forwards, trace.drafter_forwards, trace.forwards_per_image, trace.tokens_per_forward) == counted
        assert sum(trace.windows.values()) == 4
    assert pipe(["a"], method="code:scales=4", seed=1).trace.settings["refiner"] == ""
    assert pipe(["a"], method="code", scales=2, refiner="", seed=1).trace.settings["refiner"] == "small-refiner"


def test_a_head_does_not_refine(pipe):
    with pytest.raises(ValueError, match="an EAGLE head drafts for raster models: small-scales is none"):
        choose_drafter.by_name(pipe, "eagle")
