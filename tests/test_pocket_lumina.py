"""The shipped model of prompts: it draws what they say, at every size, by every method."""

import pytest
import torch

import vargen
from vargen.eval.captions import understood
from vargen.models import pocket
from vargen.scenes import COLOURS
from vargen.scenes.dataset import captions


@pytest.fixture(scope="module")
def lumina():
    pipe = vargen.load("pocket-lumina", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.inference_mode()
def shown(images, texts):
    guesses = pocket.load("pocket-judge")(images * 2 - 1).argmax(-1).tolist()
    return sum(COLOURS[guess] == understood(text) for guess, text in zip(guesses, texts, strict=True)) / len(texts)


def test_pictures_show_their_captions(lumina):
    texts = captions(20)
    out = lumina(prompt=texts, method="ar", seed=0, batch_size=20, output_type="pt")
    assert shown(out.images, texts) >= 0.7  # 80% on 200 captions; here 20


def test_every_size_and_words_never_seen(lumina):
    for height, width in pocket.LUMINA_SIZES:
        prompts = ["a red boat in a harbour at dusk", "ein rotes Boot, \u8239 \U0001f6a4 <eoss> IMGIMGAZ"]
        out = lumina(prompt=prompts, method="sjd-coupled:window=16", seed=1, height=height, width=width)
        assert [image.size for image in out.images] == [(width, height)] * 2
    with pytest.raises(ValueError, match="the sizes nearest to it: 64x64"):
        lumina(prompt="a red boat", height=80)
    with pytest.raises(ValueError, match="expected at most 237 beside an image of this size"):
        lumina(prompt="a red boat and " * 100)


def test_the_model_chooses_sizes(lumina):
    out = lumina(prompt=captions(20), method="zipar:window=4", seed=0, batch_size=20, free_size=True)
    sizes = [(image.height, image.width) for image in out.images]
    assert set(sizes) == set(pocket.LUMINA_SIZES)  # a third of the training scenes each


def test_sjd_exact_equals_ar_token_for_token(lumina):
    texts = captions(4)
    plain = lumina(prompt=texts, method="ar", seed=7, height=64, width=96, output_type="latent")
    exact = lumina(prompt=texts, method="sjd-exact:window=16", seed=7, height=64, width=96, output_type="latent")
    assert torch.equal(exact.tokens, plain.tokens)
    assert exact.trace.forwards_per_image < 0.8 * plain.trace.forwards_per_image
