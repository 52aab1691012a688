"""Official VAR and CoDe files: every size on the meta device against published counts, and files in their format."""

import math
from dataclasses import replace

import official
import pytest
import synth
import torch

import vargen
from vargen.core import hub, registry
from vargen.models import var
from vargen.models.var import VAR, VARConfig
from vargen.presets import var as presets
from vargen.tokenizers import multiscale_vq
from vargen.tokenizers.multiscale_vq import MultiScaleVQConfig, MultiScaleVQTokenizer


@pytest.mark.parametrize("name", presets.SHAPES)
def test_every_preset_has_the_published_shape(name):
    depth = {"var": name[-2:], "code-drafter": 30, "code-refiner": 16}[name.rsplit("-", 1)[0]]
    shapes, buffers = official.var(int(depth))
    with torch.device("meta"):
        model = VAR(presets.SHAPES[name])
    expected = var.LAYOUT.expected(model)
    assert {key: shape for key, (_, shape) in expected.items()} == shapes
    assert sum(math.prod(shape) for shape in shapes.values()) == official.VAR[int(depth)][3]
    assert len(shapes) + len(buffers) == official.VAR[int(depth)][2]
    preset = registry.preset(name)
    assert preset.spec == model.spec
    usual = f"code:scales={name[-1]}" if name.startswith("code-drafter") else "var"
    assert (preset.classes, len(preset.names()), preset.method) == (1000, 1000, usual)


@pytest.mark.parametrize(("name", "scales"), [("var-vq-256", 10), ("var-vq-512", 10)])
def test_the_tokenizer_has_the_published_count(name, scales):
    with torch.device("meta"):
        model = MultiScaleVQTokenizer(presets.TOKENIZERS[name])
    assert sum(p.numel() for p in model.parameters()) == 108_948_355
    keys = multiscale_vq.layout(presets.TOKENIZERS[name]).expected(model)
    assert keys["decoder.up.4.attn.2.qkv.weight"][1] == (1920, 640, 1, 1)
    assert keys["encoder.down.4.block.0.nin_shortcut.weight"][1] == (640, 320, 1, 1)
    assert keys["quantize.quant_resi.qresi_ls.3.weight"][1] == (32, 32, 3, 3)
    assert len(presets.TOKENIZERS[name].sides) == scales


def test_files_have_the_published_names():
    named = {name: (presets.file_of(name), presets.published(name)[0]) for name in presets.SHAPES}
    assert named["var-d30"] == ("var_d30.pth", "FoundationVision/var")
    assert named["code-drafter-8"] == ("drafter_8.pth", "Zigeng/VAR_CoDe")
    assert named["code-refiner-6"] == ("refiner_6.pth", "Zigeng/VAR_CoDe")
    assert registry.preset("code-drafter-7").drafter == "code-refiner-7"
    assert registry.preset("var-d30").drafter == "var-d16"
    code = registry.preset("code-drafter-7").recipe
    assert (code.top_k, code.top_p, code.guidance_scale) == (600, 0.96, 1.5)
    assert code.temperature == (*[1.1] * 7, *[1.0] * 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Official files of models cut down to two layers and few channels, and presets to match."""
    config = VARConfig(2, 2, 32, vocabulary=40, code_dim=8)
    images = MultiScaleVQConfig((32, 32), 1, 8, 40)
    for name in ("var-d16", "var-d30", "code-drafter-8", "code-refiner-8"):
        monkeypatch.setitem(presets.SHAPES, name, replace(config, layers=1) if "16" in name else config)
        preset = replace(presets.PRESETS[name], spec=config.spec)
        monkeypatch.setitem(presets.PRESETS, name, preset)
        with torch.device("meta"):
            shapes = {key: shape for key, (_, shape) in var.LAYOUT.expected(VAR(presets.SHAPES[name])).items()}
        state = synth.state_dict({key: list(shape) for key, shape in shapes.items()})
        state |= {"lvl_1L": torch.zeros(1, 680, dtype=torch.int64), "blocks.0.attn.zero_k_bias": torch.zeros(32)}
        state["attn_bias_for_masking"] = torch.zeros(1, 1, 680, 680)
        torch.save(state, tmp_path / presets.file_of(name))
    monkeypatch.setitem(presets.TOKENIZERS, "var-vq-256", images)
    with torch.device("meta"):
        expected = multiscale_vq.layout(images).expected(MultiScaleVQTokenizer(images))
    state = synth.state_dict({key: list(shape) for key, (_, shape) in expected.items()})
    state["quantize.ema_vocab_hit_SV"] = torch.zeros(10, 40)
    torch.save(state, tmp_path / presets.TOKENIZER_FILE)
    return tmp_path


def test_models_load_from_a_folder_and_share_an_image(folder):
    pipe = vargen.load("var-d30", checkpoint=folder, drafter="var-d16", drafter_checkpoint=folder)
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe.transformer.layers) == 2
    options = {"seed": 0, "output_type": "latent", "preset": "code"}
    plain, shared = (pipe([207, 3], method=method, **options) for method in ("var", "code:scales=9"))
    assert plain.tokens.shape == (2, 680)
    assert torch.equal(plain.tokens[:, :424], shared.tokens[:, :424])
    assert not torch.equal(plain.tokens, shared.tokens)
    assert shared.trace.settings["refiner"] == "var-d16"
    assert shared.trace.settings["temperature"] == [1.1] * 7 + [1.0] * 3
    alone = vargen.load_tokenizer("var-vq-256", checkpoint=folder)
    assert isinstance(alone, MultiScaleVQTokenizer)
    assert alone.config.codes == 40


def test_pairs_come_together_from_the_hub(folder, monkeypatch):
    asked = []

    def fetch(repository, file, revision):
        asked.append((repository, file, revision))
        return folder / file

    monkeypatch.setattr(hub, "fetch", fetch)
    pipe = vargen.load("code-drafter-8")
    pipe.set_progress_bar_config(disable=True)
    assert pipe([1], seed=0).trace.drafter_forwards == 2
    assert [file for _, file, _ in asked] == [
        *("drafter_8.pth", presets.TOKENIZER_FILE),
        *("refiner_8.pth", presets.TOKENIZER_FILE),
    ]
    assert asked[1][2] == presets.REVISION


def test_wrong_files_are_named(folder):
    state = torch.load(folder / "var_d30.pth")
    state["blocks.2.attn.q_bias"], state["head.bias"] = torch.zeros(32), torch.zeros(41)
    del state["pos_start"]
    torch.save(state, folder / "var_d30.pth")
    with pytest.raises(ValueError, match=r"missing pos_start") as caught:
        vargen.load("var-d30", checkpoint=folder)
    assert "unexpected blocks.2.attn.q_bias" in str(caught.value)
    assert "head.bias is (41,), expected (40,)" in str(caught.value)
    with pytest.raises(ValueError, match="no weights file"):
        vargen.load("var-d20", checkpoint=folder)
    state = torch.load(folder / "var_d16.pth") | {"blocks.0.attn.zero_k_bias": torch.ones(32)}
    torch.save(state, folder / "var_d16.pth")
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.zero_k_bias is not all zeros"):
        vargen.load("var-d16", checkpoint=folder)
