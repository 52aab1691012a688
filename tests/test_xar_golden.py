"""xAR against recorded outputs of the official implementation, through the official file."""

import copy

import flow_loop
import pytest
import synth
import torch
import torch.nn.functional as F
from flow_loop import Recorded, relative

from vargen.core.noise import PathNoise
from vargen.core.types import Denoising
from vargen.models import flow, xar
from vargen.models.flow import Step, timesteps
from vargen.models.xar import XAR, XARConfig

CASES = ("xar_10_10", "xar_12_5")


def load(case, tmp_path_factory):
    c = case["config"]
    config = XARConfig(c["encoder_depth"], c["encoder_num_heads"], c["encoder_embed_dim"])
    return flow_loop.load(XAR, config, xar.LAYOUT, case, tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module", params=CASES)
def golden(request, tmp_path_factory):
    """A model, loaded as official files are; how each cell is drawn; the noise of each; and the recorded tensors."""
    case, recorded = synth.case(request.param)
    model, c = load(case, tmp_path_factory), case["config"]
    steps = flow_loop.annealed(c["flow_upper_steps"], c["flow_lower_steps"], 4)
    draws = iter(flow_loop.recorded_noise(case, recorded))
    noise = [Recorded(next(draws), torch.stack([next(draws) for _ in range(n - 1)])) for n in steps]
    assert next(draws, None) is None
    return model, flow_loop.plans(model.spec, steps, c["cfg_scale"]), noise, recorded


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(synth.case(CASES[0])[0], tmp_path_factory)


def test_a_whole_generation(golden):
    model, how, noise, recorded = golden
    values = flow_loop.draw(model, recorded["labels"], how, noise)
    assert relative(model.image(values), recorded["gen_latents"]) < 1e-4


def test_an_image_does_not_depend_on_its_batch(golden):
    model, how, noise, recorded = golden
    for row in range(2):
        one = slice(row, row + 1)
        own = [Recorded(each.first[one], each.rest[:, one]) for each in noise]
        values = flow_loop.draw(model, recorded["labels"][one], how, own)
        assert relative(model.image(values)[0], recorded["gen_latents"][row]) < 1e-4


def test_cached_cells_are_one_masked_pass(model, monkeypatch):
    """A cell's context holds whatever is cached later, since drawing only reads the cache."""
    spec, labels = model.spec, torch.tensor([3, 1000])
    values = torch.randn(2, spec.slots, 16, generator=torch.Generator().manual_seed(0))
    condition, cache = model.class_condition(labels, guided=True), model.make_cache(4)
    groups = [flow_loop.group(spec, cell, values) for cell in range(4)]
    contexts = [model.decode(condition, group, cache) for group in groups]
    assert cache.keys.shape[2] == 192
    kept = cache.keys.clone()
    time, both = model.time_embed(timesteps([0.0], model.device)), values.repeat(2, 1, 1)
    parts = both.split(64, dim=1)
    apart = [model.velocity(context, time[0], part) for context, part in zip(contexts, parts, strict=True)]
    model.velocity(contexts[1], time[0], -parts[1])
    assert torch.equal(cache.keys, kept)
    few = [model.velocity(context, time[0], part[:2]) for context, part in zip(contexts, parts, strict=True)]

    cell = torch.arange(4).repeat_interleave(64)
    seen = cell[:, None] >= cell

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)

    monkeypatch.setattr(flow, "attend", attend)
    modulations = model.modulations(condition.embedding[:, 0] + time)
    step = Step(xar.cell_rotations(model.config, model.device))
    whole = model.output(model.through(model.inward(both), slice(0, spec.slots), modulations, step))
    assert relative(torch.cat(apart, dim=1), whole) < 1e-5
    assert relative(torch.cat(few, dim=1), whole[:2]) < 1e-5


def test_only_guided_steps_run_unconditional_rows(model):
    condition, cache = model.class_condition(torch.tensor([1, 2]), guided=True), model.make_cache(4)
    values = torch.randn(2, 256, 16, generator=torch.Generator().manual_seed(0))
    context = model.decode(condition, flow_loop.group(model.spec, 1, values), cache)
    noise = PathNoise(torch.arange(2), torch.arange(64, 128).expand(2, -1), 16)
    alone = model.class_condition(torch.tensor([1, 2]), guided=False)
    own = model.decode(alone, flow_loop.group(model.spec, 1, values), model.make_cache(2))
    rows = []
    hook = model.inward.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    plain = model.head.sample(context, Denoising(4), noise)
    assert relative(model.head.sample(own, Denoising(4), noise), plain) < 1e-5
    assert rows == [2] * 8
    guided = model.head.sample(context, Denoising(4, 3.0, guidance_high=0.7), noise)
    assert rows[8:] == [2, 4, 4, 4]
    hook.remove()
    assert relative(guided, plain) > 0.01
    with pytest.raises(ValueError, match="got 2 rows to guide 2 images with"):
        model.head.sample(own, Denoising(4, 3.0), noise)


def test_times_are_embedded_once(model):
    context = model.decode(
        model.class_condition(torch.tensor([1]), guided=False),
        flow_loop.group(model.spec, 0, torch.zeros(1, 256, 16)),
        model.make_cache(1),
    )
    calls = []
    hook = model.time_embed.register_forward_hook(lambda *_: calls.append(1))
    for steps in (1, 2, 5):
        out = model.head.sample(context, Denoising(steps), PathNoise(torch.arange(1), torch.arange(64)[None], 16))
        assert out.isfinite().all()
    hook.remove()
    assert len(calls) == 3


def test_time_runs_as_published():
    assert xar.times(4) == pytest.approx((1, 0.68, 0.36, 0.04, 0))
    assert xar.times(1) == (1, 0)
    with pytest.raises(ValueError, match="got 0 steps of a flow"):
        xar.times(0)


def test_cells_and_their_rotations_have_one_order():
    """Of 3 by 3 cells of 2 by 2: cell row, cell column, then row and column in the cell."""
    config = XARConfig(1, 1, 8, side=6, cell=2, channels=2)
    places = [(r, c) for y in range(3) for x in range(3) for r in (2 * y, 2 * y + 1) for c in (2 * x, 2 * x + 1)]
    with torch.device("meta"):
        model = XAR(config)
    assert model.spec.groups == (4,) * 9
    image = model.image(torch.tensor(places).float()[None])
    wanted = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")).float()
    assert torch.equal(image[0], wanted)
    cos, sin = (part[0, :, 0] for part in xar.cell_rotations(config, torch.device("cpu")).alone.parts)
    angles = torch.atan2(sin, cos)  # the fastest are first of either axis
    assert torch.allclose(angles[:, [0, 2]], ((torch.tensor(places) + torch.pi) % (2 * torch.pi) - torch.pi), atol=1e-5)


def test_half_precision_follows(model):
    def one(model):
        condition, cache = model.class_condition(torch.tensor([1, 2]), guided=True), model.make_cache(4)
        context = model.decode(condition, flow_loop.group(model.spec, 1, values), cache)
        return model.head.sample(context, Denoising(4, 2.0), noise)

    values = torch.randn(2, 256, 16, generator=torch.Generator().manual_seed(0))
    noise = PathNoise(torch.arange(2), torch.arange(64, 128).expand(2, -1), 16)
    wanted, out = one(model), one(copy.deepcopy(model).bfloat16())
    assert out.dtype == torch.float32
    assert relative(out, wanted) < 0.05


def test_shapes_that_do_not_go_are_named():
    with torch.device("meta"), pytest.raises(ValueError, match="got side 16 and cells of 5"):
        XAR(XARConfig(cell=5))
