"""Files that lie or mean harm: refused in one sentence, at once, with nothing run and nothing shown as it stands."""

import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from small import llamagen

from vargen.core import archives, checkpoints, headers, pickles, weight_files
from vargen.core.layout import Layout
from vargen.eval import images

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
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(" + CALL + b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85}tR.",
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


def test_what_training_scripts_keep_beside_their_weights_is_still_read(tmp_path):
    """None of it is a bomb: counters of milestones, sets of names, sizes, devices, numbers of every kind."""
    model, path = llamagen(), tmp_path / "model.pt"
    beside = {
        "milestones": Counter({30: 1}),
        "names": {"a", "b"},
        "size": torch.Size([3]),
        "device": torch.device("cpu"),
    }
    beside |= {"z": 1j, "large": 2**80, "none": None, "deep": [[[(1, (2, (3,)))]]], 7: True, "at": torch.float16}
    torch.save({"model": model.state_dict(), **beside}, path)
    found = weight_files.read(path)
    assert all(torch.equal(value, found[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "zipped"),
    [(torch.uint16, True), *((k, z) for k in (torch.float64, torch.bfloat16, torch.bool) for z in (True, False))],
)
def test_numbers_of_other_types_are_read_as_they_are(tmp_path, kind, zipped):
    path, value = tmp_path / "model.pt", torch.arange(12).reshape(3, 4).to(kind)
    torch.save({"a": value, "b": value[1:, ::2], "c": value[:0]}, path, _use_new_zipfile_serialization=zipped)
    found = weight_files.read(path)
    assert torch.equal(found["a"], value)
    assert torch.equal(found["b"], value[1:, ::2])
    assert {key: value.shape for key, value in found.items()} == weight_files.find(path).shapes


@pytest.mark.parametrize("compressed", [False, True])
def test_a_tensor_larger_than_what_is_stored_of_it(tmp_path, compressed):
    """torch would make room for it: here for 8 GB."""
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(7)}, path)
    size, more = b"K\x07\x85q\x08K", b"J\xff\xff\xff\x7f\x85q\x08K"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            assert not name.endswith("data.pkl") or size in data
            archive.writestr(name, data.replace(size, more))
    with pytest.raises(ValueError, match=r"a tensor \(2147483647,\), of which only 28 bytes are there"):
        weight_files.read(path)


def test_members_that_inflate(tmp_path):
    path = zipped(tmp_path / "model.pt", pickle.dumps({}, 2), **{"0": bytes(archives.FREE + 1)})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"is damaged: its members would be \d+ bytes, and the file has"):
        weight_files.read(path)
    npz = tmp_path / "images.npz"
    np.savez_compressed(npz, arr_0=np.zeros((90, 1024, 1024, 3), np.uint8))
    with pytest.raises(ValueError, match=r"images.npz is damaged: its members would be"):
        images.open_images(npz)


def test_zip_files_whose_members_are_there_twice_or_elsewhere(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(7)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/DATA.pkl", b"")
    with pytest.raises(ValueError, match=r"it has the member model/data\.pkl twice"):
        weight_files.read(path)
    path.write_bytes(b"PK\x03\x04" + bytes(60) + whole)
    with pytest.raises(ValueError, match="something stands before its first member"):
        weight_files.read(path)


def test_a_long_list_of_members_is_not_read(tmp_path, monkeypatch):
    path = zipped(tmp_path / "model.pt", pickle.dumps({}, 2), **{str(n): b"" for n in range(50)})
    monkeypatch.setattr(archives, "MOST_DIRECTORY", 1000)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ValueError, match=r"it has \d{4} bytes of names, expected at most 1000"):
        weight_files.read(path)


def safetensors(path, header, data=b"", length=None):
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def test_safetensors_are_known_by_their_structure(tmp_path):
    """The length of a header may begin with any byte, that of a web page or of a pickle too."""
    model, path = llamagen(), tmp_path / "model.safetensors"
    checkpoints.save(path, model.state_dict())
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    for first in (0x3C, 0x80, 0x50, 0x0A, 0x76):
        length = (size // 256 + 1) * 256 + first
        safetensors(path, raw[8 : 8 + size] + b" " * (length - size), raw[8 + size :])
        assert path.read_bytes()[0] == first
        checkpoints.load_into(llamagen(scale=0.1), path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a":' + ENTRY + b',"b":' + ENTRY + b',"a":' + ENTRY + b"}", "it has the key a twice"),
        (b'{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', "it has the key dtype twice"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nests too deep"),
        (b'{"a":3}', "names something that is no tensor"),
        (b'{"a":' + ENTRY, "is damaged"),
    ],
)
def test_headers_that_are_wrong(tmp_path, header, words):
    path = safetensors(tmp_path / "model.safetensors", header, bytes(4))
    with pytest.raises(ValueError, match=words) as error:
        weight_files.read(path)
    assert str(path) in str(error.value)


def test_headers_with_too_many_keys(tmp_path, monkeypatch):
    entries = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(30))
    path = safetensors(tmp_path / "model.safetensors", b"{" + entries + b"}")
    monkeypatch.setattr(headers, "MOST_KEYS", 29)
    with pytest.raises(ValueError, match="its header has 30 keys, expected at most 29"):
        weight_files.read(path)
    monkeypatch.setattr(headers, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"its header has \d+ bytes, expected at most 100"):
        weight_files.read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers(tmp_path, value, dtype):
    state, path = llamagen().state_dict(), tmp_path / "model.safetensors"
    state["norm.weight"] = state["norm.weight"].clone()
    state["norm.weight"][3] = value
    checkpoints.save(path, state)
    with pytest.raises(ValueError, match=r"has NaN or infinity in norm.weight, read as torch\.") as error:
        checkpoints.load_into(llamagen(), path, dtype=dtype)
    assert str(path) in str(error.value)


def test_large_weights_are_numbers():
    """Their sum is none in float16."""
    assert checkpoints.is_finite(torch.full((9,), 6e4, dtype=torch.float16))
    assert checkpoints.is_finite(torch.full((9,), 3e38))
    assert not checkpoints.is_finite(torch.tensor([float("inf"), float("-inf")]))
    assert checkpoints.is_finite(torch.zeros(0))


def test_zeros_that_are_larger_than_what_is_stored(tmp_path):
    """A stride of 0 makes any size of four bytes, and each would be looked at."""
    path = tmp_path / "model.pt"
    torch.save({**llamagen().state_dict(), "zero": torch.zeros(1).expand(1 << 13, 1 << 13)}, path)
    with pytest.raises(ValueError, match="zero is not all zeros"):
        checkpoints.load_into(llamagen(), path, Layout(ignored="zero", zeros="zero"))


@pytest.mark.parametrize("method", [b"items", b"get"])
def test_methods_that_a_file_sets_on_its_tables(tmp_path, method):
    path, table = tmp_path / "model.pt", OrderedDict(model=OrderedDict(a=torch.ones(3)))
    for each in (table, table["model"]):
        each.__dict__["zz" + method[2:].decode()] = 5
    torch.save(table, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"zz" + method[2:], method))
    assert torch.equal(weight_files.read(path)["a"], torch.ones(3))


@pytest.mark.parametrize("new", [True, False])
def test_tensors_of_more_numbers_than_are_stored(tmp_path, new):
    """A kilobyte that said 1.5 TB: a table of classes, or a rank, that is one number again and again."""
    one, path = torch.zeros(1), tmp_path / "wide.pt"
    lies = {"lora_A.weight": one.expand(10**9, 32)}, {str(i): one.expand(1000, 1000) for i in range(300)}
    for state in lies:
        torch.save(state, path, _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match=r"has tensors of \d+ bytes in all, of far fewer that are stored"):
            weight_files.read(path)
    tied = {name: one.expand(100, 100) for name in "abcd"}  # a mask that is the same for all layers, say
    torch.save(tied, path, _use_new_zipfile_serialization=new)
    assert weight_files.read(path).keys() == tied.keys()
