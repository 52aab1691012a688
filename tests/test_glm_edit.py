"""Pictures in GLM-Image's prompts: what transformers draws behind them, what diffusers paints with them."""

import pytest
import torch
from glm_folder import load, picture, pipeline
from PIL import Image

from vargen.models import glm_image
from vargen.pipelines.glm_sources import fit
from vargen.pipelines.running import RunningImages


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(glm_image, "AREA", (128 * 192, 512 * 512))


def drawn_by_transformers(theirs, prompt, pictures, high, wide):
    """Greedy ids behind a prompt with pictures, by the classes' own processor and generate."""
    content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": prompt}]
    how = {"target_h": high, "target_w": wide, "return_tensors": "pt"}
    turns = [[{"role": "user", "content": content}]]
    read = theirs.processor.apply_chat_template(turns, tokenize=True, return_dict=True, processor_kwargs=how)
    count = high * wide // 32**2
    model = theirs.vision_language_encoder
    return model.generate(**read, max_new_tokens=count + 1, do_sample=False)[0, read["input_ids"].shape[1] :][:count]


def test_pictures_are_edited(repository):
    """Codes are what transformers draws behind the same pictures; the painter is given them and the pictures."""
    pipe, theirs = load(repository), pipeline()
    one, two = picture(1, (640, 512)), picture(2, (512, 512))
    how = {"height": 128, "width": 192, "method": "sjd-exact:window=8"}
    out = pipe("a red boat", image=[[one, two]], top_k=1, seed=1, output_type="latent", **how)
    assert torch.equal(out.tokens[0].flatten(), drawn_by_transformers(theirs, "a red boat", [one, two], 128, 192))
    many = pipe(["a red boat", "sea"], image=[one, two], seed=[4, 5], num_inference_steps=2, **how)
    alone = pipe("sea", image=two, seed=5, num_inference_steps=2, **how)
    assert torch.equal(many.tokens[1], alone.tokens[0])
    assert many.images[1].tobytes() == alone.images[0].tobytes()
    codes = pipe.reader.read(two).codes
    assert codes.shape == (16, 16)
    grids = torch.tensor([[1, 32, 32]])
    prior = alone.tokens[0].repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()[None]
    wanted = theirs(
        prompt="sea",
        image=[two],
        prior_token_ids=prior,
        prior_token_image_ids=[codes.repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()],
        source_image_grid_thw=[grids],
        height=128,
        width=192,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert wanted.tobytes() == alone.images[0].tobytes()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": "a.png"}, "expected a PIL image"),
        ({"image": Image.new("RGB", (900, 100))}, "at most 4 to 1"),
        ({"image": [Image.new("RGB", (64, 64))] * 2}, "pictures for 2 prompts"),
        ({"image": Image.new("RGB", (64, 64)), "prompt": None, "prompt_embeds": torch.zeros(1)}, "no prompt"),
    ],
)
def test_pictures_that_are_none(repository, given, said):
    with pytest.raises(ValueError, match=said):
        load(repository)(**{"prompt": "sea", "height": 128, "width": 192, "output_type": "latent", **given})


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((640, 512), (640, 512)), ((100, 100), (512, 512)), ((4000, 3000), (2048, 1536)), ((2000, 500), (2048, 512))],
)
def test_pictures_are_fitted(size, fitted):
    assert fit(Image.new("RGB", size)).size == fitted


def test_pictures_of_several_calls_are_drawn_together(repository):
    """Each with its own prompt, pictures and number of steps."""
    pipe, how = load(repository), {"height": 128, "width": 192, "method": "sjd-exact:window=8"}
    batch = RunningImages(pipe, 2)
    calls = [
        {"prompt": "a red boat", "image": picture(1, (640, 512)), "seed": 4, "num_inference_steps": 2},
        {"prompt": "sea", "image": picture(2, (512, 512)), "seed": 5, "num_inference_steps": 3},
        {"prompt": "sea", "seed": 6, "num_inference_steps": 2},
    ]
    images = [batch.admit(**call, **how)[0] for call in calls]
    while batch.drawing:
        batch.step()
    for image, call in zip(images, calls, strict=True):
        alone = pipe(**call, **how)
        assert image.partial.images()[0].tobytes() == alone.images[0].tobytes()
        assert image.partial.trace.settings == alone.trace.settings
