"""VAR, its tokenizer and their training by themselves."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small import SCALES, multiscale_vq, var

from vargen.models.var import VAR
from vargen.tokenizers.multiscale_vq import MultiScaleVQConfig
from vargen.training.var import initialise

SPEC = SCALES.spec


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_generation_is_teacher_forcing(shared, dtype):
    config = replace(SCALES, shared=shared)
    model, inputs = var(config).to(dtype), torch.randn(3, 29, 4, generator=torch.Generator().manual_seed(0))
    condition = model.class_condition(torch.tensor([0, 1, 2]), guided=False)
    whole, cache, out = model(condition, inputs), model.make_cache(3, SPEC.start(3)), []
    for scale in range(4):
        part = inputs[:, max(0, SPEC.start(scale) - 1) : SPEC.start(scale + 1) - 1]
        part = part if scale else part[:, :0]
        out.append(model.decode(condition, part, range(scale, scale + 1), cache))
    error = (torch.cat(out, 1) - whole).float().norm() / whole.float().norm()
    assert error < (1e-5 if dtype == torch.float32 else 2e-2)
    assert out[0].dtype == dtype


@pytest.mark.parametrize(("sides", "which"), [
    ((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)),
    ((1, 2, 3, 4, 6, 9, 13, 18, 24, 32), (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)),
    ((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64), (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3)),
    ((4,), (0,)),
])  # fmt: skip
def test_which_scale_takes_which_smoothing(sides, which):
    assert MultiScaleVQConfig(sides=sides).smoothing == which


def test_a_pyramid_is_the_sum_of_its_scales():
    """Codes are enlarged, smoothed and summed; the last scale is not enlarged, and reconstruction improves by scale."""
    vq = multiscale_vq()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ids, latents = vq.encode(images), vq.latents(images)
    assert ids.shape == (2, 30)
    features, inputs = vq.pyramid(ids)
    assert inputs.shape == (2, 29, 4)
    total = torch.zeros_like(features)
    for scale, side in enumerate(SPEC.sides):
        h = F.embedding(ids[:, SPEC.start(scale) : SPEC.start(scale + 1)], vq.quantize.codebook())
        h = h.transpose(1, 2).reshape(2, 4, side, side)
        h = F.interpolate(h, size=(4, 4), mode="bicubic") if side < 4 else h
        total = total + 0.5 * h + 0.5 * vq.quantize.smoothings[vq.quantize.which[scale]](h)
        if side < 4:
            following = F.adaptive_avg_pool2d(total, side + 1).flatten(2).transpose(1, 2)
            assert torch.allclose(
                inputs[:, SPEC.start(scale + 1) - 1 : SPEC.start(scale + 2) - 1], following, atol=1e-5
            )
    assert torch.allclose(total, features, atol=1e-5)
    assert latents.shape == features.shape
    assert vq.decode(ids).shape == images.shape


def test_training_starts_from_its_seed():
    def start(seed):
        model = VAR(replace(SCALES, shared=seed == 2))
        initialise(model, seed)
        return model.state_dict()

    first, again, other = start(0), start(0), start(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["inward.weight"], other["inward.weight"])
    assert (start(2)["layers.0.offset"][..., :2, :] == 0.5).all()
    assert first["layers.0.ffn.fc1.bias"].abs().max() == 0
