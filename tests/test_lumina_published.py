"""The published Lumina-mGPTs and their image tokenizers, on the meta device: keys, shapes, counts, memory."""

import pytest
import torch

import vargen
from vargen.core import registry
from vargen.core.warp import Warp
from vargen.models.chameleon import LAYOUT, Chameleon
from vargen.models.lumina_mgpt import Anole
from vargen.presets import lumina as presets
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


def taming(ch, multipliers, blocks, z, *, attends, spatial=0):
    """Keys and shapes of an encoder and a decoder with the names of taming-transformers, from their description."""
    out, widths, last = {}, [ch * m for m in multipliers], len(multipliers) - 1

    def conv(key, after, before, side):
        out[f"{key}.weight"], out[f"{key}.bias"] = (after, before, side, side), (after,)

    def norm(key, width, codes):
        inner = f"{key}.norm_layer" if codes else key
        out[f"{inner}.weight"] = out[f"{inner}.bias"] = (width,)
        for part in ("conv_y", "conv_b") if codes else ():
            conv(f"{key}.{part}", width, codes, 1)

    def residual(key, before, after, codes):
        norm(f"{key}.norm1", before, codes)
        conv(f"{key}.conv1", after, before, 3)
        norm(f"{key}.norm2", after, codes)
        conv(f"{key}.conv2", after, after, 3)
        if before != after:
            conv(f"{key}.nin_shortcut", after, before, 1)

    def attention(key, width, codes):
        norm(f"{key}.norm", width, codes)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{key}.{part}", width, width, 1)

    def middle(key, width, codes):
        residual(f"{key}.mid.block_1", width, width, codes)
        attention(f"{key}.mid.attn_1", width, codes)
        residual(f"{key}.mid.block_2", width, width, codes)

    conv("encoder.conv_in", ch, 3, 3)
    width = ch
    for level, after in enumerate(widths):
        for block in range(blocks):
            residual(f"encoder.down.{level}.block.{block}", width, after, 0)
            width = after
            if attends and level == last:
                attention(f"encoder.down.{level}.attn.{block}", after, 0)
        if level < last:
            conv(f"encoder.down.{level}.downsample.conv", after, after, 3)
    middle("encoder", width, 0)
    norm("encoder.norm_out", width, 0)
    conv("encoder.conv_out", z, width, 3)
    conv("decoder.conv_in", width, z, 3)
    middle("decoder", width, spatial)
    for level, after in reversed(list(enumerate(widths))):
        for block in range(blocks + 1):
            residual(f"decoder.up.{level}.block.{block}", width, after, spatial)
            width = after
            if attends and level == last:
                attention(f"decoder.up.{level}.attn.{block}", after, spatial)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", after, after, 3)
    norm("decoder.norm_out", width, spatial)
    conv("decoder.conv_out", 3, width, 3)
    return out


def codebook(z, codes, dim):
    return {
        "quant_conv.weight": (dim, z, 1, 1),
        "quant_conv.bias": (dim,),
        "post_quant_conv.weight": (z, dim, 1, 1),
        "post_quant_conv.bias": (z,),
        "quantize.embedding.weight": (codes, dim),
    }


PUBLISHED = {
    "chameleon-vqgan": taming(128, (1, 1, 2, 2, 4), 2, 256, attends=False) | codebook(256, 8192, 256),
    "movqgan-270m": taming(256, (1, 2, 2, 4), 2, 4, attends=True, spatial=4) | codebook(4, 16384, 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_image_tokenizers_have_the_published_keys(name):
    config = presets.TOKENIZERS[name]
    with torch.device("meta"):
        module = VQTokenizer(config)
    assert {key: shape for key, (_, shape) in taming_layout(config).expected(module).items()} == PUBLISHED[name]
    assert not config.sphere
    if name == "movqgan-270m":
        assert len(PUBLISHED[name]) == 431
        assert sum(value.numel() for value in module.parameters()) == 270_669_103


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
        vargen.plan("emu3-gen")
    with pytest.raises(ValueError, match="llamagen-c2i-b-256 draws one size"):
        vargen.plan("llamagen-c2i-b-256", height=256)
    with pytest.raises(ValueError, match="draws no 768x700 pixels"):
        vargen.plan("lumina-mgpt-7b-768", height=700)
