"""LlamaGen and its tokenizer against recorded outputs of the official implementation, through the official files."""

import pytest
import synth
import torch

from vargen.core import checkpoints, registry
from vargen.core.types import Block
from vargen.core.warp import Warp
from vargen.engine import loops
from vargen.engine.guidance import Guidance
from vargen.models.llamagen import LAYOUT, LlamaGen, LlamaGenConfig
from vargen.samplers.contract import Task
from vargen.tokenizers import vq
from vargen.tokenizers.vq import VQConfig, VQTokenizer

GREEDY = Warp(top_k=1)
METHODS = ("ar", "sjd:window=8", "sjd-coupled:window=16", "sjd-coupled:window=5:coupling=gumbel", "sjd-exact:window=8")


def relative(out, ref):
    return ((out - ref).norm() / ref.norm()).item()


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A golden case by name: the model, loaded as its official file is, and the recorded tensors."""

    def open_case(name):
        case, recorded = synth.case(name)
        path = tmp_path_factory.mktemp(name) / "official.pt"
        state = synth.state_dict(case["parameters"] | case.get("buffers", {}))
        if name == "llamagen_vq":
            state["quantize.codebook_used"] = torch.zeros(65536)  # as in the official files
        torch.save({"model": state}, path)
        model, layout = build(case)
        checkpoints.load_into(model, path, layout)
        return model.eval().requires_grad_(False), recorded

    cases = {}
    return lambda name: cases[name] if name in cases else cases.setdefault(name, open_case(name))


def build(case):
    c = case["config"]
    with torch.device("meta"):
        if case["family"] == "llamagen_vq":
            assert c["encoder_ch_mult"] == c["decoder_ch_mult"]
            channels = tuple(c["ch"] * m for m in c["encoder_ch_mult"])
            config = VQConfig(channels, 2, c["z_channels"], c["codebook_size"], c["codebook_embed_dim"])
            return VQTokenizer(config), vq.LLAMAGEN
        side = round(c["block_size"] ** 0.5)
        config = LlamaGenConfig(
            c["n_layer"],
            c["n_head"],
            c["dim"],
            side,
            c["vocab_size"],
            c.get("num_classes", 0),
            c.get("caption_dim", 0),
            c["cls_token_num"],
        )
        return LlamaGen(config), LAYOUT


def greedy(model, condition, guidance, method):
    sampler, settings = registry.method(method)
    made = sampler(settings, Task(model.spec, torch.arange(2), GREEDY))
    steps = loops.raster(model, condition, made, guidance, loops.Clock(model.device), loops.Counts())
    for _ in steps:
        pass
    return made.tokens


def test_class_logits(load):
    model, recorded = load("llamagen_c2i")
    condition = model.class_condition(recorded["cond"], guided=False)
    full = model(condition, torch.nn.functional.pad(recorded["idx"], (0, 1)))
    assert relative(full, recorded["logits"]) < 1e-4
    cache = model.make_cache(2)
    first = model.prefill(condition, cache)
    rest = model.decode(Block(recorded["idx"], torch.arange(63).expand(2, -1), 0, 63), cache)
    assert relative(torch.cat([first, rest], 1), recorded["logits"]) < 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("guidance", "name"),
    [
        (Guidance(2.0), "greedy_cfg2"),
        (Guidance(2.0, interval=5), "greedy_cfg2_interval5"),
        (Guidance(1.0), "greedy_nocfg"),
    ],
)
def test_class_greedy(load, method, guidance, name):
    model, recorded = load("llamagen_c2i")
    condition = model.class_condition(recorded["cond"], guided=guidance.active)
    assert torch.equal(greedy(model, condition, guidance, method), recorded[name])


def test_text_logits(load):
    model, recorded = load("llamagen_t2i")
    condition = model.text_condition(recorded["caption"], recorded["caption_mask"], guided=True)
    ids = recorded["idx"].repeat(2, 1)
    full = model(condition, torch.nn.functional.pad(ids, (0, 1)))
    assert relative(full, recorded["logits_cond_then_uncond"]) < 1e-4
    cache = model.make_cache(4)
    out = [model.prefill(condition, cache)]
    for start in range(0, 63, 9):
        slots = torch.arange(start, start + 9).expand(4, -1)
        out.append(model.decode(Block(ids[:, start : start + 9], slots, start, start + 9), cache))
    assert relative(torch.cat(out, 1), recorded["logits_cond_then_uncond"]) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_text_greedy(load, method):
    model, recorded = load("llamagen_t2i")
    condition = model.text_condition(recorded["caption"], recorded["caption_mask"], guided=True)
    assert torch.equal(greedy(model, condition, Guidance(7.5), method), recorded["greedy_cfg7_5"])


def test_tokenizer_encodes_and_decodes(load):
    model, recorded = load("llamagen_vq")
    image, side = recorded["image"], round(recorded["codes"].shape[1] ** 0.5)
    assert torch.equal(model.encode(image).flatten(1), recorded["encoded_codes"])
    assert relative(model.decode(recorded["codes"].unflatten(1, (side, side))), recorded["decoded"]) < 1e-4
