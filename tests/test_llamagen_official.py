"""Every published LlamaGen: key by key against the fact tables, and GPT-B with VQ-16 at full size."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import official
import pytest
import synth
import torch
from PIL import Image

import vargen
from vargen.commands import main, sample
from vargen.core import registry
from vargen.core.types import Block
from vargen.models.llamagen import LAYOUT, LlamaGen, LlamaGenConfig
from vargen.presets import llamagen as presets
from vargen.tokenizers import vq
from vargen.tokenizers.vq import VQConfig, VQTokenizer


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """GPT-B (444 MB) and VQ-16 (288 MB) as published, with values made from the names."""
    folder = tmp_path_factory.mktemp("official")
    return {
        "gpt": official.write(folder / "c2i_B_256.pt", official.gpt("b")),
        "vq": official.write(folder / "vq_ds16_c2i.pt", official.vq(*official.VQ["llamagen-vq-16-c2i"][0])),
    }


def shapes(module, layout):
    return {key: shape for key, (_, shape) in layout.expected(module).items()}


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("size", official.GPT)
def test_transformers_have_the_published_keys(size, text):
    layers, heads, width, hidden, *counts = official.GPT[size]
    config = presets.config(size, 384, text=text)
    with torch.device("meta"):
        model = LlamaGen(config)
    assert shapes(model, LAYOUT) == official.gpt(size, text=text)
    assert len(model.state_dict()) == 7 * layers + (6 if text else 4)
    assert sum(p.numel() for p in model.parameters()) == counts[text]
    assert (config.heads, config.head_dim, config.hidden, config.side) == (heads, width // heads, hidden, 24)


@pytest.mark.parametrize("name", official.VQ)
def test_tokenizers_have_the_published_keys(name):
    arguments, keys, parameters = official.VQ[name]
    with torch.device("meta"):
        model = VQTokenizer(presets.TOKENIZERS[name])
    assert shapes(model, vq.LLAMAGEN) == official.vq(*arguments)
    assert len(model.state_dict()) + 1 == keys  # the file also counts how often each code was used
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_key_tables_themselves_against_the_reference():
    """The tables of these tests give the very keys that the official implementation was seen to have."""
    case, _ = synth.case("llamagen_vq")
    c = case["config"]
    made = official.vq(c["ch"], c["encoder_ch_mult"], c["z_channels"], c["codebook_size"], c["codebook_embed_dim"])
    assert made == {key: tuple(shape) for key, shape in case["parameters"].items()}


def test_presets():
    named = {name for name, where in registry.MODELS.items() if where == "vargen.presets.llamagen:PRESETS"}
    assert named == set(presets.PRESETS)
    images = {name for name, where in registry.TOKENIZERS.items() if where == "vargen.presets.llamagen:tokenizer"}
    assert images == set(presets.TOKENIZERS)
    assert set(presets.FILES) <= named | set(presets.TOKENIZERS)
    assert len(set(presets.imagenet())) == 1000
    assert [presets.imagenet()[i] for i in (0, 207, 388, 980, 999)] == [
        "tench", "golden retriever", "giant panda", "volcano", "toilet tissue",
    ]  # fmt: skip
    for size, guidance in {"b": 2.0, "l": 2.0, "xl": 1.75, "xxl": 1.75, "3b": 1.65}.items():
        demo, fid = presets.PRESETS[f"llamagen-c2i-{size}-384"].recipes.values()
        assert (demo.guidance_scale, demo.top_k, demo.image_size) == (4.0, 2000, None)
        assert (fid.guidance_scale, fid.top_k, fid.image_size) == (guidance, 0, 256)
    for pixels in (256, 512):
        preset = presets.PRESETS[f"llamagen-t2i-xl-{pixels}"]
        assert (preset.recipe.guidance_scale, preset.recipe.top_k, preset.classes) == (7.5, 1000, 0)


def test_folders_hold_files_by_their_official_names(files):
    folder = files["gpt"].parent
    assert presets.find("llamagen-c2i-b-256", folder) == files["gpt"]
    assert presets.find("llamagen-vq-16-c2i", folder) == files["vq"]
    with pytest.raises(ValueError, match=r"no weights file .*c2i_L_256\.pt"):
        presets.find("llamagen-c2i-l-256", folder)


@pytest.mark.parametrize("name", presets.FILES)
def test_downloads_ask_for_the_pinned_file(name, monkeypatch):
    asked = []

    def download(repository, file, *, revision):
        asked.append((repository, file, revision))
        return "/there"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert presets.find(name, None) == Path("/there")
    text = "t2i" in name
    repository = "peizesun/llamagen_t2i" if text else "FoundationVision/LlamaGen"
    assert asked == [(repository, presets.FILES[name], presets.HUB["t2i" if text else "c2i"][1])]
    assert len(asked[0][2]) == 40


def test_a_size_that_was_never_published():
    with pytest.raises(ValueError, match="no weights of llamagen-c2i-7b-512 were ever published"):
        vargen.load("llamagen-c2i-7b-512")


def test_full_size_b_cached_equals_uncached(files):
    pipe = vargen.load("llamagen-c2i-b-256", checkpoint=files["gpt"], tokenizer_checkpoint=files["vq"], device="cpu")
    model, labels = pipe.transformer, torch.tensor([207])
    assert torch.equal(model.tok_embeddings.weight, official.tensor("tok_embeddings.weight", (16384, 768)))
    ids = torch.randint(16384, (1, 256), generator=torch.Generator().manual_seed(0))
    condition = model.class_condition(labels, guided=False)
    with torch.inference_mode():
        full, cache = model(condition, ids), model.make_cache(1)
        out = [model.prefill(condition, cache)]
        for start, stop in ((0, 1), (1, 2), (2, 66), (66, 255)):
            out.append(model.decode(Block(ids[:, start:stop], torch.arange(start, stop)[None], start, stop), cache))
    error = (torch.cat(out, 1) - full).norm() / full.norm()
    assert error < 1e-4
    decoded = pipe.decode(ids, "pt")
    assert decoded.shape == (1, 3, 256, 256)
    assert torch.isfinite(decoded).all()


def test_the_command_of_the_manual(tmp_path, capsys, monkeypatch):
    """On files of two layers and few channels: those of the published size are loaded, run and decoded above."""
    monkeypatch.setitem(official.GPT, "b", (2, 2, 64, 256, 0, 0))
    monkeypatch.setitem(presets.SHAPES, "llamagen-c2i-b-256", LlamaGenConfig(2, 2, 64, 16))
    monkeypatch.setitem(presets.TOKENIZERS, "llamagen-vq-16-c2i", VQConfig(channels=(32,) * 5))
    gpt = official.write(tmp_path / "c2i_B_256.pt", official.gpt("b"))
    images = official.write(tmp_path / "vq_ds16_c2i.pt", official.vq(32, (1,) * 5, 256, 16384, 8))
    out = tmp_path / "dog.png"
    argv = ["--model", "llamagen-c2i-b-256", "--checkpoint", gpt, "--tokenizer-checkpoint", images]
    argv += ["--method", "sjd-coupled", "--window", 32, "--class", "golden retriever", "--num-images", 1]
    main.guarded(sample.command, [str(word) for word in [*argv, "--out", out, "--device", "cpu"]])
    image = Image.open(out)
    assert image.size == (256, 256)
    assert "sjd-coupled" in capsys.readouterr().out


def test_files_come_from_the_hub_s_cache_at_the_pinned_revision(files, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, revision = presets.HUB["c2i"]
    snapshot = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "vq_ds16_c2i.pt").symlink_to(files["vq"])
    model: Any = vargen.load_tokenizer("llamagen-vq-16-c2i", device="cpu")
    assert model.decode(torch.zeros(1, 2, 3, dtype=torch.int64)).shape == (1, 3, 32, 48)
    problem = "cannot download vq_ds8_c2i.pt of FoundationVision/LlamaGen (the hub is out"
    with pytest.raises(ValueError, match=re.escape(problem)):
        vargen.load_tokenizer("llamagen-vq-8-c2i", device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_host_memory_while_loading(files, dtype):
    """At most 1.2 times the file beyond what an idle interpreter holds, cast or not."""
    code = f"""
        import torch
        from pathlib import Path
        from vargen.core import checkpoints
        from vargen.core.machine import peak_memory
        from vargen.models.llamagen import LAYOUT, LlamaGen
        from vargen.presets import llamagen
        with torch.device("meta"):
            model = LlamaGen(llamagen.config("b", 256))
        before = peak_memory(torch.device("cpu"))
        checkpoints.load_into(model, Path({str(files["gpt"])!r}), LAYOUT, dtype=torch.{dtype})
        print(peak_memory(torch.device("cpu")) - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    share = int(done.stdout) / Path(files["gpt"]).stat().st_size
    least, most = (0.9, 1.2) if dtype == "float32" else (0.45, 0.7)
    assert least < share <= most, f"{share:.2f} of the file"
