"""Pipelines as folders: every kind there and back, what a damaged or foreign folder says, whole or not at all."""

import os
from dataclasses import replace
from typing import Any

import chameleon
import pytest
import torch
from diffusers import DiffusionPipeline
from every_kind import ASKED
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
    kinds = ("Raster", "Prompted", "GlmImage", "NextScale", "Continuous")
    assert set(saving.NAMES) == {f"Vargen{kind}Pipeline" for kind in kinds}


def test_what_a_killed_process_left_goes_with_the_next_save(tmp_path):
    old, young = tmp_path / ".a.12345678.part", tmp_path / ".a.abcdefgh.part"
    for path in (old, young):
        path.mkdir()
    os.utime(old, (0, 0))
    pipeline().save_pretrained(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "a"]
