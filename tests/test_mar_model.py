"""MAR's parts: solvers, one step, temperature, the last layer, the autoencoder's input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import LATENTS, kl, latent_pipeline, mar

from vargen.core.specs import ContinuousSpec
from vargen.core.types import Denoising, Group
from vargen.models import diffusion
from vargen.models.diffusion import DiffusionHead, kept, solver, tables
from vargen.samplers.contract import LatentTask


@pytest.fixture(scope="module")
def pipe():
    return latent_pipeline()


def values(pipe, labels=("a", 3, "c"), **options):
    return pipe(list(labels), **{"seed": 5, "output_type": "latent", **options}).tokens


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


def test_one_step_is_not_the_noise_it_starts_from(pipe):
    """As the published code has it, it would be: it takes timestep 0."""
    drawn = values(pipe, method="mar:steps=1")
    task = LatentTask(LATENTS.spec, torch.tensor([5, 6, 7]))
    start = task.noise(torch.arange(16).expand(3, -1)).start()
    assert torch.corrcoef(torch.stack([drawn.flatten(), start.flatten()]))[0, 1] < 0.99
    assert kept(1) == (950,)


def test_temperature_is_of_the_noise(pipe):
    cold, warm = (values(pipe, temperature=t) for t in (0.0, 1.0))
    assert not torch.allclose(cold, warm, rtol=1e-2, atol=1e-2)
    head, z = pipe.transformer.head, torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    noise = LatentTask(LATENTS.spec, torch.tensor([3])).noise(torch.arange(4)[None])
    paths = [head.path(z, Denoising(3, temperature=t, highest=950), noise) for t in (0.0, 0.5, 1.0)]
    second = [path.states[1] for path in paths]
    assert torch.equal(second[0], paths[0].means[0])
    assert torch.allclose(second[1] - second[0], 0.5 * (second[2] - second[0]), atol=1e-4)


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


def test_modulations_are_the_same_in_one_product_and_in_several(monkeypatch):
    head = mar(replace(LATENTS, head_depth=3)).head
    x, time, condition = torch.randn(5, 3), torch.randn(32), torch.randn(5, 32)
    together, joined = head.net(x, time, condition), head.told.register_forward_hook
    monkeypatch.setattr(diffusion, "FEW", 4)
    joined(lambda *_: pytest.fail("made for all blocks at once, of more rows than that is for"))
    assert torch.allclose(head.net(x, time, condition), together, atol=1e-6)
