"""Saved pipelines that are damaged, lie, or are none of ours: one sentence each, and nothing hangs."""

import json
import os
import pickle
import shutil
from typing import Any

import pytest
import torch
from every_kind import emu
from small import pipeline

import vargen

CPU: dict[str, Any] = {"device": "cpu"}
LATENT = {"seed": 3, "output_type": "latent"}


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


def test_text_tokenizers_are_asked_to_read(tmp_path):
    """What their config says is believed by transformers until somebody reads."""
    emu().save_pretrained(tmp_path / "a")
    for value in ("x", {}, [1]):
        spoil(
            tmp_path / "a/text_tokenizer/tokenizer_config.json",
            lambda found, value=value: found.update(model_max_length=value),
        )
        with pytest.raises(ValueError, match=r"the text tokenizer .* reads no text: "):
            vargen.load(tmp_path / "a", **CPU)


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
