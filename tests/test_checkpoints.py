"""Weights files: strict about their content, safe, and never half-written."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from small import llamagen

from vargen import checkpoints, files


def refused(state, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, state)
    with pytest.raises(ValueError, match="does not fit LlamaGen") as error:
        checkpoints.load_into(llamagen(), checkpoints.read(path), source=path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_round_trip_in_half_precision(tmp_path):
    model, other, path = llamagen(), llamagen(scale=0.1), tmp_path / "model.safetensors"
    checkpoints.save(path, {k: v.half() for k, v in model.state_dict().items()}, {"nats": "1.5"})
    checkpoints.load_into(other, checkpoints.read(path), source=path)
    assert checkpoints.metadata(path) == {"nats": "1.5"}
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
        checkpoints.read(path)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ValueError, match="no weights file"):
            checkpoints.read(path)


def test_a_pickle_is_not_executed(tmp_path):
    path, proof = tmp_path / "evil.safetensors", tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    torch.save(Evil(), path)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.read(path)
    assert not proof.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = f"""
        import os, pathlib, signal
        from vargen.files import write_atomically
        def write(temporary):
            temporary.write_text("ha")
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(pathlib.Path({str(path)!r}), write)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -9
    assert path.read_text() == "old"
