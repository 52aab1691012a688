"""Layers in 8 bits: how far a weight moves, the law of the quantised model, and one sentence for what cannot be."""

import importlib
import importlib.util
import json
import re
import sys

import pytest
import torch
from small import latent_pipeline, pipeline, scale_pipeline
from wrapped import emu_model, janus_model

import vargen
from vargen.commands import main, sample
from vargen.core import quantize, registry
from vargen.eval import runs

HERE = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not HERE, reason="torchao is not installed: pip install 'vargen[quant]'")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipes():
    """pocket-llamagen, plain and in int8."""
    both = [vargen.load("pocket-llamagen", device="cpu", quantize=kind) for kind in (None, "int8")]
    for pipe in both:
        pipe.set_progress_bar_config(disable=True)
    return both


@pytest.fixture(autouse=True)
def _small_model(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")


@needs_torchao
def test_no_weight_moves_by_more_than_half_a_step(pipes):
    plain, other = (quantize.linears(pipe.transformer) for pipe in pipes)
    assert list(plain) == list(other)
    generator = torch.Generator().manual_seed(0)
    for name, part in plain.items():
        weight, stored = part.weight, other[name].weight
        assert quantize.parts(stored)[0].dtype == torch.int8
        assert stored.shape == weight.shape
        step = weight.abs().amax(1) / 127.5
        x = torch.randn(5, part.in_features, generator=generator)
        off, most = (other[name](x) - part(x)).abs(), x.abs().sum(-1, keepdim=True) * step / 2
        assert (off <= most * 1.001 + 1e-5).all()
        # Errors of rounding are uniform: their deviation is a step over the root of twelve, and that shows.
        usual = off.square().mean() / (x.square().sum(-1, keepdim=True) * step.square() / 12).mean()
        assert 0.5 < usual < 2


@needs_torchao
def test_only_the_layers_are_quantised_and_they_take_a_quarter(pipes):
    plain, other = (pipe.transformer for pipe in pipes)
    inside = {f"{name}.weight" for name in quantize.linears(plain)}
    assert len(inside) == 4 * plain.config.layers
    for (name, before), (_, after) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        if name in inside:
            rows, columns = before.shape
            assert sum(part.nbytes for part in quantize.parts(after)) == rows * (columns + 4 + 1)  # step and offset
        else:
            assert torch.equal(before, after)
            assert quantize.parts(after)[0] is after
    assert quantize.stored(other) < 0.4 * quantize.stored(plain) == 0.4 * 4 * sum(p.numel() for p in plain.parameters())


@needs_torchao
def test_quantised_layers_are_taken_back_as_they_were_given(pipes):
    _, quantised = (pipe.transformer for pipe in pipes)
    state = quantised.state_dict()
    before = {key: [part.clone() for part in quantize.parts(value)] for key, value in state.items()}
    quantised.load_state_dict(state)
    for key, value in quantised.state_dict().items():
        assert all(map(torch.equal, quantize.parts(value), before[key]))


@needs_torchao
@torch.inference_mode()
def test_the_law_is_near_and_another(pipes):
    ids = torch.randint(1024, (4, 256), generator=torch.Generator().manual_seed(0))
    p, q = (
        pipe.transformer(pipe.transformer.class_condition(torch.arange(4), guided=False), ids).softmax(-1)
        for pipe in pipes
    )
    apart = (p - q).abs().sum(-1) / 2  # total variation
    assert 0.001 < apart.mean() < 0.05


@needs_torchao
def test_sjd_exact_equals_ar_and_the_trace_says_what_ran(pipes):
    options = {"seed": 3, "num_images_per_prompt": 2, "output_type": "latent"}
    plain, other = (pipe(["beach", "canyon"], method="ar", **options) for pipe in pipes)
    assert not torch.equal(plain.tokens, other.tokens)
    assert "quantize" not in plain.trace.settings
    assert "torchao" not in plain.trace.versions
    drawn = pipes[1](["beach", "canyon"], method="sjd-exact:window=16", **options)
    assert torch.equal(drawn.tokens, other.tokens)
    assert drawn.trace.forwards_per_image < 160
    assert drawn.trace.settings["quantize"] == "int8"
    assert drawn.trace.versions["torchao"] == quantize.version()


@needs_torchao
@pytest.mark.parametrize("drafter", ["eagle", "pocket-llamagen-small"])
def test_drafters_stay_as_they_are_and_draft(pipes, drafter):
    out = pipes[1](["beach"], method=f"speculative:drafter={drafter}", seed=0, output_type="latent")
    assert 0 < out.trace.drafts_kept < out.trace.drafts
    assert all(part is value for value in pipes[1].drafters[drafter].parameters() for part in quantize.parts(value))


@needs_torchao
def test_a_quantised_model_drafts(pipes, monkeypatch):
    plain, other = pipes
    monkeypatch.setattr(plain, "drafter", other.transformer)
    out = plain(["beach"], method="speculative:length=3", seed=0, output_type="latent")
    assert out.trace.drafts_kept > 0.9 * out.trace.drafts  # the laws are near each other


@needs_torchao
@pytest.mark.parametrize(("make", "count"), [(pipeline, 8), (scale_pipeline, 10), (latent_pipeline, 16)])
def test_every_kind_of_model_draws(make, count):
    pipe = make()
    before = pipe(["a", "b"], seed=0).tokens
    quantize.apply(pipe.transformer, "int8")
    pipe.quantize = "int8"
    integers = [p for p in pipe.transformer.parameters() if quantize.parts(p)[0].dtype == torch.int8]
    assert len(integers) == count
    out = pipe(["a", "b"], seed=0)
    assert out.tokens.shape == before.shape
    assert out.trace.settings["quantize"] == "int8"


@needs_torchao
def test_models_of_transformers_and_prompts():
    for language in (emu_model().model.text_model, janus_model().model.language_model):
        assert len(quantize.linears(language)) == 7 * 2
    pipe = vargen.load("pocket-lumina", device="cpu", quantize="int8")
    pipe.set_progress_bar_config(disable=True)
    for width in (64, 96):
        drawn = pipe.at(64, width)(prompt="a red boat", method="sjd-coupled:window=16", seed=0, output_type="latent")
        assert drawn.trace.settings["quantize"] == "int8"


@needs_torchao
def test_half_precision_and_moves():
    pipe = vargen.load("pocket-llamagen", device="cpu", dtype=torch.bfloat16, quantize="int8")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.dtype == torch.bfloat16
    assert pipe.to("cpu") is pipe.to(torch.bfloat16) is pipe
    out = pipe(["beach"], method="sjd-coupled:window=16", seed=0, output_type="latent")
    assert out.trace.forwards_per_image < 160
    with pytest.raises(ValueError, match="a transformer in int8 is not cast: load it anew"):
        pipe.to(torch.float32)


@needs_torchao
def test_fingerprints_tell_quantised_weights_apart(pipes):
    again = vargen.load("pocket-llamagen", device="cpu", quantize="int8")
    plain, other = (runs.fingerprint(pipe, "ar") for pipe in pipes)
    assert plain != other == runs.fingerprint(again, "ar")
    quantize.parts(again.transformer.layers[0].attention.wo.weight)[0][0, 0] += 1
    assert runs.fingerprint(again, "ar") != other


@needs_torchao
def test_flag(tmp_path):
    argv = ["--model", "small", "--method", "sjd-exact:window=4", "--quantize", "int8", "--out", tmp_path / "a.png"]
    main.guarded(sample.command, [str(word) for word in (*argv, "--trace", tmp_path / "a.json")])
    trace = json.loads((tmp_path / "a.json").read_text())
    assert trace["settings"]["quantize"] == "int8"
    assert "torchao" in trace["versions"]


@needs_torchao
def test_evaluation_keeps_apart_what_is_quantised(tmp_path):
    from vargen.commands.evaluate import command

    argv = ["sample", "--model", "small", "--method", "ar", "--num-images", "4", "--out", str(tmp_path / "run")]
    command([*argv, "--quantize", "int8"])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["plan"]["quantize"] == "int8"
    assert "torchao" in manifest["versions"][0]
    with pytest.raises(ValueError, match=r"holds another run: .*quantize 'int8' instead of ''"):
        command(argv)


def test_int4_wants_what_its_kernel_can_do(monkeypatch):
    monkeypatch.setattr(quantize, "_torchao", lambda: None)
    for device, dtype in ((CPU, torch.bfloat16), (CPU, torch.float32)):
        words = f"needs a CUDA device of compute capability 8.0 or more and bfloat16, got cpu and {dtype}"
        with pytest.raises(ValueError, match=re.escape(words.replace("torch.", ""))):
            quantize.check("int4", device, dtype)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    quantize.check("int4", torch.device("cuda"), torch.bfloat16)
    for capability, dtype in (((9, 0), torch.float16), ((7, 5), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        with pytest.raises(ValueError, match="got cuda and"):
            quantize.check("int4", torch.device("cuda"), dtype)


def test_int4_wants_groups_that_divide(monkeypatch):
    monkeypatch.setattr(quantize, "_torchao", lambda: None)
    words = "groups of 128 weights, which do not divide the width 32 of layers.0.attention.qkv"
    with pytest.raises(ValueError, match=re.escape(words)):
        quantize.apply(pipeline().transformer, "int4")
    with pytest.raises(ValueError, match="Linear cannot be quantised: no layers were found"):
        quantize.apply(torch.nn.Linear(128, 128), "int4")


@pytest.mark.parametrize("kind", ["int7", "", 8])
def test_unknown_kinds(kind):
    with pytest.raises(ValueError, match=f"got quantize {kind!r}, expected int8 or int4"):
        vargen.load("small", quantize=kind)


def test_without_torchao_the_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torchao", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "torchao.quantization", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main.guarded(sample.command, ["--model", "small", "--quantize", "int8", "--out", str(tmp_path / "a.png")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "vargen: quantize needs torchao, pip install 'vargen[quant]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_unknown_flag(capsys):
    with pytest.raises(SystemExit):
        main.guarded(sample.command, ["--quantize", "int7"])
    assert "invalid choice: 'int7'" in capsys.readouterr().err
