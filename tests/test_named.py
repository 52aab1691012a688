"""What people bring to loading: diffusers' keywords, offload, hub ids and paths in the place of names."""

from pathlib import Path
from typing import Any

import official
import pytest
import torch
from small import pipeline

import vargen
from vargen.core import checkpoints, registry
from vargen.core.preset import Sources
from vargen.models import llamagen as llamagen_module
from vargen.models.llamagen import LlamaGen
from vargen.pipelines import named
from vargen.presets import llamagen, var

CPU: dict[str, Any] = {"device": "cpu"}


@pytest.mark.parametrize("name", ["enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"])
def test_offload_is_refused_and_nothing_moves(name):
    pipe = pipeline()
    offload = getattr(pipe, name)
    for options in ({}, {"gpu_id": 0}, {"device": "cuda"}):
        with pytest.raises(ValueError, match=r"is not offloaded: .* release_text_encoder\(\) gives back"):
            offload(**options)
    assert pipe.device.type == "cpu"
    assert pipe([1], seed=0, method="ar").images


def test_keywords_of_other_libraries():
    load = type(pipeline()).from_pretrained
    pipe = load(
        "pocket-llamagen-small", torch_dtype=torch.bfloat16, device_map="cpu", use_safetensors=True, variant=None
    )
    assert (pipe.dtype, pipe.device.type) == (torch.bfloat16, "cpu")
    assert vargen.load("pocket-llamagen-small", device_map={"": "cpu"}, low_cpu_mem_usage=True).device.type == "cpu"
    named = {"dtype": "float16", "torch_dtype": torch.float16}
    assert vargen.load("pocket-llamagen-small", device="cpu", **named).dtype == torch.float16  # pyright: ignore
    for brought, why in (
        ({"variant": "fp16"}, r"got variant 'fp16', which pocket-llamagen does not take: .* dtype=torch.float16 casts"),
        ({"device_map": "auto"}, "got device_map 'auto', expected one device such as cuda:0"),
        ({"device_map": "balanced"}, "a model is not spread here"),
        ({"device_map": {"a": 0, "b": "cpu"}}, "a model is not spread here"),
        ({"device_map": "cpu", "device": "cuda:7"}, "got device cuda:7 and device_map cpu"),
        ({"device_map": "nowhere"}, "unknown device 'nowhere'"),
        (
            {"torch_dtype": torch.float16, "dtype": torch.float32},
            "got dtype torch.float32 and torch_dtype",
        ),
        ({"dtype": "fp16"}, "got dtype 'fp16', expected float32, bfloat16, float16, torch's or the name"),
        ({"torch_dtype": "auto"}, "got dtype 'auto', expected"),
        ({"trust_remote_code": True}, "no code of a folder or repository is ever run"),
        ({"quantization_config": object()}, "quantize='int8' or 'int4'"),
        ({"revision": "main"}, "checkpoint names another copy"),
        ({"chekpoint": "x"}, "got 'chekpoint', which loading does not take; is it checkpoint?"),
        ({"zzz": 1}, "got 'zzz', which loading does not take; there are device, dtype, checkpoint"),
    ):
        with pytest.raises(ValueError, match=why):
            vargen.load("pocket-llamagen", **brought)  # pyright: ignore


def test_ids_of_the_hub(monkeypatch):
    for name, why in {
        "FoundationVision/LlamaGen": "has several models: name one of llamagen-c2i-b-256, llamagen-c2i-b-384",
        "foundationvision/var": "has several models: name one of var-d16, var-d20, var-d24, var-d30, var-d36",
        "deepseek-ai/Janus-Pro-7B": "original repository, .* janus-pro-7b takes the same weights from deepseek-com",
        "BAAI/Emu3-Gen": "emu3-gen takes the same weights from BAAI/Emu3-Gen-hf",
        "runwayml/stable-diffusion-v1-5": "no model here is published as runwayml/stable-diffusion-v1-5: unknown model",
    }.items():
        with pytest.raises(ValueError, match=why):
            vargen.load(name)
    asked = []

    def build(name, *_):
        asked.append(name)
        raise ValueError("not here")

    monkeypatch.setattr("vargen.core.hub.fetch", build)
    for name, repository in {"alpha-vllm/lumina-mgpt-7b-768": "Alpha-VLLM/Lumina-mGPT-7B-768"}.items():
        with pytest.raises(ValueError, match="not here"):
            vargen.load(name)
        assert asked == [repository]


def test_paths_of_published_files(tmp_path, monkeypatch):
    """By the names of files, and where these do not tell, by shapes."""
    folder, other = tmp_path / "LlamaGen", tmp_path / "mine.safetensors"
    folder.mkdir()
    for file in ("c2i_L_256.pt", "vq_ds16_c2i.pt"):
        (folder / file).write_bytes(b"")
    assert named.understood(folder, Sources()) == ("llamagen-c2i-l-256", Sources(folder))
    assert named.understood(str(folder / "c2i_L_256.pt"), Sources())[0] == "llamagen-c2i-l-256"
    (folder / "c2i_B_256.pt").write_bytes(b"")
    config = llamagen.LlamaGenConfig(1, 2, 32, 16, vocabulary=40)
    for name in ("llamagen-c2i-b-256", "llamagen-c2i-b-384"):
        preset = llamagen.PRESETS[name]
        monkeypatch.setitem(llamagen.PRESETS, name, preset.sized(config.spec, lambda: LlamaGen(config)))
    with torch.device("meta"):
        expected = llamagen_module.LAYOUT.expected(LlamaGen(config))
    checkpoints.save(other, {key: official.tensor(key, shape) for key, (_, shape) in expected.items()})
    for place, why in (
        (
            other,
            r"mine\.safetensors may be of llamagen-c2i-b-256, llamagen-c2i-b-384: name one of them",
        ),
        (folder, "LlamaGen is of no model that is known by it: give a model's name, and checkpoint"),
        (tmp_path / "none.pt", r"there is no file or folder .*none\.pt"),
        ("./none", "there is no file or folder none"),
        (tmp_path, "is of no model that is known by it"),
    ):
        with pytest.raises(ValueError, match=why):
            named.understood(place, Sources())
    with pytest.raises(ValueError, match="for a name and a checkpoint as well"):
        named.understood(folder, Sources(other))
    snapshot = tmp_path / "models--deepseek-community--Janus-Pro-1B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert named.understood(snapshot, Sources())[0] == "janus-pro-1b"


def test_a_folder_that_is_called_like_a_model_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pocket-llamagen-small").mkdir()
    Path("pocket-llamagen-small/model_index.json").write_text("{}")
    assert vargen.load("pocket-llamagen-small", **CPU).preset.classes == 10
    with pytest.raises(ValueError, match="holds a None, which is no pipeline of vargen's"):
        vargen.load("./pocket-llamagen-small", **CPU)


def test_every_repository_is_of_a_model():
    presets = [registry.preset(name) for name in registry.MODELS]
    assert {"Alpha-VLLM/Lumina-mGPT-2.0", "OliverRen/xAR", "wusize/harmon", var.REPOSITORY} <= {
        p.repository for p in presets
    }
    assert all(preset.file == "" or Path(preset.file).suffix in named.SUFFIXES for preset in presets)
    for wrong in ("", None, 3, "a\0b"):
        with pytest.raises(ValueError, match="unknown model"):
            vargen.load(wrong)  # pyright: ignore
