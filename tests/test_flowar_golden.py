"""FlowAR against recorded outputs of the official implementation, through the official file."""

import copy

import flow_loop
import pytest
import synth
import torch
import torch.nn.functional as F
from flow_loop import Recorded, relative

from vargen.core.noise import PathNoise
from vargen.core.types import Denoising
from vargen.kernels.rope import Joined
from vargen.models import flow, flowar
from vargen.models.flow import Step
from vargen.models.flowar import FlowAR, FlowARConfig

CASES = tuple(f"flowar_{kind}_{steps}" for kind in ("v1", "v2") for steps in ("25_25", "25_15", "50_15"))


def config(case):
    c = case["config"]
    return FlowARConfig(
        c["encoder_depth"],
        c["encoder_num_heads"],
        c["encoder_embed_dim"],
        head_depth=c["diffloss_d"],
        head_width=c["diffloss_w"],
        cross=c["cross"],
        sides=tuple(c["scale"]),
    )


@pytest.fixture(scope="module", params=CASES)
def golden(request, tmp_path_factory):
    """A model, loaded as official files are; how each scale is drawn; the noise of each; and the recorded tensors."""
    case, recorded = synth.case(request.param)
    model = flow_loop.load(FlowAR, config(case), flowar.LAYOUT, case, tmp_path_factory.mktemp("official"))
    c = case["config"]
    steps = flow_loop.annealed(c["flow_upper_steps"], c["flow_lower_steps"], len(c["scale"]))
    how = flow_loop.plans(model.spec, steps, c["cfg_scale"], guidance_high=c["guidance_high"])
    noise = [Recorded(draw, draw[None, :0]) for draw in flow_loop.recorded_noise(case, recorded)]
    return model, how, noise, recorded


@pytest.fixture(scope="module", params=[CASES[0], CASES[3]])
def model(request, tmp_path_factory):
    case, _ = synth.case(request.param)
    return flow_loop.load(FlowAR, config(case), flowar.LAYOUT, case, tmp_path_factory.mktemp("official"))


def test_a_whole_generation(golden):
    model, how, noise, recorded = golden
    values = flow_loop.draw(model, recorded["labels"], how, noise)
    assert values.shape == (2, 21, 16)
    assert relative(model.image(values), recorded["gen_latents"]) < 1e-4


def test_an_image_does_not_depend_on_its_batch(golden):
    model, how, noise, recorded = golden
    for row in range(2):
        own = [Recorded(each.first[row : row + 1], each.rest) for each in noise]
        values = flow_loop.draw(model, recorded["labels"][row : row + 1], how, own)
        assert relative(model.image(values)[0], recorded["gen_latents"][row]) < 1e-4


def test_cached_scales_are_one_masked_pass(model, monkeypatch):
    """What the last scale leaves in a cache is not kept, and nothing is missed."""
    spec, sides, labels = model.spec, model.config.sides, torch.tensor([3, 1000])
    values = torch.randn(2, spec.slots, 16, generator=torch.Generator().manual_seed(0))
    condition, cache = model.class_condition(labels, guided=True), model.make_cache(4)
    groups = [flow_loop.group(spec, scale, values) for scale in range(3)]
    z = torch.cat([model.decode(condition, group, cache) for group in groups], dim=1)
    assert cache.keys.shape[2] == 5

    inputs = [condition.embedding[:, :1]]
    for before, side in zip(groups, sides[1:], strict=False):
        inputs.append(model.inward(model.enlarge(values[:, before.slots[0]], side)).repeat(2, 1, 1))
    scale = torch.repeat_interleave(torch.arange(3), torch.tensor(spec.groups))
    seen = scale[:, None] >= scale

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)

    monkeypatch.setattr(flow, "attend", attend)
    turns = [flow.grid(side, 16, 16, model.device) for side in sides]
    cos, sin = (torch.cat(part, dim=1) for part in zip(*((each.cos, each.sin) for each in turns), strict=True))
    given = (slice(0, spec.slots), condition.embedding[:, 1:], Step(Joined(cos, sin)))
    whole = model.through(torch.cat(inputs, dim=1), *given) + model.positions
    assert relative(z, whole) < 1e-5


def test_only_guided_steps_run_unconditional_rows(model):
    """Of ten published steps, three begin above 0.5."""
    z = torch.randn(6, 4, 64, generator=torch.Generator().manual_seed(0))
    noise = PathNoise(torch.arange(3), torch.arange(1, 5).expand(3, -1), 16)
    rows, told = [], []
    hooks = [
        model.head.input_proj.register_forward_hook(lambda _, given, __: rows.append(len(given[0]))),
        model.head.cond_embed.register_forward_hook(lambda _, given, __: told.append(len(given[0]))),
    ]
    plain = model.head.sample(z[:3], Denoising(10), noise)
    assert rows == [3] * 10
    assert torch.equal(plain, model.head.sample(z, Denoising(10), noise))
    assert rows == [3] * 20
    assert torch.equal(plain, model.head.sample(z, Denoising(10, 3.0, guidance_high=-1.0), noise))
    assert rows == [3] * 30
    guided = model.head.sample(z, Denoising(10, 3.0, guidance_high=0.5), noise)
    assert rows[30:] == [3] * 3 + [6] * 7
    assert told == [3, 3, 3, 6]
    for hook in hooks:
        hook.remove()
    assert relative(guided, plain) > 0.01
    with pytest.raises(ValueError, match="got 3 rows to guide 3 images with"):
        model.head.sample(z[:3], Denoising(10, 3.0), noise)


def test_what_does_not_change_is_computed_once(model):
    """Of z and of the times, whatever the number of steps."""
    z, calls = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0)), []
    once = [model.head.cond_embed, model.head.time_embed]
    once += [part for name, part in model.head.named_modules() if name.endswith(("cross.wkv", "ada_lin_attn"))]
    hooks = [part.register_forward_hook(lambda part, *_: calls.append(part)) for part in once]
    model.head.sample(z, Denoising(8), PathNoise(torch.arange(1), torch.arange(4)[None], 16))
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(set(calls)) == len(once) == (6 if model.config.cross else 2)


def test_time_runs_as_published():
    assert [len(flowar.times(n)) - 1 for n in (1, 2, 3, 15, 24, 25, 49, 50, 51)] == [1, 2, 2, 14, 24, 24, 48, 50, 50]
    assert flowar.times(50)[:3] == pytest.approx((1, 0.98, 0.96))
    assert flowar.times(4) == pytest.approx((1, 0.3, 0.25, 0.125, 0))
    with pytest.raises(ValueError, match="got 0 steps of a flow"):
        flowar.times(0)


def test_half_precision_follows(model):
    z = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(0))
    noise = PathNoise(torch.arange(2), torch.arange(5, 21).expand(2, -1), 16)
    wanted = model.head.sample(z, Denoising(6, 2.0), noise)
    out = copy.deepcopy(model).bfloat16().head.sample(z.bfloat16(), Denoising(6, 2.0), noise)
    assert out.dtype == torch.float32
    assert relative(out, wanted) < 0.05


@pytest.mark.parametrize(("options", "complaint"), [
    ({"sides": (2, 4)}, r"got sides \(2, 4\)"),
    ({"sides": (1, 4, 4)}, r"got sides \(1, 4, 4\)"),
    ({"heads": 7}, "got width 768 and 7 heads"),
    ({"head_width": 96}, "got head width 96"),
])  # fmt: skip
def test_shapes_that_do_not_go_are_named(options, complaint):
    with torch.device("meta"), pytest.raises(ValueError, match=complaint):
        FlowAR(FlowARConfig(**options))
