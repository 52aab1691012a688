"""Training: a resumed run equals an unbroken one, and a few steps learn something."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from small import CONFIG, llamagen, vq
from torch import nn

from vargen.models.llamagen import LlamaGenConfig
from vargen.models.mar import MAR, MARConfig
from vargen.scenes import CLASSES, dataset
from vargen.tokenizers.kl import KLConfig, KLTokenizer
from vargen.tokenizers.vq import VQConfig, VQTokenizer
from vargen.training import classifier, data, kl, mar, transformer
from vargen.training import vq as vq_training
from vargen.training.fit import Schedule, fit

SMALL_VQ = VQConfig(channels=(8, 8, 8), layers=1, latent_channels=8, codes=16, code_dim=4, norm_groups=4)
CPU = torch.device("cpu")


def linear(folder, steps, schedule_steps=20, stop_at=None):
    torch.manual_seed(0)
    module, seen = nn.Linear(4, 1), []

    def loss(generator):
        x = torch.randn(8, 4, generator=generator)
        if stop_at is not None and len(seen) == stop_at:
            raise KeyboardInterrupt
        value = (module(x).float() - x.sum(-1, keepdim=True)).square().mean()
        seen.append(value.item())
        return value, {"loss": value.item()}

    schedule = Schedule(steps=steps, rate=0.1, warmup=2, save_every=5)
    fit(module, loss, schedule, checkpoint=folder / "m.pt", seed=3, device=CPU, name="m", data="noise")
    return module, seen


def test_resumed_equals_unbroken(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, seen = linear(tmp_path / "a", 20)
    with pytest.raises(KeyboardInterrupt):
        linear(tmp_path / "b", 20, stop_at=13)
    again, rest = linear(tmp_path / "b", 20)
    assert rest == seen[10:]  # the last checkpoint was written after ten steps
    assert torch.equal(whole.weight, again.weight)
    assert seen[-1] < 0.2 * seen[0]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    linear(tmp_path, 5)
    with pytest.raises(ValueError, match=r"m\.pt is of another run"):
        linear(tmp_path, 7)
    with pytest.raises(ValueError, match="0 steps"):
        linear(tmp_path, 0)


def test_cached_tokens_belong_to_their_tokenizer(tmp_path):
    first, second = (VQTokenizer(SMALL_VQ).eval() for _ in range(2))
    ids = transformer.tokens(first, tmp_path, 10, 0, CPU)
    assert torch.equal(transformer.tokens(first, tmp_path, 10, 0, CPU), ids)
    assert not torch.equal(transformer.tokens(second, tmp_path, 10, 0, CPU), ids)


def test_cached_scenes_of_other_code_are_drawn_again(tmp_path):
    right = np.array(dataset.scenes(tmp_path, 20))
    np.save(tmp_path / "scenes-0-20.npy", 255 - right)
    assert (dataset.scenes(tmp_path, 20) == right).all()


def test_scenes_are_drawn_once_and_held_out_seeds_differ(tmp_path):
    first = dataset.scenes(tmp_path, 20)
    assert (first == dataset.scenes(tmp_path, 20)).all()
    assert (first != dataset.scenes(tmp_path, 20, dataset.HELD_OUT)).any(axis=(1, 2, 3)).all()
    assert dataset.labels(20).tolist() == list(range(len(CLASSES))) * 2
    tensor = data.to_tensor(first[:3], CPU)
    assert tensor.shape == (3, 3, 64, 64)
    assert ((tensor + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype("uint8").tolist() == first[:3].tolist()


def test_codebook_starts_from_the_data_and_dead_codes_move():
    training = vq_training.VQTraining(vq().requires_grad_(True))
    training.step += vq_training.WARM_STEPS
    images, generator = torch.rand(8, 3, 16, 16) * 2 - 1, torch.Generator().manual_seed(0)
    value, figures = training.loss(images, generator)
    value.backward()
    assert figures["used"] == 48
    weight = training.tokenizer.quantize.embedding.weight
    assert weight.grad is not None
    training.usage[:10] = 0
    before = weight.detach().clone()
    assert training.count(torch.arange(10, 48), torch.randn(50, 4), 0, generator)
    assert (weight[:10] != before[:10]).any(-1).all()
    assert torch.equal(weight[10:], before[10:])


def test_transformer_loss_falls_and_measures(tmp_path):
    tokenizer = VQTokenizer(SMALL_VQ).eval()
    config = LlamaGenConfig(layers=1, heads=2, width=32, side=16, vocabulary=16, classes=len(CLASSES))
    model = llamagen(config).requires_grad_(True)
    ids = transformer.tokens(tokenizer, tmp_path, 20, 0, CPU)
    transformer.train(model, ids, tmp_path, name="m", steps=30, batch=8, seed=0, device=CPU)
    with torch.no_grad():
        figures = transformer.measure(model, tokenizer, tmp_path, images=50, device=CPU)
    assert figures["nats_per_token"] < 2.6  # log 16 = 2.77
    assert CONFIG.classes != config.classes


def test_no_run_goes_on_with_another_tokenizers_tokens(tmp_path):
    """A finished run would be taken for trained on them, and ship a model of codes that are no more."""
    model = llamagen(LlamaGenConfig(layers=1, heads=2, width=32, side=16, vocabulary=16, classes=10))
    model, options = model.requires_grad_(True), {"name": "m", "steps": 1, "batch": 2, "seed": 0, "device": CPU}
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        ids = transformer.tokens(VQTokenizer(SMALL_VQ).eval(), tmp_path, 10, 0, CPU)
        with pytest.raises(ValueError, match=r"m\.pt is of another run") if seed else nullcontext():
            transformer.train(model, ids, tmp_path, **options)


def test_disturbed_images_stay_images():
    images = data.to_tensor(torch.zeros(4, 8, 8, 3, dtype=torch.uint8).numpy(), CPU)
    out = classifier.disturb(images, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    assert -1 <= out.min() <= out.max() <= 1


def test_autoencoder_learns_and_its_latents_get_unit_size(tmp_path):
    model = KLTokenizer(KLConfig((8, 8, 8), 1, 4, norm_groups=4, scale=1.0))
    kl.train(model, tmp_path, name="k", steps=40, batch=8, images=40, seed=0, device=CPU)
    with torch.no_grad():
        latents = model.encode(data.to_tensor(dataset.scenes(tmp_path, 40), CPU))
    assert latents.mean((0, 2, 3)).abs().max() < 0.02
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.02
    assert kl.measure(model.eval(), tmp_path, images=50, device=CPU)["psnr_db"] > 12


@torch.no_grad()
def test_latents_of_unit_size_decode_to_the_same():
    """The noise that the decoder bears shrinks as they do."""
    model: Any = KLTokenizer(KLConfig((8, 8), 1, 4, norm_groups=4, scale=0.5)).eval()
    model.model.quant_conv.weight *= 3
    model.model.quant_conv.bias += 1
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (mean, noise), decoded = model.moments(images), model.decode_latents(model.encode(images))
    kl.normalise(model, images)
    now, noise_now = model.moments(images)
    assert torch.allclose(model.decode_latents(model.encode(images)), decoded, atol=1e-4)
    assert ((now * 0.5).std((0, 2, 3)) - 1).abs().max() < 1e-4
    shrunk = (mean.std((0, 2, 3)) / now.std((0, 2, 3))).log()
    assert torch.allclose((noise - noise_now).mean((0, 2, 3)), 2 * shrunk, atol=1e-4)


def test_masked_model_loss_falls_and_measures(tmp_path):
    model = MAR(MARConfig(1, 2, 32, 1, 32, side=16, channels=4, classes=len(CLASSES), buffer=2))
    tokenizer = KLTokenizer(KLConfig((8, 8, 8), 1, 4, norm_groups=4, scale=1.0)).eval()
    options = {"name": "m", "images": 40, "steps": 30, "batch": 8, "seed": 0, "device": CPU}
    mar.train(model, tokenizer, tmp_path, **options)
    figures = mar.measure(model, tokenizer, tmp_path, images=50, device=CPU)
    assert figures["noise_error"] < 0.9  # 1 at first
    assert 0 < figures["step_divergence"] < 1


@torch.no_grad()
def test_divergence_of_a_step_is_zero_where_the_law_is_the_true_one():
    """A head that tells the noise, and the variance's lower bound, makes the true steps."""

    class Told:
        channels, logit = 2, 0.0

        def __call__(self, x, t, z):
            return torch.cat([noise, torch.full_like(noise, self.logit)], dim=-1)

    generator = torch.Generator().manual_seed(0)
    start, noise = torch.randn(64, 2, generator=generator), torch.randn(64, 2, generator=generator)
    head: Any = Told()
    for head.logit, low in ((-1.0, True), (1.0, False)):
        squared, divergence = mar.denoising(head, noise, start, torch.arange(1, 65) * 15, noise)
        assert squared == 0
        assert (divergence.abs() < 1e-6) == low
