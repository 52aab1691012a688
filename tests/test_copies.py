"""Pipelines that are moved, copied, and sent to other processes: of every kind, and those that are named."""

import copy
import pickle

import pytest
import torch
from every_kind import ASKED
from small import pipeline

import vargen
from vargen.core import registry
from vargen.core.preset import custom
from vargen.engine.runners import Runners

LATENT = {"seed": 3, "output_type": "latent"}


@pytest.mark.parametrize("name", ASKED)
def test_copies_draw_the_same(name, tmp_path):
    make, asked = ASKED[name]
    pipe = make(tmp_path) if name == "harmon" else make()
    pipe.preset = custom(pipe.transformer)  # those of the tests hold functions without a name
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(**asked, **LATENT).tokens
    state = pipe.transformer.state_dict()
    for again in (pickle.loads(pickle.dumps(pipe)), copy.deepcopy(pipe), pipe.to("cpu"), pipe.to(torch.float32)):
        assert torch.equal(again(**asked, **LATENT).tokens, drawn)
        kept = again.transformer.state_dict()
        assert list(kept) == list(state)
        assert all(torch.equal(value, kept[key]) for key, value in state.items())
    if pipe.tokenizer is not None:
        assert pipe.tokenizer.dtype == torch.float32  # which diffusers asks for as it moves a pipeline


@pytest.mark.parametrize("name", ASKED)
def test_tensors_are_as_all_others(name, tmp_path):
    """They may be changed, and stand in what is differentiated, which tensors of inference mode refuse."""
    make, asked = ASKED[name]
    pipe = make(tmp_path) if name == "harmon" else make()
    pipe.set_progress_bar_config(disable=True)
    out = pipe(**asked, seed=3, output_type="pt")
    weight = torch.ones(1, requires_grad=True)
    (pipe.decode(out.tokens, "pt") * weight + out.images * weight).sum().backward()
    assert weight.grad
    assert out.images.mul_(0).sum() == out.tokens.mul_(0).sum() == 0
    if "prompt" in asked:
        assert not any(part.is_inference() for part in pipe.encode_prompt("a boat"))


def test_what_is_loaded_within_inference_mode_is_as_all_others(tmp_path):
    with torch.inference_mode():
        pipe, images = vargen.load("pocket-llamagen", device="cpu"), vargen.load_tokenizer("pocket-vq", device="cpu")
    assert not any(part.is_inference() for part in (*pipe.transformer.parameters(), *images.parameters()))
    layer, width = "layers.0.attention.wqkv.lora", pipe.transformer.config.width
    pipe.load_lora_weights({f"{layer}_A.weight": torch.ones(1, width), f"{layer}_B.weight": torch.ones(3 * width, 1)})
    pipe.transformer.load_state_dict(pipe.transformer.state_dict())
    pipe.to(torch.bfloat16).save_pretrained(tmp_path / "saved")


def test_every_preset_can_be_sent_to_another_process():
    for name in registry.MODELS:
        found = registry.preset(name)
        assert pickle.loads(pickle.dumps(found)).recipes == found.recipes


def test_copies_have_no_graphs_of_anothers_weights():
    pipe = pipeline()
    pipe._runners = Runners()
    pipe._runners._kept["model"] = (None, lambda: None)  # as unfit to be copied as a graph
    assert copy.deepcopy(pipe)._runners._kept == {}
