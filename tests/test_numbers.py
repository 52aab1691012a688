"""Files with other numbers than published ones: classes, codes, grids, scales, depth; read from shapes, or said."""

from dataclasses import replace
from typing import Any

import official
import pytest
import torch
from PIL import Image

import vargen
from vargen.commands import main, sample, serve
from vargen.core import checkpoints, registry
from vargen.core.numbers import sides
from vargen.core.preset import Sources
from vargen.models import flowar, llamagen, mar, pocket, var, xar
from vargen.models.flowar import FlowAR, FlowARConfig
from vargen.models.llamagen import LlamaGen, LlamaGenConfig
from vargen.models.mar import MAR, MARConfig
from vargen.models.var import VAR, VARConfig
from vargen.models.xar import XAR, XARConfig
from vargen.presets import flowar as flowar_presets
from vargen.presets import llamagen as llamagen_presets
from vargen.presets import mar as mar_presets
from vargen.presets import var as var_presets
from vargen.presets import xar as xar_presets
from vargen.server.options import Options
from vargen.tokenizers import kl, multiscale_vq, vq
from vargen.tokenizers.kl import KLConfig, KLTokenizer
from vargen.tokenizers.multiscale_vq import MultiScaleVQConfig, MultiScaleVQTokenizer
from vargen.tokenizers.vq import VQConfig, VQTokenizer

CPU: dict[str, Any] = {"device": "cpu"}
KINDS = {
    LlamaGen: llamagen.LAYOUT,
    VAR: var.LAYOUT,
    MAR: mar.LAYOUT,
    FlowAR: flowar.LAYOUT,
    XAR: xar.LAYOUT,
}


def written(path, made, config, layout=None, **beside):
    """A file of the official format: keys and nesting as published."""
    layout = layout or KINDS[made]
    with torch.device("meta"):
        expected = layout.expected(made(config))
    state = {key: official.tensor(key, shape) for key, (_, shape) in expected.items()} | beside
    torch.save({layout.under or "model": state} if layout.under or made is LlamaGen else state, path)
    return path


@pytest.fixture
def small(monkeypatch):
    """Presets of every family, cut down: published files would be of these."""
    cut = {"layers": 1, "heads": 2, "width": 32}
    shapes = {
        (llamagen_presets, "llamagen-c2i-b-256"): LlamaGenConfig(2, 2, 32, 16, vocabulary=40),
        (var_presets, "var-d16"): VARConfig(2, 2, 32, vocabulary=40, code_dim=8),
        (mar_presets, "mar-base"): MARConfig(1, 2, 32, head_depth=1, head_width=32, side=4),
        (flowar_presets, "flowar-s"): replace(FlowARConfig(), **cut, head_depth=1, head_width=64),
        (xar_presets, "xar-b"): replace(XARConfig(), **cut),
    }
    for (module, name), config in shapes.items():
        monkeypatch.setitem(module.SHAPES, name, config)
        monkeypatch.setitem(module.PRESETS, name, replace(module.PRESETS[name], spec=config.spec))
    monkeypatch.setitem(llamagen_presets.TOKENIZERS, "llamagen-vq-16-c2i", VQConfig((32,) * 5, 1, codes=40))
    monkeypatch.setitem(llamagen_presets.TOKENIZERS, "llamagen-vq-8-c2i", VQConfig((32,) * 4, 1, codes=40))
    monkeypatch.setitem(var_presets.TOKENIZERS, "var-vq-256", MultiScaleVQConfig((32, 32), 1, 8, 40))
    monkeypatch.setitem(mar_presets.TOKENIZERS, "mar-kl-16", KLConfig((8, 8), 1, 16, norm_groups=4))
    return {name: config for (_, name), config in shapes.items()}


def vq_file(path, config):
    return written(path, VQTokenizer, config, vq.LLAMAGEN)


def scales_file(path, config):
    return written(path, MultiScaleVQTokenizer, config, multiscale_vq.layout(config))


def kl_file(path, config):
    return written(path, KLTokenizer, config, kl.layout(config))


def test_llamagen_s_classes_codes_and_grid(small, tmp_path):
    """A VQ-8 of other codes, read from the two files: classes without names, and twice as many tokens a side."""
    config = replace(small["llamagen-c2i-b-256"], classes=7, vocabulary=50, layers=3)
    weights = written(tmp_path / "a.pt", LlamaGen, config)
    images = vq_file(tmp_path / "vq.pt", VQConfig((32, 64, 32, 32), 2, latent_channels=16, codes=50, code_dim=4))
    pipe = vargen.load("llamagen-c2i-b-256", checkpoint=weights, tokenizer_checkpoint=images, **CPU)
    assert pipe.transformer.config == replace(config, side=32)
    assert (pipe.tokenizer.config.channels, pipe.tokenizer.config.code_dim, pipe.size) == (
        (32, 64, 32, 32),
        4,
        (256, 256),
    )
    assert (pipe.class_names, pipe.preset.classes, pipe.preset.spec.slots) == ((), 7, 1024)  # pyright: ignore
    assert max(pipe.preset.examples) < 7
    assert next(pipe.stream([6], method="ar", seed=0)).tokens.shape == (1, 1024)
    for wrong, why in (([7], "got class 7, expected 0 to 6"), (["tench"], "unknown class 'tench'")):
        with pytest.raises(ValueError, match=why):
            pipe(wrong)


def test_what_is_said_is_held_to_the_file(small, tmp_path):
    weights = written(tmp_path / "a.pt", LlamaGen, replace(small["llamagen-c2i-b-256"], classes=7))
    images = vq_file(tmp_path / "vq.pt", VQConfig((32,) * 5, 1, codes=40))
    files = {"checkpoint": weights, "tokenizer_checkpoint": images, **CPU}
    assert vargen.load("llamagen-c2i-b-256", **files, classes=7, codebook_size=40).preset.classes == 7
    for said, why in (
        ({"classes": 101}, r"got classes 101 for llamagen-c2i-b-256, and the weights file .*a\.pt has 7"),
        ({"codebook_size": 41}, r"got codebook size 41 .*has 40"),
        ({"codebook_embed_dim": 3}, r"got codebook width 3 .*vq\.pt has 8"),
        ({"downsample_size": 8}, r"got downsample size 8, and a token of .*vq\.pt has 16 pixels a side"),
        ({"downsample_size": 4}, r"got downsample size 4 for .*, expected 16 or 8"),
        ({"depth": 3}, r"got depth 3 .* has 2"),
        ({"patch_nums": (1, 2)}, r"got patch nums \(1, 2\) for llamagen-c2i-b-256, whose files have other numbers"),
        ({"classes": 0}, "got classes 0, expected a whole number above 0"),
        ({"classes": 7.0}, "got classes 7.0, expected a whole number"),
    ):
        with pytest.raises(ValueError, match=why):
            vargen.load("llamagen-c2i-b-256", **files, **said)  # pyright: ignore
    with pytest.raises(ValueError, match="got classes 7, and llamagen-c2i-l-256 was published with 1000: name a check"):
        vargen.load("llamagen-c2i-l-256", classes=7)
    with pytest.raises(ValueError, match="janus-pro-1b takes no numbers"):
        vargen.load("janus-pro-1b", classes=7)
    other = vq_file(tmp_path / "other.pt", VQConfig((32,) * 5, 1, codes=41))
    with pytest.raises(ValueError, match="do not fit: codes 40 and 41"):
        vargen.load("llamagen-c2i-b-256", checkpoint=weights, tokenizer_checkpoint=other, **CPU)


def test_fewer_layers_of_a_published_width_are_told(small, tmp_path):
    weights = written(tmp_path / "a.pt", LlamaGen, replace(small["llamagen-c2i-b-256"], layers=1))
    preset = registry.preset("llamagen-c2i-b-256")
    with pytest.warns(UserWarning, match=r"a\.pt has depth 1, and llamagen-c2i-b-256 was published with 2"):
        preset.of(Sources(weights))
    images = vq_file(tmp_path / "vq.pt", VQConfig((32,) * 5, 1, codes=40))
    pipe = vargen.load("llamagen-c2i-b-256", checkpoint=weights, tokenizer_checkpoint=images, depth=1, **CPU)
    assert len(pipe.transformer.layers) == 1


def test_a_file_of_another_published_size_is_named(tmp_path):
    one = {"tok_embeddings.weight": torch.zeros(16384, 1024)}
    checkpoints.save(tmp_path / "c2i_L_256.safetensors", one)
    with pytest.raises(ValueError, match="another size than llamagen-c2i-b-256 by its shapes: name llamagen-c2i-l-"):
        registry.preset("llamagen-c2i-b-256").of(Sources(tmp_path / "c2i_L_256.safetensors"))


SIDES = (1, 2, 3, 5)


@pytest.mark.parametrize("said", [True, False])
def test_var_s_scales_depth_and_classes(small, tmp_path, said):
    """Sides stand beside the weights, as the official trainer saves them, or are said where they do not."""
    config = VARConfig(3, 3, 48, SIDES, vocabulary=30, code_dim=4, classes=7, shared=True)
    levels = torch.cat([torch.full((side**2,), i) for i, side in enumerate(SIDES)])[None]
    weights = written(tmp_path / "a.pth", VAR, config, **({} if said else {"lvl_1L": levels}))
    images = scales_file(tmp_path / "vae.pth", MultiScaleVQConfig((32, 32, 32), 1, 4, 30))
    files = {"checkpoint": weights, "tokenizer_checkpoint": images, **CPU}
    if said:
        with pytest.raises(ValueError, match=r"a\.pth has 4 scales of 39 tokens in all: give patch_nums \(--pn\)"):
            vargen.load("var-d16", **files)
        with pytest.raises(ValueError, match=r"4 scales of 39 tokens in all, not \(1, 2, 3, 4\)"):
            vargen.load("var-d16", **files, patch_nums="1_2_3_4")
    pipe = vargen.load("var-d16", **files, **({"patch_nums": "1_2_3_5"} if said else {}))  # pyright: ignore
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.transformer.config, pipe.tokenizer.sides) == (config, SIDES)
    assert pipe([6], seed=0).images[0].size == (20, 20)
    assert pipe.class_names == ()


def test_known_scales_need_not_be_said(small, tmp_path):
    weights = written(tmp_path / "a.pth", VAR, replace(small["var-d16"], sides=sides("512")))
    assert registry.preset("var-d16").of(Sources(weights)).spec.sides == sides("512")  # pyright: ignore
    for wrong in ("1_1_2", "2_1", "1_x", "", (1, 2.0), "0_1", 1000):
        with pytest.raises(ValueError, match="expected growing sides of scales such as 1_2_3"):
            sides(wrong)


def test_mar_s_head_is_no_part_of_its_size(small, tmp_path):
    """Its training script's usual head is another one than that of the published files."""
    config = MARConfig(1, 2, 32, head_depth=3, head_width=64, side=6, classes=7, buffer=5, channels=4)
    weights = written(tmp_path / "a.pth", MAR, config)
    images = kl_file(tmp_path / "kl.ckpt", KLConfig((8, 8, 16), 1, 4, norm_groups=4))
    pipe = vargen.load("mar-base", checkpoint=weights, tokenizer_checkpoint=images, classes=7, **CPU)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.config == config
    assert pipe([6, -1], seed=0, iterations=2, steps=2, method="mar").images[1].size == (24, 24)


@pytest.mark.parametrize(("name", "made"), [("flowar-s", FlowAR), ("xar-b", XAR)])
def test_flow_models_classes_and_depth(small, tmp_path, name, made):
    config = replace(small[name], classes=7, layers=2)
    weights = written(tmp_path / "a.pth", made, config)
    images = kl_file(tmp_path / "kl.ckpt", KLConfig((8, 8), 1, 16, norm_groups=4))
    pipe = vargen.load(name, checkpoint=weights, tokenizer_checkpoint=images, **CPU)
    assert pipe.transformer.config == config
    assert (pipe.preset.classes, pipe.class_names) == (7, ())
    assert pipe([6], seed=0, steps=2, method=name[:-2], output_type="latent").tokens.shape[0] == 1


def test_tokenizers_alone(small, tmp_path):
    found = vargen.load_tokenizer(
        "llamagen-vq-16-c2i", checkpoint=vq_file(tmp_path / "a.pt", VQConfig((32, 64), 1, 8, 9, 3)), **CPU
    )
    assert isinstance(found, VQTokenizer)
    assert found.encode(torch.zeros(1, 3, 4, 6)).shape == (1, 2, 3)
    path = scales_file(tmp_path / "b.pt", MultiScaleVQConfig((32, 64), 1, 4, 9))
    scales = vargen.load_tokenizer("var-vq-256", checkpoint=path, patch_nums=SIDES, codebook_size=9, **CPU)
    assert isinstance(scales, MultiScaleVQTokenizer)
    assert scales.encode(torch.zeros(1, 3, 10, 10)).shape == (1, 39)
    with pytest.raises(ValueError, match=r"got codebook size 8 for var-vq-256, and the weights file .*b\.pt has 9"):
        vargen.load_tokenizer("var-vq-256", checkpoint=path, codebook_size=8, **CPU)


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """A pocket model of five classes, and one of its kind to draft."""
    folder = tmp_path_factory.mktemp("five")
    for name, config in (("pocket-llamagen", pocket.LLAMAGEN), ("pocket-llamagen-small", pocket.LLAMAGEN_SMALL)):
        model = LlamaGen(replace(config, classes=5, layers=1))
        checkpoints.save(folder / f"{name}.safetensors", model.state_dict())
    return folder


def test_the_command_line_knows_them_before_anything_is_loaded(five, tmp_path, capsys):
    weights, out = five / "pocket-llamagen.safetensors", tmp_path / "a.png"
    argv = ["--checkpoint", str(weights), "--method", "ar", "--device", "cpu", "--out", str(out), "--depth", "1"]
    main.guarded(sample.command, [*argv, "--num-classes", "5", "--class", "4", "--num-images", "1"])
    assert Image.open(out).size == (64, 64)
    for more, why in (
        (["--num-classes", "5", "--class", "5"], "got class 5, expected 0 to 4"),
        (["--class-num", "5", "--class", "beach"], "unknown class 'beach'"),
        (["--num-classes", "6"], "got classes 6 for pocket-llamagen, and the weights file"),
        (["--pn", "1_2"], "got patch nums (1, 2) for pocket-llamagen"),
    ):
        with pytest.raises(SystemExit):
            main.guarded(sample.command, [*argv, *more])
        assert why in capsys.readouterr().err


def test_a_drafter_has_the_same_numbers(five):
    weights, small = (five / f"{name}.safetensors" for name in ("pocket-llamagen", "pocket-llamagen-small"))
    with pytest.warns(UserWarning, match="pocket-llamagen-small was published with 3"):
        pipe = vargen.load(
            "pocket-llamagen",
            checkpoint=weights,
            drafter="pocket-llamagen-small",
            drafter_checkpoint=small,
            depth=1,
            **CPU,
        )
    pipe.set_progress_bar_config(disable=True)
    assert pipe([4], method="speculative", seed=0).trace.drafter_forwards > 0
    with pytest.raises(ValueError, match="pocket-llamagen-small cannot draft here: classes 10 instead of 5"):
        vargen.load("pocket-llamagen", checkpoint=weights, drafter="pocket-llamagen-small", depth=1, **CPU)


def test_the_server_knows_them(five):
    spec = f"pocket-llamagen:checkpoint={five / 'pocket-llamagen.safetensors'}:classes=5:depth=1"
    preset = Options(model=(spec,)).presets["pocket-llamagen"]
    assert (preset.classes, list(preset.names()), preset.examples) == (5, [], (0, 1, 2, 3, 4))
    with pytest.raises(ValueError, match="got classes 'x', expected a whole number above 0"):
        Options(model=("pocket-llamagen:classes=x",))
    with pytest.raises(ValueError, match="got classes 6 for pocket-llamagen, and the weights file"):
        serve.command(["--model", spec.replace("classes=5", "classes=6")])


def test_a_method_s_own_depth_is_another():
    found = sample.parser("speculative-dynamic").parse_args(["--depth", "3", "--model-depth", "2"])
    assert (found.depth, found.number_depth) == ("3", 2)
    assert sample.parser("ar").parse_args(["--depth", "2"]).number_depth == 2
