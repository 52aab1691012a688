"""Pipelines as folders: every kind there and back, what a damaged or foreign folder says, whole or not at all."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from typing import Any

import chameleon
import pytest
import torch
from diffusers import DiffusionPipeline
from every_kind import ASKED, emu
from small import CONFIG, llamagen, pipeline, vq

import vargen
from vargen.core import checkpoints
from vargen.core.preset import Preset, Recipe
from vargen.pipelines import saving
from vargen.pipelines.raster import RasterPipeline

CPU: dict[str, Any] = {"device": "cpu"}
LATENT = {"seed": 3, "output_type": "latent"}


def same(one, other, asked):
    """Whether two pipelines draw the same tokens and pixels."""
    outs = []
    for pipe in (one, other):
        pipe.set_progress_bar_config(disable=True)
        out = pipe(**asked, **LATENT)
        outs.append((out.tokens, pipe.decode(out.tokens, "pt")))
    return all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


@pytest.mark.parametrize("name", ASKED)
def test_there_and_back(name, tmp_path):
    make, asked = ASKED[name]
    pipe, folder = make(tmp_path) if name == "harmon" else make(), tmp_path / "saved"
    pipe.save_pretrained(folder)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".jinja"}
    found = vargen.load(folder, **CPU)
    assert type(found) is type(pipe)
    assert (found.preset.name, found.preset.recipes, found.sizes) == (pipe.preset.name, pipe.preset.recipes, pipe.sizes)
    assert not any(value.requires_grad for value in found.transformer.parameters())
    assert same(pipe, found, asked)
    for again in (type(pipe).from_pretrained(str(folder), device="cpu"), DiffusionPipeline.from_pretrained(folder)):
        assert type(again) is type(pipe)
        state, kept = pipe.transformer.state_dict(), again.transformer.state_dict()
        assert state.keys() == kept.keys()
        assert all(torch.equal(value, kept[key]) for key, value in state.items())
        assert (again.preset.recipes, again.sizes) == (pipe.preset.recipes, pipe.sizes)


def test_a_published_name_keeps_its_recipes_and_drafter(tmp_path):
    pipe = vargen.load("pocket-var", dtype=torch.bfloat16, **CPU)
    pipe.preset = replace(pipe.preset, recipes={**pipe.preset.recipes, "mine": Recipe(1.5, top_p=(0.9,) * 10)})
    pipe.save_pretrained(tmp_path / "a")
    found = vargen.load(tmp_path / "a", dtype=torch.bfloat16, drafter="pocket-var-small", **CPU)
    assert (found.preset.name, found.preset.recipes) == ("pocket-var", pipe.preset.recipes)
    assert (found.class_names, found.preset.drafter) == (pipe.class_names, "pocket-var-small")
    assert found.dtype == torch.bfloat16
    assert same(pipe, found, {"class_labels": ["beach"], "preset": "mine"})
    assert found(["beach"], method="code:scales=6", seed=0).trace.drafter_forwards > 0


def test_diffusers_own_loader_says_which_dtype(tmp_path):
    pipeline().save_pretrained(tmp_path / "a")
    half = DiffusionPipeline.from_pretrained(tmp_path / "a", dtype=torch.float16)
    assert {value.dtype for value in half.transformer.parameters()} == {torch.float16}
    assert {value.dtype for value in half.tokenizer.parameters()} == {torch.float32}


def test_other_classes_and_names_of_their_own(tmp_path):
    preset = Preset("ours", "", {"a": Recipe(2.0), "b": Recipe(3.0)}, 5, lambda *_: None, lambda: tuple("vwxyz"))
    RasterPipeline(llamagen(), None, preset=preset).save_pretrained(tmp_path / "a")
    found = vargen.load(tmp_path / "a", **CPU)
    assert (found.preset.name, found.class_names, list(found.preset.recipes)) == ("ours", tuple("vwxyz"), ["a", "b"])
    assert found.tokenizer is None
    assert found(["y"], method="ar", **LATENT).tokens.shape == (1, 6, 6)


def test_a_text_encoder_goes_along(tmp_path):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(chameleon.NAMES), d_model=24, d_kv=6, d_ff=32, num_layers=1, num_heads=4)
    ).eval()
    text = replace(CONFIG, caption_width=24, caption_tokens=9)
    pipe = RasterPipeline(llamagen(text), vq(), encoder.requires_grad_(False), chameleon.text())
    pipe.text_tokenizer.pad_token = "<pad>"
    pipe.save_pretrained(tmp_path / "a")
    asked = {"prompt": ["a red boat"], "method": "ar"}
    assert same(pipe, vargen.load(tmp_path / "a", **CPU), asked)
    assert same(pipe, DiffusionPipeline.from_pretrained(tmp_path / "a"), asked)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "saved"
    pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def spoil(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


INDEX, MODEL, IMAGES = "model_index.json", "transformer/config.json", "tokenizer/config.json"


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        (
            INDEX,
            lambda it: it.update(_class_name="StableDiffusionPipeline"),
            "holds a 'StableDiffusionPipeline'",
        ),
        (INDEX, lambda it: it.update(_class_name=["x", "y"]), "which is no pipeline of vargen's"),
        (
            INDEX,
            lambda it: it.update(_class_name="VargenNextScalePipeline"),
            "make no NextScalePipeline",
        ),
        (INDEX, lambda it: it.update(_class_name="VargenPromptedPipeline"), "LlamaGen reads no prompts itself"),
        (INDEX, lambda it: it.update(transformer=["os", "system"]), "for transformer, expected"),
        (INDEX, lambda it: it.update(transformer=[None, None]), "for transformer, expected"),
        (INDEX, lambda it: it.update(text_encoder=["transformers", "T5EncoderModel"]), "lacks text_encoder, which its"),
        (INDEX, lambda it: it.update(preset=3), "damaged preset"),
        (INDEX, lambda it: it["preset"].update(recipes={}), "damaged preset"),
        (INDEX, lambda it: it["preset"]["recipes"].update(x={"a": 1}), "unknown 'a' of a recipe"),
        (INDEX, lambda it: it.update(tokenizer=it["transformer"]), "and model_index.json says that it is a LlamaGen"),
        (
            MODEL,
            lambda it: it.update(_class_name="os.system"),
            "expected a part of a pipeline",
        ),
        (
            MODEL,
            lambda it: it.update(layers=100_000),
            r"cannot make the LlamaGen of .*: it has layers 100000",
        ),
        (MODEL, lambda it: it.update(side=0), "it has side 0, expected at least 1"),
        (MODEL, lambda it: it.update(side=100_000), "it has side 100000, expected at most 256"),
        (MODEL, lambda it: it.update(heads=0), "cannot make the LlamaGen"),
        (MODEL, lambda it: it.update(heads=-2), "got heads -2, expected int"),
        (MODEL, lambda it: it.update(width="x\n\x1b[31m"), r"got width 'x\\n\\x1b\[31m', expected int"),
        (MODEL, lambda it: it.update(width=64), "does not fit LlamaGen"),
        (MODEL, lambda it: it.update(caption_tokens=1 << 30), "expected at most"),
        (MODEL, lambda it: it.update(more=1), "got 'more', which a LlamaGenConfig does not have"),
        (IMAGES, lambda it: it.update(channels=[8] * 3000), "it has 3000 channels, expected at most 16"),
        (IMAGES, lambda it: it.update(channels=8), "got channels 8, expected a list"),
    ],
)
def test_a_folder_that_lies_is_one_sentence(folder, file, change, why):
    spoil(folder / file, change)
    with pytest.raises(ValueError, match=why) as caught:
        vargen.load(folder, **CPU)
    assert "\n" not in str(caught.value)


def test_configs_of_transformers_are_looked_at_too(tmp_path):
    emu().save_pretrained(tmp_path / "a")
    for part, key in (("transformer", "language"), ("tokenizer", "config")):
        path = tmp_path / "a" / part / "config.json"
        before = path.read_text()
        for more, why in (
            (
                {"attn_implementation": "somebody/kernels"},
                "attn_implementation 'somebody/kernels', expected a name",
            ),
            ({"num_hidden_layers": 100_000}, "it has .*num_hidden_layers 100000"),
            ({"hidden_size": "x"}, "has hidden_size 'x', expected a whole number"),
        ):
            spoil(path, lambda found, more=more, key=key: (found[key].pop("model_type", None), found[key].update(more)))
            with pytest.raises(ValueError, match=why):
                vargen.load(tmp_path / "a", **CPU)
            path.write_text(before)


def test_a_damaged_folder_is_one_sentence(folder):
    weights = folder / "transformer/model.safetensors"
    data = weights.read_bytes()
    for change, why in (
        (lambda: weights.write_bytes(data[: len(data) // 2]), "is damaged"),
        (lambda: weights.write_bytes(pickle.dumps({"x": print})), "is no PyTorch or safetensors file"),
        (weights.unlink, "no weights file"),
        (lambda: (folder / MODEL).write_text("{"), "cannot read"),
        (lambda: shutil.rmtree(folder / "transformer"), "lacks transformer, which its model_index.json names"),
        (lambda: (folder / INDEX).write_text("[" * 5000), "cannot read .*nests more than 64 deep"),
    ):
        change()
        with pytest.raises(ValueError, match=why):
            vargen.load(folder, **CPU)
    with pytest.raises(ValueError, match="with all its files: name no others"):
        vargen.load(folder, checkpoint=weights, **CPU)
    with pytest.raises(ValueError, match="with all its files: name no others"):
        vargen.load(folder, classes=5, **CPU)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    pipe, there = pipeline(), tmp_path / "there"
    there.mkdir()
    (there / "mine").write_text("x")
    with pytest.raises(ValueError, match="it is there and not empty; name a new one"):
        pipe.save_pretrained(there)
    with pytest.raises(ValueError, match=r"got safe_serialization False, expected nothing of the kind"):
        pipe.save_pretrained(tmp_path / "a", safe_serialization=False)
    pipe.quantize = "int8"
    with pytest.raises(ValueError, match="a transformer in int8 is not saved"):
        pipe.save_pretrained(tmp_path / "a")
    pipe.quantize = None

    def full(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", full)
        with pytest.raises(OSError, match="no space left"):
            pipe.save_pretrained(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    (there / "mine").unlink()
    pipe.save_pretrained(there, safe_serialization=True, max_shard_size="5GB")
    assert vargen.load(there, **CPU).transformer.config == CONFIG


def test_a_model_of_one_s_own_class_is_refused(tmp_path):
    class Mine(type(pipeline().transformer)):
        pass

    pipe = RasterPipeline(Mine(CONFIG).requires_grad_(False), None)
    with pytest.raises(ValueError, match="a Mine is not saved: expected one of LlamaGen, VAR"):
        pipe.save_pretrained(tmp_path / "a")

    class Other(RasterPipeline):
        pass

    with pytest.raises(ValueError, match="a Other is not saved"):
        Other(llamagen(), None).save_pretrained(tmp_path / "a")
    assert set(saving.NAMES) == {f"Vargen{kind}Pipeline" for kind in ("Raster", "Prompted", "NextScale", "Continuous")}


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.pop("preset"),
        lambda it: it["preset"].update(names=["x"]),
        lambda it: it["preset"].update(names=["x" * 1000] * 5),
        lambda it: it["preset"].update(name="pocket-var"),
        *[
            lambda it, wrong=wrong: next(iter(it["preset"]["recipes"].values())).update(wrong)
            for wrong in (
                *({"top_n_sigma": value} for value in ("x", None, [1], {})),
                *({"settings": value} for value in ("x", -1, 1e308, [1], True, {"sjd-exact": 5})),
            )
        ],
    ],
)
def test_a_damaged_preset_is_one_sentence(folder, change):
    spoil(folder / INDEX, change)
    with pytest.raises(ValueError, match="preset"):
        vargen.load(folder, **CPU)


def test_names_of_a_folder_forge_no_lines(folder):
    def change(it):
        it["preset"].update(names=["\x1b[31m\nvargen: all is well"] * 5)
        it["preset"]["recipes"]["a\nb"] = it["preset"]["recipes"]["\x1b"] = next(iter(it["preset"]["recipes"].values()))

    spoil(folder / INDEX, change)
    pipe = vargen.load(folder, **CPU)
    for asked in ({"class_labels": "zz"}, {"class_labels": 0, "preset": "zz"}):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            pipe(**asked)
        assert str(caught.value).isprintable()


def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder):
    for name in (MODEL, INDEX):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=r"cannot read|may be of|is of no model"):
            vargen.load(folder, **CPU)


def test_values_that_are_no_paths_or_flags(folder, tmp_path):
    pipe = pipeline()
    for call, why in (
        (lambda: vargen.load(folder, ema="no", **CPU), "got ema 'no'"),  # pyright: ignore
        (lambda: vargen.load(folder, fast=[], **CPU), "got fast"),  # pyright: ignore
        (lambda: vargen.load("x" * 100_000, **CPU), "expected a path"),
        (lambda: pipe.save_pretrained(tmp_path / ("x" * 1000)), "expected a path"),
        (lambda: pipe.save_pretrained(5), "got save_directory 5"),  # pyright: ignore
        (lambda: pipe.save_pretrained(folder / INDEX), "it is there"),
        (lambda: pipe.decode(torch.zeros(1, 6, 6, device="meta").long()), "no plain dense tensor"),
        (lambda: pipe.decode(torch.zeros(1, 6, 6).to_sparse()), "no plain dense tensor"),
    ):
        with pytest.raises(ValueError, match=why):
            call()


def test_what_a_killed_process_left_goes_with_the_next_save(tmp_path):
    old, young = tmp_path / ".a.12345678.part", tmp_path / ".a.abcdefgh.part"
    for path in (old, young):
        path.mkdir()
    os.utime(old, (0, 0))
    pipeline().save_pretrained(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "a"]
