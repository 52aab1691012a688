"""Training: a resumed run equals an unbroken one, and a few steps learn something."""

import numpy as np
import pytest
import torch
from small import CONFIG, llamagen, vq
from torch import nn

from vargen.models.llamagen import LlamaGenConfig
from vargen.scenes import CLASSES
from vargen.tokenizers.vq import VQConfig, VQTokenizer
from vargen.training import classifier, data, transformer
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
    right = np.array(data.scenes(tmp_path, 20))
    np.save(tmp_path / "scenes-0-20.npy", 255 - right)
    assert (data.scenes(tmp_path, 20) == right).all()


def test_scenes_are_drawn_once_and_held_out_seeds_differ(tmp_path):
    first = data.scenes(tmp_path, 20)
    assert (first == data.scenes(tmp_path, 20)).all()
    assert (first != data.scenes(tmp_path, 20, data.HELD_OUT)).any(axis=(1, 2, 3)).all()
    assert data.labels(20).tolist() == list(range(len(CLASSES))) * 2
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


def test_disturbed_images_stay_images():
    images = data.to_tensor(torch.zeros(4, 8, 8, 3, dtype=torch.uint8).numpy(), CPU)
    out = classifier.disturb(images, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    assert -1 <= out.min() <= out.max() <= 1
