"""Continuous models: rounds and their schedules, seeds and batches, guidance, solvers, files of MAR, bad input."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import official
import pytest
import synth
import torch
from scipy.stats import chisquare
from small import LATENT_PRESET, LATENTS, kl, latent_pipeline, mar

import vargen
from vargen import drafting, registry
from vargen.checkpoints import Misfit
from vargen.continuous import ContinuousPipeline
from vargen.core import Denoising, Group
from vargen.models.contract import ContinuousSpec
from vargen.models.diffusion import DiffusionHead, solver, tables
from vargen.models.mar import LAYOUT, MAR
from vargen.presets import mar as presets
from vargen.raster import RasterPipeline
from vargen.samplers.contract import LatentTask
from vargen.samplers.latent import in_order, masked
from vargen.tokenizers import kl as autoencoder
from vargen.tokenizers.kl import KLTokenizer

METHODS = ("mar", "mar:iterations=16:steps=3", "disa", "disa:shape=two-stage", "csd", "csd:rule=paper:draft=3")


@pytest.fixture(scope="module")
def pipe():
    return latent_pipeline()


def values(pipe, labels=("a", 3, "c"), **options):
    return pipe(list(labels), **{"seed": 5, "output_type": "latent", **options}).tokens


@pytest.mark.parametrize("iterations", [1, 2, 7, 64, 200, 256])
def test_rounds_take_every_token_once(iterations):
    """More and more as a cosine tells, in an order of the image's own."""
    spec = ContinuousSpec(256, 1, 1)
    rounds = masked(LatentTask(spec, torch.tensor([3, 4])), iterations)
    assert len(rounds) == iterations
    drawn = torch.cat([each.slots for each in rounds], dim=1)
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(256).expand(2, -1))
    if iterations > 1:
        assert not torch.equal(rounds[0].slots[0], rounds[0].slots[1])
    for before, after in pairwise(rounds):
        assert torch.equal(after.known, torch.cat([before.known, before.slots], dim=1).sort(dim=1).values)
    left = [256 - each.known.shape[1] for each in rounds[1:]]
    cosine = [math.floor(256 * math.cos(math.pi / 2 * i / iterations)) for i in range(1, iterations)]
    for was, now, wanted in zip([256, *left][: len(left)], left, cosine, strict=True):
        assert now == max(1, min(was - 1, wanted))
    progress = [each.progress for each in rounds]
    assert progress == sorted(progress)
    assert progress[-1] == 255 / 256


def test_orders_are_uniform():
    drawn = LatentTask(ContinuousSpec(4, 1, 1), torch.arange(24_000)).order()
    seen = (drawn * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(seen) == 24
    assert chisquare(seen.numpy()).pvalue > 1e-5


def test_groups_in_order():
    rounds = in_order(LatentTask(ContinuousSpec(21, 2, 1, "scales", (1, 4, 16)), torch.arange(2)))
    assert [each.slots[0].tolist() for each in rounds] == [[0], [1, 2, 3, 4], list(range(5, 21))]
    assert [each.known.shape[1] for each in rounds] == [0, 1, 5]
    assert [each.progress for each in rounds] == [0.0, 0.5, 1.0]
    wrong: list[Any] = [("masked", (1,)), ("scales", ()), ("cells", (4, 4))]
    for plan, groups in wrong:
        with pytest.raises(ValueError, match=f"do not fit plan {plan}"):
            ContinuousSpec(9, 1, 1, plan, groups)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", ["default", "plain"])
def test_an_image_depends_on_its_seed_alone(pipe, method, preset):
    labels = [i % 5 for i in range(16)]
    whole = values(pipe, labels, method=method, preset=preset, seed=10)
    assert whole.shape == (16, 16, 3)
    for batch in (1, 4):
        parts = values(pipe, labels, method=method, preset=preset, seed=10, batch_size=batch)
        assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-3)
    backwards = values(pipe, labels[::-1], method=method, preset=preset, seed=list(range(25, 9, -1)))
    assert torch.allclose(whole.flip(0), backwards, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(whole[0], whole[5], rtol=1e-2, atol=1e-2)  # one class, two seeds


def test_guidance_and_whose_rows_it_costs(pipe, monkeypatch):
    rows, path = [], DiffusionHead.net

    def watched(self, x, time, condition):
        rows.append(len(x))
        return path(self, x, time, condition)

    monkeypatch.setattr(DiffusionHead, "net", watched)
    guided = values(pipe)
    assert set(rows) == {6}
    rows.clear()
    plain = values(pipe, guidance_scale=1.0)
    assert set(rows) == {3}
    assert torch.equal(plain, values(pipe, guidance_scale=0.0))
    assert not torch.allclose(plain, guided)
    constant = values(pipe, schedule="constant")
    assert not torch.allclose(constant, guided)


def test_unconditional_class(pipe):
    """Class -1 is what guidance guides away from: guided or not, it is the same."""
    labels = [-1, -1]
    guided, plain = (values(pipe, labels, guidance_scale=scale) for scale in (3.0, 1.0))
    assert torch.allclose(guided, plain, rtol=1e-3, atol=1e-3)


def test_annealed_steps_are_what_runs(pipe, monkeypatch):
    counts, path = [], DiffusionHead.path

    def watched(self, z, how, noise, *, keep=True):
        counts.append(how.steps)
        return path(self, z, how, noise, keep=keep)

    monkeypatch.setattr(DiffusionHead, "path", watched)
    values(pipe, method="disa")
    assert counts == [8, 7, 6, 5, 4, 3]
    counts.clear()
    values(pipe, method="disa:upper=8:lower=8")
    assert counts == [8] * 6
    assert torch.equal(values(pipe, method="disa:upper=8:lower=8"), values(pipe, method="mar"))


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_solvers_agree_in_the_limit(name):
    """With a head that tells the noise of a Gaussian exactly, both solvers carry its start to its end."""

    class Known(DiffusionHead):
        """Tokens are N(2 z, 0.3^2)."""

        def net(self, x, time, condition):
            left, z = time[..., :1] ** 2, condition[..., :1]
            noise = (1 - left).sqrt() * (x - left.sqrt() * 2 * z) / (left * 0.09 + 1 - left)
            return torch.cat([noise, torch.zeros_like(x)], dim=-1)

        def _ready(self, z, how, like):
            steps = tables(how.steps, how.highest, z.device)
            return steps, z, (1 / steps.to_start[0])[:, None]

    head, z = Known(2, 1, 1, 8), torch.tensor([[[1.0]], [[-0.5]]])
    task = LatentTask(ContinuousSpec(1, 2, 1), torch.arange(2))
    noise = task.noise(torch.zeros(2, 1, dtype=torch.int64))
    out = head.sample(z, Denoising(500, solver=name), noise)
    assert torch.allclose(out, 2 * z + 0.3 * noise.start(), atol=0.02)
    assert solver(name, tables(20, 950, z.device).betas).timesteps.tolist() == list(range(19, -1, -1))
    with pytest.raises(ValueError, match="unknown solver 'euler'"):
        solver("euler", np.ones(3))


@pytest.mark.parametrize("method", ["mar:solver=ddim", "mar:solver=dpm++", "disa:solver=ddim"])
@pytest.mark.parametrize("preset", ["default", "plain"])
def test_solvers_draw(pipe, method, preset):
    whole = values(pipe, method=method, preset=preset)
    assert torch.isfinite(whole).all()
    assert torch.allclose(whole[1:2], values(pipe, [3], method=method, preset=preset, seed=6), rtol=1e-3, atol=1e-3)


def test_streams_grow(pipe):
    seen = list(pipe.stream(["a", "b"], seed=4))
    assert [p.settled for p in seen] == [[n, n] for n in (1, 3, 5, 8, 12, 16)]
    assert [p.forwards for p in seen] == [1, 2, 3, 4, 5, 6]
    assert [len(p.images()) for p in seen] == [2] * 6
    whole = pipe(["a", "b"], seed=4, output_type="np")
    assert torch.equal(seen[-1].tokens, whole.tokens)
    assert np.abs(seen[-1].images("np") - whole.images).max() < 1e-6
    assert (seen[-1].trace.forwards, seen[-1].trace.drafter_forwards) == (6, 0)
    assert set(seen[-1].trace.seconds) == {"sampler", "model", "head"}


def test_drafting_is_counted(pipe):
    trace = pipe(["a", "b"], method="csd:prefill=0.3", seed=1).trace
    assert (trace.forwards, trace.drafter_forwards, trace.settings["drafter"]) == (6, 4, "small-drafter")
    assert trace.drafts == 2 * (16 - 3)
    trace = pipe(["a", "b"], method="csd:prefill=1", seed=1).trace
    assert (trace.forwards, trace.drafter_forwards, trace.drafts) == (6, 0, 0)


def test_csd_without_drafts_is_plain_decoding(pipe):
    same = values(pipe, method="csd:prefill=1:upper=8:lower=8")
    assert torch.equal(same, values(pipe, method="mar"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mar:steps=0"}, "got steps 0, expected 1"),
        ({"method": "mar:iterations=0"}, "got iterations 0"),
        ({"method": "mar:iterations=17"}, "got 17 iterations for an image of 16 tokens"),
        ({"method": "csd:iterations=17"}, "got 17 iterations for an image of 16 tokens"),
        ({"method": "mar:highest=1000"}, "got highest 1000"),
        ({"method": "disa:upper=5:lower=6"}, "got steps that grow from 5 to 6"),
        ({"method": "mar:steps=2000"}, "got steps 2000"),
        ({"method": "mar:solver=euler"}, "got solver 'euler'"),
        ({"method": "mar:solver=ddim", "temperature": 0.9}, "got temperature 0.9, but solver ddim has none"),
        ({"method": "flowar"}, "method flowar does not draw with continuous models (masked)"),
        ({"method": "xar"}, "those that do: mar, disa, csd"),
        ({"method": "ar"}, "method ar does not draw with continuous models"),
        ({"top_k": 5}, "got top_k 5: continuous tokens have none"),
        ({"cfg_interval": 3}, "got cfg_interval 3: continuous tokens have none"),
        ({"temperature": -1.0}, "got temperature -1.0"),
        ({"temperature": float("nan")}, "got temperature nan"),
        ({"guidance_scale": -0.5}, "got guidance scale -0.5"),
        ({"guidance_scale": float("inf")}, "got guidance scale inf"),
        ({"class_labels": None}, "draws classes"),
        ({"class_labels": ["beach"]}, "unknown class 'beach'"),
        ({"class_labels": [5]}, "got class 5, expected -1 to 4"),
        ({"method": "csd:drafter=nobody"}, "unknown model 'nobody'"),
        ({"method": "csd:drafter=pocket-llamagen"}, "pocket-llamagen cannot draft here: it is a raster model"),
        ({"method": "csd:drafter=mar-base"}, "mar-base cannot draft here: slots 256 instead of 16"),
        ({"method": "csd:drafter=eagle"}, "an EAGLE head drafts for raster models"),
        ({"colour": "red"}, "method mar has no setting 'colour'"),
    ],
)
def test_bad_input_is_one_sentence(pipe, options, message):
    options = {"class_labels": ["a"], **options}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        pipe(options.pop("class_labels"), **options)
    assert "\n" not in str(caught.value)


def test_a_recipe_sets_what_is_not_given(pipe):
    assert pipe(["a"], seed=0).trace.settings["iterations"] == 6
    assert pipe(["a"], seed=0, method="mar:iterations=4").trace.settings["iterations"] == 4
    assert pipe(["a"], seed=0, iterations=3).trace.settings["iterations"] == 3
    assert registry.method("mar")[1].iterations == 64
    assert registry.method("mar", {"mar": {"iterations": 9}, "disa": {"iterations": 8}})[1].iterations == 9


def test_a_pipeline_put_together_by_hand():
    made = ContinuousPipeline(mar(), kl())
    made.set_progress_bar_config(disable=True)
    assert (made.preset.kind, made.preset.plan, made.preset.method) == ("continuous", "masked", "mar")
    assert made([0], seed=0, iterations=4, steps=2).trace.settings["guidance_scale"] == 1.0
    with pytest.raises(ValueError, match="this method needs a drafter, and custom has none"):
        made([0], method="csd:iterations=4")
    with pytest.raises(ValueError, match="a RasterPipeline draws with raster models, not with a continuous one"):
        RasterPipeline(mar(), kl())
    with pytest.raises(ValueError, match="got width 32 and 3 heads"):
        MAR(replace(LATENTS, heads=3))
    with pytest.raises(ValueError, match="channels 4 instead of 3"):
        drafting.check("other", replace(LATENTS, channels=4).spec, LATENTS.spec)


@pytest.mark.parametrize("name", presets.SHAPES)
def test_every_preset_has_the_published_shape(name):
    with torch.device("meta"):
        model = MAR(presets.SHAPES[name])
    shapes = official.mar(name)
    assert {key: shape for key, (_, shape) in LAYOUT.expected(model).items()} == shapes
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == official.MAR[name][5:]
    preset = registry.preset(name)
    assert (preset.classes, preset.spec, preset.method) == (1000, model.spec, "mar")
    assert preset.choose("fid").guidance_scale == presets.GUIDANCE[name]


def test_the_autoencoder_has_the_published_count():
    config = presets.TOKENIZERS["mar-kl-16"]
    with torch.device("meta"):
        model = KLTokenizer(config)
    keys = autoencoder.layout(config).expected(model)
    assert (len(keys), sum(p.numel() for p in model.parameters())) == (312, 66_456_019)
    assert keys["encoder.down.4.attn.1.q.weight"][1] == (512, 512, 1, 1)
    assert keys["encoder.conv_out.weight"][1] == (32, 512, 3, 3)
    assert keys["decoder.up.4.block.2.conv1.weight"][1] == (512, 512, 3, 3)
    assert keys["quant_conv.weight"][1] == (32, 32, 1, 1)
    assert not any(key.startswith("decoder.up.4.attn") for key in keys)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Official files of a small model and a small autoencoder, and presets to match."""
    config = replace(LATENTS, channels=16)
    images = autoencoder.KLConfig((8, 8), 1, 16, norm_groups=4)
    monkeypatch.setitem(presets.SHAPES, "mar-base", config)
    monkeypatch.setitem(
        presets.PRESETS,
        "mar-base",
        replace(presets.PRESETS["mar-base"], recipes=LATENT_PRESET.recipes, spec=config.spec),
    )
    monkeypatch.setitem(presets.TOKENIZERS, "mar-kl-16", images)
    with torch.device("meta"):
        parts = {"checkpoint-last.pth": LAYOUT.expected(MAR(config))}
        parts["kl16.ckpt"] = autoencoder.layout(images).expected(KLTokenizer(images))
    for file, expected in parts.items():
        state = synth.state_dict({key: list(shape) for key, (_, shape) in expected.items()})
        plain = {key: value + 1 for key, value in state.items()}
        nested = {"model": state, "loss": None} if file == "kl16.ckpt" else {"model": plain, "model_ema": state}
        torch.save(nested, tmp_path / file)
    return tmp_path


def test_averaged_weights_are_taken_unless_plain_ones_are_asked_for(folder):
    averaged, plain = (vargen.load("mar-base", checkpoint=folder, ema=ema) for ema in (True, False))
    for one, other in zip(averaged.transformer.parameters(), plain.transformer.parameters(), strict=True):
        assert torch.allclose(one + 1, other)
    averaged.set_progress_bar_config(disable=True)
    assert averaged([1], seed=0).images[0].size == (8, 8)
    state = torch.load(folder / "checkpoint-last.pth")
    for left in ({"model": state["model"]}, state["model"]):
        torch.save(left, folder / "checkpoint-last.pth")
        with pytest.raises(ValueError, match="has no model_ema, averaged weights: ema=False takes its plain ones"):
            vargen.load("mar-base", checkpoint=folder)
        vargen.load("mar-base", checkpoint=folder, ema=False)
    alone: Any = vargen.load_tokenizer("mar-kl-16", checkpoint=folder)
    assert alone.config.factor == 2


def test_wrong_files_are_named(folder, monkeypatch):
    """A head of another depth and width: the file's own shapes are told."""
    monkeypatch.setitem(presets.SHAPES, "mar-base", replace(LATENTS, channels=16, head_depth=2, head_width=48))
    problem = r"diffloss\.net\.cond_embed\.weight is \(32, 32\), expected \(48, 32\)"
    with pytest.raises(Misfit, match=problem) as info:
        vargen.load("mar-base", checkpoint=folder)
    assert any("missing diffloss.net.res_blocks.1.in_ln.weight" in problem for problem in info.value.problems)
    with pytest.raises(ValueError, match=r"checkpoint-last\.pth of mar-large was not published on a hub"):
        vargen.load("mar-large")
    with pytest.raises(ValueError, match="no weights file"):
        vargen.load("mar-base", checkpoint=folder / "none.pth", tokenizer_checkpoint=folder)


def test_images_of_another_size_are_refused():
    for images in (torch.zeros(1, 3, 9, 8), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"got (an image|images)"):
            kl().encode(images)
    model = kl()
    assert model.encode(torch.zeros(2, 3, 16, 8)).shape == (2, 3, 8, 4)


def test_the_last_layer_is_run_where_it_is_asked_for():
    """What is asked of one slot is what is asked of it among all."""
    model, drawn = mar(), torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    condition, known = model.class_condition(torch.tensor([1, 5]), guided=False), torch.tensor([[2, 7, 9], [0, 1, 15]])
    whole = model.decode(condition, Group(torch.arange(16).expand(2, -1), known, drawn), None)
    some = model.decode(condition, Group(torch.tensor([[4], [11]]), known, drawn), None)
    assert torch.allclose(some[:, 0], torch.stack([whole[0, 4], whole[1, 11]]), atol=1e-5)
    other = drawn.clone()
    other[:, 3] += 1  # not known: not read
    assert torch.equal(some, model.decode(condition, Group(torch.tensor([[4], [11]]), known, other), None))
