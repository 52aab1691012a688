"""Official FlowAR and xAR files: every size on the meta device against published counts, and files in their format."""

import math
from dataclasses import replace

import pytest
import synth
import torch

from vargen.core import hub
from vargen.core.preset import Sources
from vargen.models import flowar, xar
from vargen.models.flowar import FlowAR
from vargen.models.xar import XAR
from vargen.presets import flowar as flowar_presets
from vargen.presets import mar as mar_presets
from vargen.presets import xar as xar_presets
from vargen.tokenizers import kl
from vargen.tokenizers.kl import KLConfig, KLTokenizer

# layers of the encoder and of the decoder, width, depth and width of the flow net, whether it attends; keys, parameters
FLOWAR = {
    "flowar-s": (6, 768, 2, 1024, False, 204, 171_718_072),
    "flowar-l": (8, 1024, 12, 1024, True, 484, 586_862_912),
    "flowar-h": (15, 1536, 12, 1536, True, 666, 1_913_316_880),
}
# layers, width, width of the feed-forward layer; keys, parameters
XAR_SIZES = {
    "xar-b": (8, 768, 2048, 257, 172_638_224),
    "xar-l": (16, 1024, 2730, 497, 608_397_968),
    "xar-h": (20, 1280, 3413, 617, 1_186_024_096),
}
FILES = {name: f"FlowAR-{name[-1].upper()}.pth" for name in FLOWAR}
FILES |= {name: f"xAR-{name[-1].upper()}.pth" for name in XAR_SIZES}
FLOAT = {"device": torch.device("cpu"), "dtype": torch.float32}
Shapes = dict[str, tuple[int, ...]]


def linear(out: Shapes, key: str, rows: int, columns: int, *, bias: bool = True) -> None:
    out[f"{key}.weight"] = (rows, columns)
    if bias:
        out[f"{key}.bias"] = (rows,)


def gated(out: Shapes, key: str, width: int) -> None:
    hidden = int(width * 4 * 2 / 3)
    linear(out, f"{key}.fc1_g", hidden, width)
    linear(out, f"{key}.fc1_x", hidden, width)
    linear(out, f"{key}.fc2", width, hidden)


def time_embedding(out: Shapes, key: str, width: int) -> None:
    linear(out, f"{key}.mlp.0", width, 256)
    linear(out, f"{key}.mlp.2", width, width)


def backbone(layers: int, c: int, slots: int) -> Shapes:
    """Keys and shapes of what both have."""
    out: Shapes = {f"{side}_pos_embed_learned": (1, slots, c) for side in ("encoder", "decoder")}
    out |= {"class_emb.weight": (1001, c)}
    out |= {f"{key}.weight": (c,) for key in ("z_proj_ln", "encoder_norm", "decoder_norm")}
    linear(out, "z_proj", c, 16)
    linear(out, "decoder_embed", c, c)
    for block in [f"{side}_blocks.{i}" for side in ("encoder", "decoder") for i in range(layers)]:
        linear(out, f"{block}.attn.qkv", 3 * c, c)
        linear(out, f"{block}.attn.proj", c, c)
        gated(out, f"{block}.mlp", c)
        linear(out, f"{block}.ada_lin.1", 6 * c, c)
    return out


def flow_net(depth: int, w: int, c: int, *, cross: bool) -> Shapes:
    out: Shapes = {}
    time_embedding(out, "flownet.time_embed", w)
    linear(out, "flownet.cond_embed", w, c)
    linear(out, "flownet.input_proj", w, 16)
    linear(out, "flownet.final_layer.adaLN_modulation.1", 2 * w, w)
    linear(out, "flownet.final_layer.linear", 16, w)
    for block in [f"flownet.res_blocks.{i}" for i in range(depth)]:
        linear(out, f"{block}.attn.qkv", 3 * w, w, bias=False)
        linear(out, f"{block}.attn.proj", w, w)
        gated(out, f"{block}.mlp", w)
        if not cross:
            linear(out, f"{block}.ada_lin", 6 * w, w)
            continue
        linear(out, f"{block}.crossattn.q", w, w, bias=False)
        linear(out, f"{block}.crossattn.kv", 2 * w, c, bias=False)
        linear(out, f"{block}.crossattn.proj", w, w)
        out |= {f"{block}.norm2_1.weight": (w,), f"{block}.norm2_2.weight": (c,)}
        linear(out, f"{block}.ada_lin_attn", 3 * w, w)
        linear(out, f"{block}.ada_lin_mlp", 3 * w, w)
    return out


def official_flowar(layers: int, c: int, depth: int, w: int, cross: bool, *_: int) -> tuple[Shapes, Shapes]:
    """Keys and shapes of a FlowAR's parameters, and of the buffers that lie beside them in its file."""
    out = backbone(layers, c, 341) | flow_net(depth, w, c, cross=cross)
    out["diffusion_pos_embed_learned"] = (1, 341, c)
    dim = c // (16 if c >= 1024 else 12)
    buffers: Shapes = {"mask": (1, 1, 341, 341)}
    for i in range(layers):
        buffers |= {f"{side}_blocks.{i}.attn.rope.freqs": (dim // 4,) for side in ("encoder", "decoder")}
    for i in range(depth):
        kinds = ("attn", "crossattn") if cross else ("attn",)
        buffers |= {f"flownet.res_blocks.{i}.{kind}.rope.freqs": (16,) for kind in kinds}
    return out, buffers


def official_xar(layers: int, c: int, *_: int) -> tuple[Shapes, Shapes]:
    """The same of an xAR."""
    out = backbone(layers, c, 256)
    time_embedding(out, "time_embed", c)
    linear(out, "pred", 16, c)
    dim = c // (16 if c >= 1024 else 12)
    buffers: Shapes = {"mask": (1, 1, 256, 256)}
    for block in [f"{side}_blocks.{i}.attn.rope" for side in ("encoder", "decoder") for i in range(layers)]:
        buffers |= {f"{block}.freqs": (dim // 4,)}
        buffers |= {f"{block}.freqs_{kind}": (256, dim) for kind in ("cos", "sin")}
    return out, buffers


def official(name):
    """Our model on the meta device and its layout; the official parameters and buffers; and the official counts."""
    with torch.device("meta"):
        if name in FLOWAR:
            model, layout, size = FlowAR(flowar_presets.SHAPES[name]), flowar.LAYOUT, FLOWAR[name]
            return model, layout, *official_flowar(*size), *size[-2:]
        model, layout, size = XAR(xar_presets.SHAPES[name]), xar.LAYOUT, XAR_SIZES[name]
        return model, layout, *official_xar(*size), *size[-2:]


@pytest.mark.parametrize("name", FILES)
def test_every_preset_has_the_published_shape(name):
    model, layout, shapes, buffers, keys, parameters = official(name)
    assert {key: shape for key, (_, shape) in layout.expected(model).items()} == shapes
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    assert len(shapes) + len(buffers) == keys


@pytest.mark.parametrize("name", XAR_SIZES)
def test_feed_forward_layers_have_the_published_width(name):
    _, _, shapes, *_ = official(name)
    assert shapes["encoder_blocks.0.mlp.fc2.weight"][1] == XAR_SIZES[name][2]


@pytest.mark.parametrize("name", FILES)
def test_presets(name):
    presets = flowar_presets if name in FLOWAR else xar_presets
    preset, plan = presets.PRESETS[name], "scales" if name in FLOWAR else "cells"
    assert (preset.name, preset.classes, len(preset.names()), preset.kind) == (name, 1000, 1000, "continuous")
    assert preset.spec is not None
    assert (preset.spec.slots, preset.plan) == (341 if name in FLOWAR else 256, plan)
    assert (preset.method, list(preset.recipes)) == (name[:-2], ["fid", "disa"])
    assert presets.file_of(name) == FILES[name]


def test_recipes_are_those_published():
    found = {name: flowar_presets.PRESETS[name].recipes for name in FLOWAR}
    found |= {name: xar_presets.PRESETS[name].recipes for name in XAR_SIZES}
    scales = [[recipe.guidance_scale for recipe in recipes.values()] for recipes in found.values()]
    assert scales == [[4.3, 4.2], [2.4, 2.4], [2.4, 2.4], [2.7, 2.7], [2.3, 2.3], [2.2, 2.2]]
    settings = found["flowar-h"]["disa"].settings
    assert settings["flowar"] == {"steps": 50, "guidance_high": 0.7}
    assert settings["disa"] == {"upper": 50, "lower": 15, "guidance_high": 0.7}
    assert found["xar-b"]["fid"].settings == {"xar": {"steps": 40}, "disa": {"upper": 50, "lower": 15}}
    assert found["flowar-s"]["fid"].published == {}
    assert found["flowar-l"]["fid"].published == {"fid": 1.90}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Official files of models cut down to one layer and few channels, with the buffers of official ones."""
    shapes = {"layers": 1, "heads": 2, "width": 16}
    for name in ("flowar-s", "flowar-l"):
        cut = replace(flowar_presets.SHAPES[name], **shapes, head_depth=1, head_width=64)
        monkeypatch.setitem(flowar_presets.SHAPES, name, cut)
    monkeypatch.setitem(xar_presets.SHAPES, "xar-b", replace(xar_presets.SHAPES["xar-b"], **shapes))
    for name in ("flowar-s", "flowar-l", "xar-b"):
        model, layout, _, buffers, *_ = official(name)
        state = {key: shape for key, (_, shape) in layout.expected(model).items()}
        one = {key: shape for key, shape in buffers.items() if ".0." in key or key == "mask"}
        torch.save(synth.state_dict({key: list(shape) for key, shape in (state | one).items()}), tmp_path / FILES[name])
    images = KLConfig((8, 8, 8, 8, 8), 1, norm_groups=4)
    monkeypatch.setitem(mar_presets.TOKENIZERS, "mar-kl-16", images)
    with torch.device("meta"):
        expected = kl.layout(images).expected(KLTokenizer(images))
    state = synth.state_dict({key: list(shape) for key, (_, shape) in expected.items()})
    torch.save({"model": state}, tmp_path / mar_presets.TOKENIZER_FILE)
    return tmp_path


@pytest.mark.parametrize("name", ["flowar-s", "flowar-l", "xar-b"])
def test_models_load_from_a_folder_and_draw(folder, name):
    presets = flowar_presets if name in FLOWAR else xar_presets
    pipe = presets.build(name, Sources(folder), **FLOAT)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(pipe.transformer.classes.weight, synth.tensor("class_emb.weight", (1001, 16)))
    options = {"output_type": "latent", "guidance_scale": 1.5}
    plain = pipe([207, 3], seed=[1, 2], steps=3, **options)
    alone = pipe([3], seed=[2], steps=3, **options)
    assert plain.tokens.shape == (2, pipe.transformer.spec.slots, 16)
    assert torch.allclose(plain.tokens[1:], alone.tokens, rtol=1e-3, atol=1e-3)
    few = pipe([207, 3], method="disa", seed=[1, 2], upper=4, lower=2, **options)
    assert not torch.allclose(few.tokens, plain.tokens, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "repository"), [("flowar-s", "OliverRen/FlowAR"), ("xar-b", "OliverRen/xAR")])
def test_files_come_from_the_hub(folder, monkeypatch, name, repository):
    presets, asked = flowar_presets if name in FLOWAR else xar_presets, []

    def fetch(*given):
        asked.append(given)
        return folder / given[1]

    monkeypatch.setattr(hub, "fetch", fetch)
    presets.build(name, Sources(), **FLOAT)
    assert asked == [("wusize/harmon", "kl16.ckpt", "main"), (repository, FILES[name], "main")]


def test_wrong_files_are_named(folder):
    with pytest.raises(ValueError, match=r"no weights file .*nowhere\.pth"):  # before an autoencoder is downloaded
        xar_presets.build("xar-b", Sources(checkpoint=folder / "nowhere.pth"), **FLOAT)
    state = torch.load(folder / "xAR-B.pth")
    state["encoder_blocks.1.attn.rope.freqs_tan"], state["pred.bias"] = torch.zeros(2), torch.zeros(17)
    del state["time_embed.mlp.2.bias"]
    torch.save(state, folder / "xAR-B.pth")
    with pytest.raises(ValueError, match=r"xAR-B\.pth does not fit XAR") as caught:
        xar_presets.build("xar-b", Sources(folder), **FLOAT)
    for problem in (
        "missing time_embed.mlp.2.bias",
        "unexpected encoder_blocks.1.attn.rope.freqs_tan",
        "pred.bias is (17,), expected (16,)",
    ):
        assert problem in str(caught.value)
    (folder / "FlowAR-L.pth").rename(folder / "FlowAR-S.pth")  # the other velocity network
    with pytest.raises(ValueError, match=r"missing flownet\.res_blocks\.0\.ada_lin\.weight"):
        flowar_presets.build("flowar-s", Sources(folder), **FLOAT)
    with pytest.raises(ValueError, match=r"no weights file .*FlowAR-L\.pth"):
        flowar_presets.build("flowar-l", Sources(folder), **FLOAT)
