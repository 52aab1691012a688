"""Official MAR files: every size on the meta device against published counts, and files in their format."""

import math
from dataclasses import replace
from typing import Any

import official
import pytest
import synth
import torch
from small import LATENT_PRESET, LATENTS

import vargen
from vargen.core import registry
from vargen.core.checkpoints import Misfit
from vargen.models.mar import LAYOUT, MAR
from vargen.presets import mar as presets
from vargen.tokenizers import kl as autoencoder
from vargen.tokenizers.kl import KLTokenizer


@pytest.mark.parametrize("name", presets.SHAPES)
def test_every_preset_has_the_published_shape(name):
    with torch.device("meta"):
        model = MAR(presets.SHAPES[name])
    shapes = official.mar(name)
    assert {key: shape for key, (_, shape) in LAYOUT.expected(model).items()} == shapes
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == official.MAR[name][5:]
    preset = registry.preset(name)
    assert (preset.classes, preset.spec, preset.method) == (1000, model.spec, "mar")
    assert preset.choose("fid").guidance_scale == presets.GUIDANCE[name]


def test_the_autoencoder_has_the_published_count():
    config = presets.TOKENIZERS["mar-kl-16"]
    with torch.device("meta"):
        model = KLTokenizer(config)
    keys = autoencoder.layout(config).expected(model)
    assert (len(keys), sum(p.numel() for p in model.parameters())) == (312, 66_456_019)
    assert keys["encoder.down.4.attn.1.q.weight"][1] == (512, 512, 1, 1)
    assert keys["encoder.conv_out.weight"][1] == (32, 512, 3, 3)
    assert keys["decoder.up.4.block.2.conv1.weight"][1] == (512, 512, 3, 3)
    assert keys["quant_conv.weight"][1] == (32, 32, 1, 1)
    assert not any(key.startswith("decoder.up.4.attn") for key in keys)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Official files of a small model and a small autoencoder, and presets to match."""
    config = replace(LATENTS, channels=16)
    images = autoencoder.KLConfig((8, 8), 1, 16, norm_groups=4)
    monkeypatch.setitem(presets.SHAPES, "mar-base", config)
    monkeypatch.setitem(
        presets.PRESETS,
        "mar-base",
        replace(presets.PRESETS["mar-base"], recipes=LATENT_PRESET.recipes, spec=config.spec),
    )
    monkeypatch.setitem(presets.TOKENIZERS, "mar-kl-16", images)
    with torch.device("meta"):
        parts = {"checkpoint-last.pth": LAYOUT.expected(MAR(config))}
        parts["kl16.ckpt"] = autoencoder.layout(images).expected(KLTokenizer(images))
    for file, expected in parts.items():
        state = synth.state_dict({key: list(shape) for key, (_, shape) in expected.items()})
        plain = {key: value + 1 for key, value in state.items()}
        nested = {"model": state, "loss": None} if file == "kl16.ckpt" else {"model": plain, "model_ema": state}
        torch.save(nested, tmp_path / file)
    return tmp_path


def test_averaged_weights_are_taken_unless_plain_ones_are_asked_for(folder):
    averaged, plain = (vargen.load("mar-base", checkpoint=folder, ema=ema) for ema in (True, False))
    for one, other in zip(averaged.transformer.parameters(), plain.transformer.parameters(), strict=True):
        assert torch.allclose(one + 1, other)
    averaged.set_progress_bar_config(disable=True)
    assert averaged([1], seed=0).images[0].size == (8, 8)
    state = torch.load(folder / "checkpoint-last.pth")
    for left in ({"model": state["model"]}, state["model"]):
        torch.save(left, folder / "checkpoint-last.pth")
        with pytest.raises(ValueError, match=r"has no model_ema: ema=False \(--no-ema\) takes plain weights"):
            vargen.load("mar-base", checkpoint=folder)
        vargen.load("mar-base", checkpoint=folder, ema=False)
    alone: Any = vargen.load_tokenizer("mar-kl-16", checkpoint=folder)
    assert alone.config.factor == 2


def test_wrong_files_are_named(folder, monkeypatch):
    """A head of another depth and width is read from the file's own shapes; another width is told."""
    monkeypatch.setitem(presets.SHAPES, "mar-base", replace(LATENTS, channels=16, head_depth=2, head_width=48))
    assert vargen.load("mar-base", checkpoint=folder).transformer.config == replace(LATENTS, channels=16)
    monkeypatch.setitem(presets.SHAPES, "mar-base", replace(LATENTS, channels=16, width=48))
    problem = r"mask_token is \(1, 1, 32\), expected \(1, 1, 48\)"
    with pytest.raises(Misfit, match=problem) as info:
        vargen.load("mar-base", checkpoint=folder)
    assert any("decoder_embed.bias is (32,)" in problem for problem in info.value.problems)
    with pytest.raises(ValueError, match=r"checkpoint-last\.pth of mar-large was not published on a hub"):
        vargen.load("mar-large")
    with pytest.raises(ValueError, match="no weights file"):
        vargen.load("mar-base", checkpoint=folder / "none.pth", tokenizer_checkpoint=folder)
