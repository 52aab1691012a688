"""Files that lie or mean harm: refused in one sentence, at once, with nothing run and nothing shown as it stands."""

import argparse
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import llamagen

import vargen
from vargen.commands import main
from vargen.core import archives, checkpoints, headers, messages, opcodes, pickles, safe_json, weight_files
from vargen.eval import images, prompts

OPEN = b"\x80\x02}"  # protocol 2, an empty dictionary


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_not_executed(tmp_path, suffix, zipped):
    path, proof = tmp_path / f"evil.{suffix}", tmp_path / "executed"
    state = {**llamagen().state_dict(), "norm.bias": Evil(proof)}
    torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"asks for .*mkdir.*nothing in it was run") as error:
        weight_files.read(path)
    assert str(path) in str(error.value)
    assert not proof.exists()
    if suffix != "safetensors":
        torch.load(path, weights_only=False)  # the trap does work
        assert proof.exists()


def zipped(path, data, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/version", "3\n")
        for name, content in members.items():
            archive.writestr(f"x/data/{name}", content)
    return path


def doubled(count=40):
    pair: tuple = ()
    for _ in range(count):
        pair = (pair, pair)
    return pickle.dumps(pair, 2)[2:-1]


def storage(kind="FloatStorage", key="0", count=4):
    """Opcodes of a storage, as torch writes them."""
    named = b"ctorch\n" + kind.encode() + b"\n"
    return b"(X\x07\x00\x00\x00storage" + named + pickle.dumps((key, "cpu", count), 2)[2:-1][1:-3].join([b"", b"tQ"])


CALL = b"cbuiltins\nbytearray\n"
BOMBS = {
    "a key of doubled references": (OPEN + doubled() + b"K\x01s.", "has a key that is no plain value"),
    "a set of doubled references": (b"\x80\x02cbuiltins\nset\n](" + doubled() + b"e\x85R.", "asks for builtins.set"),
    "a counter": (b"\x80\x02ccollections\nCounter\n](" + doubled() + b"e\x85R.", "asks for collections.Counter"),
    "a counter's dictionary": (
        b"\x80\x02ccollections\nCounter\n}" + doubled() + b"K\x01s\x85R.",
        "has a key that is no plain value",
    ),
    "a large bytearray": (b"\x80\x02" + CALL + b"J\xff\xff\xff\x7f\x85R.", "asks for builtins.bytearray"),
    "nested tuples": (OPEN + b"X\x01\x00\x00\x00a)" + b"\x85" * 300_000 + b"s.", "nests more than 100 deep"),
    "nested lists": (b"\x80\x02" + b"](" * 300_000 + b"e" * 300_000 + b".", "nests more than 100 deep"),
    "codecs that double": (
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        "asks for _codecs.encode",
    ),
    "a tensor class": (b"\x80\x02ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R.", "asks for torch.Tensor"),
    "a storage class": (b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.", "asks for torch.FloatStorage"),
    "a call through a rebuild": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n("
        + CALL
        + b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85}tR.",
        "asks for builtins.bytearray",
    ),
    "a long number": (OPEN + b"\x8b\x01\x00\x00\x00\x01K\x01s.", "asks for LONG4"),
    "a set opcode": (b"\x80\x04\x8f(" + doubled() + b"\x90.", "asks for EMPTY_SET"),
    "a dictionary copied often": (
        b"\x80\x02(ccollections\nCounter\nq\x00}q\x01("
        + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(60000))
        + b"u\x85q\x02"
        + b"h\x00h\x02R" * 300
        + b"t.",
        "copies more than",
    ),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_take_for_ever(tmp_path, bomb, old):
    """Each would hang, fill the memory or end the process if it were believed."""
    data, words = BOMBS[bomb]
    path = tmp_path / "model.pt"
    if old:
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (pickles.MAGIC, 1001, {})) + data)
    else:
        zipped(path, data)
    with pytest.raises(ValueError, match=words) as error:
        weight_files.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
