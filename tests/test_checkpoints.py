"""Weights files: strict about their content, safe, and never half-written."""

import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict

import pytest
import torch
from small import CONFIG, llamagen, vq

from vargen.core import atomic, checkpoints, weight_files
from vargen.models.llamagen import LAYOUT, LlamaGen


def refused(state, tmp_path, why="does not fit LlamaGen"):
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, state)
    with pytest.raises(ValueError, match=why) as error:
        checkpoints.load_into(llamagen(), path)
    assert str(path) in str(error.value)
    return str(error.value)


def same(model, other):
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_round_trip_in_half_precision(tmp_path):
    model, other, path = llamagen(), llamagen(scale=0.1), tmp_path / "model.safetensors"
    checkpoints.save(path, {k: v.half() for k, v in model.state_dict().items()}, {"nats": "1.5"})
    checkpoints.load_into(other, path)
    assert weight_files.metadata(path) == {"nats": "1.5"}
    for key, value in other.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[key].half().float())


def test_every_problem_is_named(tmp_path):
    state = llamagen().state_dict()
    state["surplus"] = state.pop("norm.weight")
    state["output.weight"] = state["output.weight"][:5]
    message = refused(state, tmp_path)
    assert "missing norm.weight" in message
    assert "unexpected surplus" in message
    assert "output.weight is (5, 32), expected (48, 32)" in message


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_truncated_files_are_named(tmp_path, cut):
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, llamagen().state_dict())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="is damaged") as error:
        weight_files.read(path)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ValueError, match="no weights file"):
            weight_files.read(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nest", ["", *weight_files.NESTING])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])  # torch itself goes by the name
def test_nested_and_flat_files(tmp_path, nest, zipped, name):
    model, other, path = llamagen(), llamagen(scale=0.1), tmp_path / name
    saved = model.state_dict()
    for part in reversed(nest.split(".") if nest else []):
        saved = {part: saved, "epoch": 3}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    checkpoints.load_into(other, path)
    same(model, other)


def test_the_first_nesting_wins(tmp_path):
    model, other, path = llamagen(), llamagen(scale=0.1), tmp_path / "model.pt"
    torch.save({"ema": llamagen(scale=3.0).state_dict(), "model": model.state_dict()}, path)
    checkpoints.load_into(other, path)
    same(model, other)


def test_a_sharded_training_run_s_file(tmp_path):
    """FSDP writes tensors that carry attributes, so that the pickle names torch's rebuild helper."""
    model, other, path = llamagen(), llamagen(scale=0.1), tmp_path / "model.pt"
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for value in state.values():
        value.tag = "shard"
    torch.save(state, path)
    assert b"_rebuild_from_type_v2" in path.read_bytes()
    checkpoints.load_into(other, path)
    same(model, other)
    assert not hasattr(other.output.weight, "tag")


def test_what_the_official_code_leaves_in_files_is_ignored(tmp_path):
    model, other, path = llamagen(), llamagen(scale=0.1), tmp_path / "model.pt"
    extra = {"freqs_cis": torch.zeros(3), "layers.1.attention.kv_cache.k_cache": torch.zeros(2)}
    torch.save({"model": model.state_dict() | extra}, path)
    checkpoints.load_into(other, path, LAYOUT)
    same(model, other)
    with pytest.raises(ValueError, match="unexpected freqs_cis"):
        checkpoints.load_into(other, path)


def test_wrong_families_are_told_in_one_sentence(tmp_path):
    message = refused(vq().state_dict(), tmp_path, "none of LlamaGen's")
    assert "it begins with" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(3)], "a list"),
        ({}, "a table of nothing"),
        ({"model": {}}, "a table of nothing"),
        ({"optimizer": {"step": 3}, "epoch": 4}, "a table of 'optimizer', 'epoch'"),
        ({"a": torch.zeros(1), "b": None}, "a table of 'a', 'b'"),
        ({3: torch.zeros(1)}, "a table of 3"),
    ],
)
def test_files_without_weights(tmp_path, content, words):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=words):
        weight_files.read(path)


def test_values_that_are_no_weights(tmp_path):
    state = llamagen().state_dict()
    state["norm.weight"] = torch.zeros(32, dtype=torch.int64)
    state["output.weight"] = state["output.weight"].to_sparse()
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with pytest.raises(ValueError, match="does not fit") as error:
        checkpoints.load_into(llamagen(), path)
    assert "norm.weight is torch.int64, expected floating-point" in str(error.value)
    assert "output.weight is no plain dense tensor" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cast_while_loading(tmp_path, dtype):
    model, path = llamagen(), tmp_path / "model.pt"
    torch.save({"model": model.state_dict()}, path)
    with torch.device("meta"):
        other = LlamaGen(CONFIG)
    checkpoints.load_into(other, path, dtype=dtype)
    path.unlink()  # nothing of the file is needed any more
    for key, value in other.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, model.state_dict()[key].to(dtype))
    other.prefill(other.class_condition(torch.tensor([1]), guided=True), other.make_cache(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pytorch_files_are_named(tmp_path, zipped):
    path = tmp_path / "model.pt"
    torch.save({"model": llamagen().state_dict()}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for cut in [*range(0, 200, 7), *range(200, len(whole), len(whole) // 100)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"{path}"):
            weight_files.read(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_changed_byte_is_no_traceback(tmp_path, zipped):
    """It is seen where it breaks the structure; a changed weight is not, as files carry no checksum of it."""
    path, noticed = tmp_path / "model.pt", []
    torch.save({"model": llamagen().state_dict()}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for place in range(0, 6000, 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            checkpoints.load_into(llamagen(), path)
        except ValueError as error:
            noticed.append(str(error))
    assert len(noticed) > 50
    assert all(str(path) in message for message in noticed)


def rewritten(path, change):
    """The same zip file with other members: `change` gives the content and the compression."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            content, compression = change(name, data)
            archive.writestr(name, content, compression)


def test_a_compressed_file_loads_right(tmp_path):
    model, other, path = llamagen(), llamagen(scale=0.1), tmp_path / "model.pt"
    torch.save({"model": model.state_dict()}, path)
    rewritten(path, lambda name, data: (data, zipfile.ZIP_DEFLATED))
    checkpoints.load_into(other, path)
    same(model, other)


def test_a_record_that_is_too_short_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": llamagen().state_dict()}, path)
    rewritten(path, lambda name, data: (data[:16] if name.endswith("data/3") else data, zipfile.ZIP_STORED))
    with pytest.raises(ValueError, match="is damaged: it has no whole record"):
        checkpoints.load_into(llamagen(), path)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "only a git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"nothing that anybody knows", "is no PyTorch or safetensors file"),
    ],
)
def test_what_downloads_leave_behind(tmp_path, start, words):
    path = tmp_path / "model.pt"
    path.write_bytes(start * 20)
    with pytest.raises(ValueError, match=words) as error:
        weight_files.read(path)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("state", [{"detach": OrderedDict()}, {"is_floating_point": OrderedDict()}])
def test_attributes_that_a_file_sets_on_its_tensors(tmp_path, state):
    model, other, path = llamagen(), llamagen(scale=0.1), tmp_path / "model.pt"
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    for value in tensors.values():
        value.__dict__.update(state)
    torch.save(tensors, path)
    checkpoints.load_into(other, path)
    same(model, other)


def test_long_complaints_begin_with_the_shapes_and_are_kept_whole(tmp_path):
    state = {f"x.{i}": torch.zeros(1) for i in range(50)} | llamagen().state_dict()
    state["output.weight"] = state["output.weight"][:5]
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, state)
    with pytest.raises(checkpoints.Misfit, match=r"LlamaGen: output.weight is \(5, 32\).*and 39 more") as error:
        checkpoints.load_into(llamagen(), path)
    assert len(error.value.problems) == 51


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(tmp_path, monkeypatch, folder):
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, llamagen().state_dict())

    def replaced(*_):
        checkpoints.save(path, llamagen(scale=0.1).state_dict())

    monkeypatch.setattr(checkpoints, "_make_room", replaced)  # it is looked at before, and read behind that
    with pytest.raises(ValueError, match="was changed while it was read"):
        checkpoints.load_into(llamagen(), tmp_path if folder else path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = f"""
        import os, pathlib, signal
        from vargen.core.atomic import write_atomically
        def write(temporary):
            temporary.write_text("ha")
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(pathlib.Path({str(path)!r}), write)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -9
    assert path.read_text() == "old"
