"""Lumina-mGPT at its edges: drafters that do not fit, no image tokenizer, bytes, bfloat16, what the trace says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chameleon import CONFIG, lumina, text, vqgan
from PIL import Image

from vargen.core.preset import Preset, Recipe
from vargen.pipelines.prompted import PromptedPipeline

LATENT = {"output_type": "latent", "seed": 3}


def pipeline(recipe: Recipe | None = None) -> PromptedPipeline:
    model = lumina()
    preset = Preset("small-lumina", "", {"default": recipe or Recipe(3.0)}, 0, lambda *_: None, spec=model.spec)
    pipe = PromptedPipeline(model, vqgan(), text_tokenizer=text(), preset=preset)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("config", "size", "complaint"),
    [
        (replace(CONFIG, context=30), (64, 64), "got a prompt of 9 tokens, expected at most 7"),
        (replace(CONFIG, vocabulary=CONFIG.vocabulary + 1), (64, 64), "text vocabulary is another"),
        (CONFIG, (32, 96), "cannot draft here: rows 2 instead of 4"),
    ],
)
def test_what_cannot_draft_is_refused(config, size, complaint):
    pipe = pipeline()
    pipe.drafter = lumina(size, config=config)
    with pytest.raises(ValueError, match=complaint):
        pipe(prompt="a red boat by the sea", method="speculative", seed=0)


def test_without_an_image_tokenizer():
    pipe = pipeline()
    pipe.register_modules(tokenizer=None)
    assert pipe(prompt="sea", **LATENT).tokens.shape == (1, 4, 4)
    for image, complaint in ((None, "has no image tokenizer here"), (Image.new("RGB", (9, 9)), "is read with")):
        with pytest.raises(ValueError, match=complaint):
            pipe(prompt="sea", image=image)


def test_pixels_are_cut_to_bytes():
    """As Lumina-mGPT's authors do it: no rounding. A half of all values is one lower than rounded."""
    pipe = pipeline()
    rounded = pipe(prompt="sea", seed=0)
    pipe.tokenizer.config = replace(pipe.tokenizer.config, truncates=True)
    cut = np.asarray(pipe(prompt="sea", seed=0).images[0]).astype(int)
    exact = (pipe.tokenizer.decode(rounded.tokens)[0].clamp(-1, 1) + 1) / 2 * 255
    assert (cut == exact.permute(1, 2, 0).floor().numpy()).mean() > 0.999
    assert (np.asarray(rounded.images[0]) - cut == 1).mean() > 0.2


def test_the_trace_names_the_law():
    assert "top_n_sigma" not in pipeline()(prompt="sea", **LATENT).trace.settings
    sharp = pipeline(Recipe(4.0, top_k=9, top_n_sigma=1.0))
    assert sharp(prompt="sea", **LATENT).trace.settings["top_n_sigma"] == 1.0


def test_streams_read_pictures():
    pipe, red = pipeline(), Image.new("RGB", (64, 64), "red")
    *_, last = pipe.stream(prompt="sea", image=red, method="ar", seed=0)
    assert torch.equal(pipe._codes(last.tokens), pipe(prompt="sea", image=red, method="ar", seed=0).tokens)


@torch.no_grad()
def test_keys_in_bfloat16_are_normalised_and_turned_in_float32():
    """As the published code has it under autocast; what is kept is rounded once, at the end."""
    model = lumina().bfloat16()
    condition = model.text_condition(*model.tokenize(["the sea"], text()), guided=False)
    front = condition.embedding.shape[1]
    cache = model.make_cache(1, 0, front)
    model.prefill(condition, cache)
    layer: Any = model.decoder.model.layers[0]
    weight = layer.self_attn.state_dict()["k_proj.weight"]
    _, normalised = layer.input_layernorm(condition.embedding, None, None)
    k = F.linear(normalised, weight).unflatten(-1, (CONFIG.heads, -1)).float()
    mean, variance = k.mean(-1, keepdim=True), k.var(-1, unbiased=False, keepdim=True)
    k = (k - mean) / (variance + 1e-5).sqrt() * layer.self_attn.k_norm.weight + layer.self_attn.k_norm.bias
    half = CONFIG.head_dim // 2
    angles = torch.arange(front)[:, None].float() * 10000.0 ** (-torch.arange(half) / half)
    cos, sin = (part.bfloat16().float()[:, None] for part in (angles.cos(), angles.sin()))
    a, b = k[..., :half], k[..., half:]
    wanted = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).bfloat16()
    assert (cache.keys[0, :, :front] == wanted).float().mean() > 0.99  # but for ties in the last bit
