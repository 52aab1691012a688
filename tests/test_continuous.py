"""Continuous models: rounds and their schedules, seeds and batches, guidance, solvers, files of MAR, bad input."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from small import LATENTS, kl, latent_pipeline, mar

from vargen.core import registry
from vargen.core.specs import ContinuousSpec
from vargen.models.diffusion import DiffusionHead
from vargen.models.mar import MAR
from vargen.pipelines import choose_drafter
from vargen.pipelines.continuous import ContinuousPipeline
from vargen.pipelines.raster import RasterPipeline
from vargen.samplers.contract import LatentTask
from vargen.samplers.latent import in_order, masked

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
        ({"method": "mar:highest=0"}, "got highest 0, expected a timestep from 100"),
        ({"method": "mar:steps=1001"}, "got steps 1001, expected 1 to 1000"),
        ({"method": "disa:guidance_high=0.5"}, "got guidance_high 0.5 for a model that draws masked and has none"),
        ({"method": "disa:guidance_high=nan"}, "got guidance_high nan, expected 0 to 1"),
        ({"method": "csd", "temperature": 0.0}, "got temperature 0.0, expected 0.01 to 3.4e"),
        ({"method": "mar", "temperature": 3.5e38}, "got temperature 3.5e+38, expected 0.0 to 3.4e"),
        ({"method": "disa:upper=5:lower=6"}, "got steps that grow from 5 to 6"),
        ({"method": "mar:steps=2000"}, "got steps 2000"),
        ({"method": "mar:solver=euler"}, "got solver 'euler'"),
        ({"method": "mar:solver=ddim", "temperature": 0.9}, "got temperature 0.9, but ddim has none"),
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
        ({"colour": "red"}, "no setting of mar"),
    ],
)
def test_bad_input_is_one_sentence(pipe, options, message):
    options = {"class_labels": ["a"], **options}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        pipe(options.pop("class_labels"), **options)
    assert "\n" not in str(caught.value)


def test_tokens_decode_to_the_images(pipe):
    out = pipe(["a", "b"], seed=3, output_type="pt")
    assert torch.allclose(pipe.decode(out.tokens, "pt"), out.images, atol=1e-5)
    with pytest.raises(ValueError, match="transformer and autoencoder do not go together: channels 3 and 4"):
        ContinuousPipeline(mar(), kl(replace(LATENTS, channels=4)))([0], iterations=4)


def test_a_drafter_follows_its_model(pipe):
    """It is brought to the large model's device."""
    moved, there = [], pipe.drafter

    class Moving:
        spec, device, state_dict = there.spec, torch.device("meta"), there.state_dict
        named_parameters, named_buffers = there.named_parameters, there.named_buffers

        def to(self, device):
            moved.append(device)
            return there

    pipe.drafter = Moving()
    try:
        pipe(["a"], method="csd", seed=0)
    finally:
        pipe.drafter = there
    assert moved == [torch.device("cpu")]


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
        choose_drafter.check("other", replace(LATENTS, channels=4).spec, LATENTS.spec)
