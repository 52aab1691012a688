"""LoRA merged into weights: against the sum itself, by all names that files have; nothing changes where it is wrong."""

import json
import math
import re
from typing import Any

import pytest
import torch
from every_kind import emu, lumina
from safetensors.torch import save_file
from small import pipeline, scale_pipeline

import vargen

CPU: dict[str, Any] = {"device": "cpu"}
WIDTH = 32


def factors(rows, columns, rank=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)


def named(layer, shape, front="base_model.model.", **options):
    down, up = factors(*shape, **options)
    return {f"{front}{layer}.lora_A.weight": down, f"{front}{layer}.lora_B.weight": up}, up @ down


@pytest.mark.parametrize("front", ["base_model.model.", "transformer.", "", "base_model.model.model."])
def test_official_names(front):
    pipe = pipeline()
    before, other = (layer.attention.state_dict()["wqkv.weight"] for layer in reversed(pipe.transformer.layers))
    weights, change = named("layers.1.attention.wqkv", (3 * WIDTH, WIDTH), front)
    assert pipe.load_lora_weights(weights, adapter_name="mine", lora_scale=0.5) is None
    now, unchanged = (layer.attention.state_dict()["wqkv.weight"] for layer in reversed(pipe.transformer.layers))
    assert torch.allclose(now, before + 0.5 * change, atol=1e-5)
    assert torch.equal(unchanged, other)
    pipe.fuse_lora()
    merged = "LoRA weights are merged into the model's when they are loaded"
    with pytest.raises(ValueError, match=merged):
        pipe.unload_lora_weights()
    with pytest.raises(ValueError, match=merged):
        pipe.set_adapters("mine")
    with pytest.raises(ValueError, match=merged):
        pipe.fuse_lora(lora_scale=2.0)


def test_llama_s_names_on_llamagen():
    """Queries, keys and values are thirds of one layer here."""
    pipe = pipeline()
    layer = pipe.transformer.layers[0]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    hidden, weights, changes = before["feed_forward.w1.weight"].shape[0], {}, {}
    for i, (name, shape) in enumerate(
        {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.v_proj": (WIDTH, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (hidden, WIDTH),
            "mlp.down_proj": (WIDTH, hidden),
        }.items()
    ):
        more, changes[name] = named(f"model.layers.0.{name}", shape, seed=i)
        weights |= more
    pipe.load_lora_weights(weights)
    q, k, v = layer.attention.state_dict()["wqkv.weight"].chunk(3)
    old = before["attention.wqkv.weight"].chunk(3)
    assert torch.allclose(q, old[0] + changes["self_attn.q_proj"], atol=1e-5)
    assert torch.equal(k, old[1])
    assert torch.allclose(v, old[2] + changes["self_attn.v_proj"], atol=1e-5)
    twins = {"wo": "self_attn.o_proj", "w1": "mlp.gate_proj", "w2": "mlp.down_proj"}
    for ours, theirs in twins.items():
        key = f"attention.{ours}.weight" if ours == "wo" else f"feed_forward.{ours}.weight"
        assert torch.allclose(layer.state_dict()[key], before[key] + changes[theirs], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "layer", "ours", "front"),
    [
        (lumina, "layers.1.self_attn.k_proj", "decoder.model.layers.1.self_attn.k_proj", "model."),
        (emu, "layers.0.mlp.up_proj", "language.layers.0.mlp.up_proj", "base_model.model.model.text_model."),
        (scale_pipeline, "blocks.0.attn.mat_qkv", "layers.0.attention.qkv", ""),
    ],
)
def test_models_of_prompts_and_scales(make, layer, ours, front):
    pipe = make()
    before = pipe.transformer.state_dict()[f"{ours}.weight"].clone()
    weights, change = named(layer, tuple(before.shape), front)
    pipe.load_lora_weights(weights)
    assert torch.allclose(pipe.transformer.state_dict()[f"{ours}.weight"], before + change, atol=1e-5)


def test_files_as_peft_and_diffusers_write_them(tmp_path):
    weights, change = named("layers.1.attention.wo", (WIDTH, WIDTH), rank=4)
    peft, diffusers = tmp_path / "peft", tmp_path / "diffusers"
    for folder in (peft, diffusers):
        folder.mkdir()
    save_file(weights, peft / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 8, "r": 4, "auto_mapping": None}
    inside = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 2, "transformer.r": 4})}
    save_file(weights, diffusers / "pytorch_lora_weights.safetensors", inside)
    alone = {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value for key, value in weights.items()}
    alone["base_model.model.layers.1.attention.wo.alpha"] = torch.tensor(1.0)
    save_file(alone, diffusers / "kohya.safetensors")
    for place, options, factor in (
        (peft, {}, 2.0),
        (peft, {"config": {"use_rslora": True}}, 4.0),
        (peft, {"config": {"alpha_pattern": {"attention.wo": 4}}}, 1.0),
        (diffusers, {}, 0.5),
        (diffusers / "pytorch_lora_weights.safetensors", {"lora_scale": 2.0}, 1.0),
        (diffusers, {"weight_name": "kohya.safetensors"}, 0.25),
    ):
        (peft / "adapter_config.json").write_text(json.dumps(config | options.pop("config", {})))  # pyright: ignore
        pipe = pipeline()
        weight = pipe.transformer.layers[1].attention.wo.weight
        before = weight.clone()
        pipe.load_lora_weights(place, **options)  # pyright: ignore
        assert torch.allclose(weight, before + factor * change, atol=1e-4), (place, options)


def test_loading_merges_before_layers_are_quantised(tmp_path):
    weights, change = named("layers.0.feed_forward.w1", (512, 192))
    save_file(weights, tmp_path / "lora.safetensors")
    plain, merged = (vargen.load("pocket-llamagen", lora=lora, **CPU) for lora in (None, tmp_path / "lora.safetensors"))
    now, before = (pipe.transformer.layers[0].feed_forward.state_dict()["w1.weight"] for pipe in (merged, plain))
    shift = now - before
    assert torch.allclose(shift, change, atol=1e-5)
    assert (plain.nats_per_token is None, merged.nats_per_token) == (False, None)
    merged.quantize = "int8"
    with pytest.raises(ValueError, match="a transformer in int8 takes no LoRA"):
        merged.load_lora_weights(weights)


WO = "layers.0.attention.wo"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({f"{WO}.lora_A.weight": None}, f"only one of both factors of {WO}"),
        ({"x.lora_A.weight": torch.ones(2, 2)}, "LlamaGen has no layer x for LoRA; it has such as"),
        ({f"vision_model.{WO}.lora_A.weight": torch.ones(1)}, "has no layer vision_model"),
        ({f"{WO}.lora_magnitude_vector": torch.ones(1)}, "which is no factor"),
        ({f"{WO}.lora_A.weight": torch.ones(3, 5)}, "expected factors of"),
        ({f"{WO}.lora_A.weight": torch.ones(7, WIDTH)}, "have ranks 7 and 3"),
        ({f"{WO}.lora_A.weight": torch.full((3, WIDTH), math.nan)}, "NaN or infinity"),
        ({f"{WO}.alpha": torch.ones(2)}, "expected one number"),
        ({f"{WO}.lora_A.weight": 3}, "is no tensor"),
        ({"a\n\x1b[31mb": torch.ones(1)}, r"have a\\n\\x1b\[31mb, which is no factor"),
    ],
)
def test_what_does_not_fit_changes_nothing(more, why):
    pipe = pipeline()
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    good, _ = named("layers.1.attention.wo", (WIDTH, WIDTH), "")
    weights, _ = named(WO, (WIDTH, WIDTH), "")
    found = {key: value for key, value in (good | weights | more).items() if value is not None}
    with pytest.raises(ValueError, match=why):
        pipe.load_lora_weights(found)
    assert all(torch.equal(value, before[key]) for key, value in pipe.transformer.state_dict().items())
    with pytest.raises(ValueError, match="got LoRA weights of no layer"):
        pipe.load_lora_weights({})


def test_files_that_are_none(tmp_path):
    pipe = pipeline()
    weights, _ = named("layers.0.attention.wo", (WIDTH, WIDTH))
    for scale in (math.inf, "x", True):
        with pytest.raises(ValueError, match="expected a number"):
            pipe.load_lora_weights(weights, lora_scale=scale)  # pyright: ignore
    with pytest.raises(ValueError, match=r"no LoRA weights .*adapter_model\.safetensors: expected a safetensors file"):
        pipe.load_lora_weights(tmp_path)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    for text, why in {
        "{": "cannot read the LoRA's config",
        "[]": "cannot read the LoRA's config",
        '{"use_dora": true}': "holds 'DoRA' weights",
        '{"peft_type": "IA3"}': "holds 'IA3' weights",
        '{"lora_alpha": "x"}': "got lora_alpha 'x'",
        '{"use_rslora": "no"}': "was trained with use_rslora 'no', which is not merged here",
        '{"alora_invocation_tokens": [1]}': "was trained with alora_invocation_tokens",
    }.items():
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=why):
            pipe.load_lora_weights(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: {key: value.to_sparse() for key, value in w.items()}, "expected a plain tensor of floats"),
        (lambda w: {key: value.to(torch.complex64) for key, value in w.items()}, "expected a plain tensor of floats"),
        (lambda w: {key: value.to("meta") for key, value in w.items()}, "expected a plain tensor of floats"),
        (lambda w: {key: value.to(torch.float8_e4m3fn) for key, value in w.items()}, "in torch.float8"),
        (lambda w: dict(enumerate(w.values())), "is no tensor by name"),
        (lambda w: w | {f"{WO}.lora_A.other.weight": torch.ones(3, WIDTH)}, "two adapters of"),
        (lambda w: {key: 1e20 * value for key, value in w.items()}, "give NaN or infinity in torch.float32"),
        (lambda _: 5, "got LoRA weights 5, expected a path"),
        (lambda _: None, "got LoRA weights None, expected a path"),
    ],
)
def test_what_is_no_plain_pair_of_factors(change, why):
    pipe, (weights, _) = pipeline(), named(WO, (WIDTH, WIDTH), "")
    before = pipe.transformer.layers[0].attention.wo.weight.clone()
    with pytest.raises(ValueError, match=why):
        pipe.load_lora_weights(change(weights))
    for scale in (1e300, 10**400):
        with pytest.raises(ValueError, match=r"NaN or infinity|expected a number"):
            pipe.load_lora_weights(weights, lora_scale=scale)
    assert torch.equal(pipe.transformer.layers[0].attention.wo.weight, before)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"fan_in_fan_out": True}, "fan_in_fan_out True, which is not merged"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
        ({"alpha_pattern": {r"layers\.\d+": 4}}, "expected names of layers and no regular"),
        ({"lora_alpha": 10**400}, "got lora_alpha .*expected a number"),
    ],
)
def test_configs_that_ask_for_another_merge(config, why, tmp_path):
    save_file(named(WO, (WIDTH, WIDTH), "")[0], tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=why):
        pipeline().load_lora_weights(tmp_path)


def test_names_and_patterns_without_end_take_no_longer_than_to_read_them(tmp_path, monkeypatch):
    """Both were minutes, of files of some hundred kilobytes."""
    pipe, front = pipeline(), "model." * 200_000
    layers = [f"layers.{i}.{part}" for i in range(2) for part in ("attention.wo", "attention.wqkv")]
    weights: dict[str, Any] = {}
    for layer in layers:
        weights |= named(layer, (WIDTH * (3 if layer.endswith("wqkv") else 1), WIDTH), front)[0]
    save_file(weights, tmp_path / "adapter_model.safetensors")
    patterns = {f"layer{i}": 1 for i in range(5000)} | {"wo": 9}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3, "alpha_pattern": patterns}))
    looked, fullmatch = [], re.fullmatch
    monkeypatch.setattr(re, "fullmatch", lambda *arguments: looked.append(1) or fullmatch(*arguments))
    before = {layer: pipe.transformer.state_dict()[f"{layer}.weight"].clone() for layer in layers}
    pipe.load_lora_weights(tmp_path)
    assert len(looked) < 2 * len(patterns)
    for layer in layers:
        up, down = (weights[f"{front}{layer}.lora_{side}.weight"] for side in "BA")
        change = (3 if layer.endswith("wo") else 1) * up @ down
        assert torch.allclose(pipe.transformer.state_dict()[f"{layer}.weight"], before[layer] + change, atol=1e-4)
