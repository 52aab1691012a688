"""A peer beside our methods: transformers' `generate` and checkouts that a user has, on the same weights."""

import json
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import glm
import numpy as np
import pytest
import small
import torch
from checkouts import written
from torch import nn
from wrapped import EMU, JANUS, emu_model, janus_model, words

from vargen.commands import bench, main, peers
from vargen.core import registry
from vargen.core.layout import Layout
from vargen.eval.authors import LlamaGenPeer, filled
from vargen.eval.checkout import imported
from vargen.eval.peers import Emu3Peer, GlmImagePeer, JanusPeer
from vargen.models import emu3
from vargen.models.emu3 import Emu3
from vargen.models.janus import Janus
from vargen.pipelines.glm_image import GlmImagePipeline
from vargen.pipelines.prompted import PromptedPipeline
from vargen.pipelines.raster import RasterPipeline

LAW = {"guidance_scale": 3.0, "cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
MODELS = {"LlamaGen": "small", "VAR": "small-scales", "MAR": "small-latents"}
METHODS = {"LlamaGen": "ar,sjd-exact:window=4", "VAR": "var", "MAR": "mar,disa"}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for name in MODELS.values():
        monkeypatch.setitem(registry.MODELS, name, "small:PRESETS")


def result(tmp_path, *argv) -> dict[str, Any]:
    path = tmp_path / "rows.json"
    bench.command([*map(str, argv), "--device", "cpu", "--json", str(path)])
    return json.loads(path.read_text())


@pytest.mark.parametrize(("name", "calls"), [("janus", 16), ("emu3", 40), ("glm-image", 4 * 4 + 16 * 16)])
def test_transformers_beside_our_methods(name, calls, tmp_path, monkeypatch, capsys):
    for key, value in (("LAYERS", 1), ("WIDTH", 32), ("SIDE", 4)):
        monkeypatch.setattr(peers, key, value)
    argv = ["--peer", "--synthetic", name, "--methods", "ar,sjd-exact:window=4", "--num-images", 3, "--batch-size", 2]
    found = result(tmp_path, *argv)
    ours, _, theirs = rows = found["rows"]
    assert [row["method"] for row in rows] == ["ar", "sjd-exact:window=4", "transformers generate"]
    assert ours["by"].startswith("vargen ")
    assert theirs["by"].startswith("transformers 5.")
    count = 2 * (calls if name == "glm-image" else 16)
    assert theirs["same"] == f"{count} of {count} greedy tokens equal"
    assert theirs["forwards_per_image"] == calls  # guidance of Emu3 is a forward of its own
    times = [theirs["seconds_per_image"] / row["seconds_per_image"] for row in rows]
    assert [row["over_peer"] for row in rows] == pytest.approx(times, rel=0.01)
    assert theirs["cache_bytes"] is None
    assert found["model"] == f"{name} of 1 layers, width 32, random weights"
    shown = capsys.readouterr().out
    assert "tokens alone" in shown
    assert f"| {theirs['by']} | transformers generate | {calls}.0 |" in shown


def test_what_a_step_settles_can_be_imposed(tmp_path, monkeypatch):
    for key, value in (("LAYERS", 1), ("WIDTH", 32), ("SIDE", 4)):
        monkeypatch.setattr(peers, key, value)
    argv = ["--peer", "--synthetic", "glm-image", "--methods", "ar,sjd-exact:window=8", "--num-images", 1]
    found = result(tmp_path, *argv, "--tokens-per-forward", 2.5)
    ours, jacobi, _ = found["rows"]
    slots = 4 * 4 + 16 * 16
    assert ours["forwards_per_image"] == slots
    assert jacobi["forwards_per_image"] == 1 + -(-(slots - 1) * 2 // 5)
    assert found["model"].endswith("2.5 tokens a forward of drafts imposed")
    for wrong in (["--tokens-per-forward", 0.5], ["--tokens-per-forward", "nan"]):
        with pytest.raises(ValueError, match="expected 1 or more"):
            result(tmp_path, *argv, *wrong)
    assert "2 layers, width 64, 128 codes" in result(tmp_path, *argv, "--shape", "2x64x128")["model"]
    for wrong in ("3", "0x32x64", "1x33x64", "1x32x3", "1x32x99999"):
        with pytest.raises(ValueError, match="expected such as 4x256x1024"):
            result(tmp_path, *argv, "--shape", wrong)
    with pytest.raises(ValueError, match="which glm-image alone has"):
        result(tmp_path, "--peer", "--synthetic", "janus", "--shape", "1x32x64")
    with pytest.raises(ValueError, match="without --synthetic"):
        result(tmp_path, "--model", "pocket-llamagen", "--tokens-per-forward", 3)


def wrapped(name):
    if name == "janus":
        made, text = Janus(janus_model().model, begin=4, start=1, nothing=0), words(JANUS, bos=True)
    else:
        model, sizes = emu_model(), ((32, 48),)
        ids = emu3.codes(model.config.vocabulary_map)
        made, text = Emu3(model.model.text_model, model.lm_head, ids, size=sizes[0], sizes=sizes), words(EMU, bos=False)
    pipe = PromptedPipeline(made, None, text_tokenizer=text)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_wrapped_model_from_its_folder(tmp_path):
    folder = tmp_path / "janus"
    janus_model().save_pretrained(folder)
    words(JANUS, bos=True).save_pretrained(folder)
    argv = ["--model", "janus-pro-1b", "--checkpoint", folder, "--prompt", "a red boat", "--methods", "ar"]
    found = result(tmp_path, *argv, "--num-images", 1, "--top-k", 5, "--dtype", "bfloat16", "--peer")
    assert (found["model"], found["dtype"]) == ("janus-pro-1b", "bfloat16")
    assert found["rows"][1]["same"].endswith(" of 16 greedy tokens equal")


@pytest.mark.parametrize(("name", "kind"), [("janus", JanusPeer), ("emu3", Emu3Peer)])
def test_prompts_of_several_lengths_and_what_is_drawn(name, kind, monkeypatch):
    monkeypatch.setattr(emu3, "NEGATIVE", "low low")
    pipe = wrapped(name)
    states, mask = pipe.read_prompts(["a red boat", "sea", "a sea"])
    inputs, peer = {"prompt_embeds": states, "prompt_attention_mask": mask}, kind(pipe, LAW)
    assert peer.same(inputs, 3) in ("48 of 48 greedy tokens equal", "72 of 72 greedy tokens equal")
    before = torch.get_rng_state()
    drawn = [peer(inputs, [seed, 9, 9]) for seed in (0, 1, 0)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0].tokens, drawn[2].tokens)
    assert not torch.equal(drawn[0].tokens, drawn[1].tokens)
    assert 0 <= int(drawn[0].tokens.min()) <= int(drawn[0].tokens.max()) < 20
    assert not any(part._forward_hooks for part in pipe.transformer.modules())


def test_glm_image_s_two_grids():
    pipe = GlmImagePipeline(glm.ours())
    pipe.set_progress_bar_config(disable=True)
    ids, mask = glm.prompts(0, 1, 2)
    peer = GlmImagePeer(pipe, LAW)
    count = 3 * glm.SPEC.slots
    inputs = {"prompt_embeds": ids, "prompt_attention_mask": mask}
    assert peer.same(inputs, 3) == f"{count} of {count} greedy tokens equal"
    assert int(peer(inputs, [0, 0, 0]).tokens.max()) < glm.CODES


def numbers() -> list[int]:
    """Where numpy's own generator stands."""
    state: Any = np.random.get_state()
    return state[1].tolist()


@pytest.mark.parametrize("what", list(MODELS))
def test_a_checkout_beside_our_methods(what, tmp_path):
    folder = written(tmp_path / "theirs", what)
    path, modules, theirs_own = list(sys.path), set(sys.modules), ("models", "utils", "dist", "autoregressive")
    order = numbers()
    argv = ["--model", MODELS[what], "--methods", METHODS[what], "--num-images", 2, "--batch-size", 2]
    *ours, theirs = result(tmp_path, *argv, "--peer-path", folder)["rows"]
    assert [row["by"].split()[0] for row in ours] == ["vargen"] * len(ours)
    assert theirs["by"] == f"{what} at {folder}"
    slots = {"LlamaGen": "72 of 72", "VAR": "60 of 60", "MAR": "noise of its own; z of 16 tokens within"}[what]
    assert theirs["same"].startswith(slots)
    if what == "MAR":
        assert float(theirs["same"].split()[-1]) < 1e-5
    assert theirs["forwards_per_image"] == {"LlamaGen": 36, "VAR": 4, "MAR": 6}[what] == ours[0]["forwards_per_image"]
    assert sys.path == path
    assert not [name for name in set(sys.modules) - modules if name.partition(".")[0] in theirs_own]
    assert numbers() == order
    assert not list(folder.rglob("__pycache__"))


def test_a_peer_that_draws_something_else_is_told(tmp_path):
    folder = written(tmp_path / "theirs", "LlamaGen", **{"u + (c - u) * cfg_scale": "u + (c - u) * 0.3 * cfg_scale"})
    argv = ["--model", "small", "--methods", "ar", "--num-images", 1, "--top-p", 0.9, "--peer-path", folder]
    equal = int(result(tmp_path, *argv, "--guidance-scale", 4)["rows"][-1]["same"].split()[0])
    assert equal < 36
    right = written(tmp_path / "right", "LlamaGen")
    argv[-1] = right
    assert result(tmp_path, *argv, "--cfg-interval", 5)["rows"][-1]["same"] == "36 of 36 greedy tokens equal"


def test_a_checkout_that_reads_prompts(tmp_path):
    config = replace(small.CONFIG, caption_width=8, caption_tokens=5)
    pipe = RasterPipeline(small.llamagen(config), small.vq())
    torch.nn.init.normal_(pipe.transformer.cls_embedding.uncond_embedding)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)) * mask[..., None]
    peer = LlamaGenPeer(pipe, LAW, written(tmp_path, "LlamaGen"))
    assert peer.same({"prompt_embeds": states, "prompt_attention_mask": mask}, 2) == "72 of 72 greedy tokens equal"


def test_names_that_others_have_are_put_back(tmp_path, monkeypatch):
    other: Any = ModuleType("utils")
    monkeypatch.setitem(sys.modules, "utils", other)
    folder = written(tmp_path / "theirs", "LlamaGen")
    gpt, generate = imported(folder, "LlamaGen", ("autoregressive.models.gpt", "autoregressive.models.generate"))
    assert gpt.load.__code__.co_filename == str(folder / "utils" / "standing.py")
    assert generate.draw is not None
    assert sys.modules["utils"] is other
    assert not any(place.startswith(str(folder)) for place in sys.path_importer_cache)


@pytest.mark.parametrize(
    ("model", "what", "changed", "more", "words"),
    [
        ("small", "VAR", {}, (), "no autoregressive/models/gpt.py in"),
        (
            "small",
            "LlamaGen",
            {"import torch\n": "import nothing_of_that_name\n"},
            (),
            "ModuleNotFoundError: No module",
        ),
        ("small", "LlamaGen", {'print("drawing")': "torch.zeros(2) @ torch.zeros(3)"}, (), "failed: RuntimeError"),
        ("small", "LlamaGen", {"n_head: int": "heads: int"}, (), "failed: TypeError"),
        ("small-scales", "VAR", {}, ("--methods", "var", "--top-k", "3,2,1,1"), "a top_k for each scale"),
        (
            "small-scales",
            "VAR",
            {},
            ("--methods", "var", "--cfg-interval", "1"),
            "got cfg_interval 1, but VAR autoregressive_infer_cfg has",
        ),
        ("small", None, {}, ("--peer",), "give --peer-path, a checkout"),
        ("pocket-lumina", None, {}, ("--peer",), "pocket-lumina has no peer: transformers' Chameleon rules out"),
        (None, "VAR", {}, ("--synthetic", "janus"), "transformers' generate, which takes no --peer-path"),
        (None, None, {}, ("--peer", "--synthetic", "var-d30"), "var-d30 with --peer, expected one of janus, emu3"),
        (None, None, {}, ("--peer", "--synthetic", "janus", "--guidance-scale", "1"), "wants more than 1"),
        (None, None, {}, ("--peer", "--synthetic", "emu3", "--cfg-interval", "3"), "generate has none"),
    ],
)
def test_one_sentence_where_there_is_no_comparison(model, what, changed, more, words, tmp_path, monkeypatch, capsys):
    for key, value in (("LAYERS", 1), ("WIDTH", 32), ("SIDE", 4)):
        monkeypatch.setattr(peers, key, value)
    path = [] if what is None else ["--peer-path", str(written(tmp_path / "theirs", what, **changed))]
    argv = [*(["--model", model] if model else []), *path, *more, "--num-images", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main.guarded(bench.command, argv)
    told = capsys.readouterr()
    assert stop.value.code == 2
    assert words in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_weights_that_do_not_fit():
    ours, table = nn.Linear(2, 3), Layout(ignored=r"table")
    assert torch.equal(filled(nn.Linear(2, 3), ours, table).weight, ours.weight)
    held = nn.Linear(2, 3)
    held.register_buffer("table", torch.zeros(2))
    filled(held, ours, table)
    for other in (nn.Linear(2, 3, bias=False), nn.Bilinear(2, 2, 3)):
        with pytest.raises((ValueError, RuntimeError)):
            filled(other, ours, table)
    with pytest.raises(ValueError, match="table is in one of both models alone"):
        filled(held, ours, Layout())


def test_quantised_weights_have_no_peer():
    pipe = small.pipeline()
    pipe.quantize = "int8"
    options = bench.parser().parse_args(["--peer"])
    with pytest.raises(ValueError, match="leave --quantize out"):
        peers.beside(options, pipe, ["ar"])
