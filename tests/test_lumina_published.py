"""The published Lumina-mGPTs and their image tokenizers, on the meta device: keys, shapes, counts, memory."""

import pytest
import torch

import vargen
from vargen import registry
from vargen.models.chameleon import LAYOUT, Chameleon
from vargen.models.lumina_mgpt import Anole
from vargen.presets import lumina as presets
from vargen.samplers.warp import Warp
from vargen.tokenizers.vq import VQTokenizer, taming_layout

SHAPES = {  # keys, parameters: 13 tensors a layer, and 3
    "lumina-mgpt-7b-512": 419,
    "lumina-mgpt-7b-1024": 419,
    "lumina-mgpt-34b-512": 627,
    "lumina-mgpt-2": 419,
    "anole-7b": 419,
}


@pytest.mark.parametrize("name", SHAPES)
def test_presets_on_meta(name):
    with torch.device("meta"):
        made = registry.preset(name).skeleton
        assert made is not None
        model = made()
    expected = LAYOUT.expected(model.decoder)
    assert len(expected) == SHAPES[name]
    if name == "lumina-mgpt-7b-512":
        assert expected["model.layers.31.self_attn.k_norm.bias"][1] == (1, 128)
        assert expected["lm_head.weight"][1] == (65536, 4096)
        weights = sum(value.numel() for value in model.parameters())
        assert weights * 2 == pytest.approx(14.03e9, rel=1e-3)  # bytes of the published shards
    assert isinstance(model.decoder, Chameleon)
    assert isinstance(model, Anole) == (name == "anole-7b")
    assert registry.preset(name).spec == model.spec


def test_image_tokenizers_have_the_published_keys():
    shapes, counts = {}, {"chameleon-vqgan": (None, None), "movqgan-270m": (431, 270_669_103)}
    for name, (keys, parameters) in counts.items():
        config = presets.TOKENIZERS[name]
        with torch.device("meta"):
            module = VQTokenizer(config)
        shapes = {key: shape for key, (_, shape) in taming_layout(config).expected(module).items()}
        if keys:
            assert len(shapes) == keys
            assert sum(value.numel() for value in module.parameters()) == parameters
        for key in (
            "encoder.down.0.block.1.conv2.weight",
            "decoder.mid.attn_1.proj_out.weight",
            "quantize.embedding.weight",
        ):
            assert key in shapes
    assert shapes["decoder.up.3.attn.2.norm.conv_y.weight"] == (1024, 4, 1, 1)
    assert shapes["encoder.conv_out.weight"] == (4, 1024, 3, 3)


def test_top_n_sigma_is_a_law_of_its_own():
    recipes = registry.preset("lumina-mgpt-2").recipes
    assert recipes["sjd-top-n-sigma"].top_n_sigma == 1.0
    logits = torch.tensor([[0.0, 1.0, 2.0, 5.0, -float("inf")]])
    kept = Warp(top_n_sigma=1.0)(logits)[0]  # deviation of 0, 1, 2 and 5: 1.87
    assert kept.tolist() == [0, 0, 0, 1, 0]
    assert (Warp(top_n_sigma=2.0)(logits)[0] > 0).tolist() == [False, False, True, True, False]
    alone = torch.tensor([[-float("inf"), 3.0]])
    assert Warp(top_n_sigma=1.0)(alone).tolist() == [[0, 1]]


def test_memory_is_planned():
    found = vargen.plan("lumina-mgpt-7b-768", method="ar", batch=1)
    assert found.weights / 2**30 == pytest.approx(13.07, abs=0.02)
    assert found.cache == 2 * 2 * 32 * (64 + 48 * 49 + 1) * 4096 * 2
    assert found.total == found.weights + found.cache + found.activations + found.window
    assert "weights 13.0" in str(found)
    with pytest.raises(ValueError, match="cannot be planned"):
        vargen.plan("mar-base")
