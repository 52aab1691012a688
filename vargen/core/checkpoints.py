"""Reading and writing weights: strict about keys and shapes, never running code from a file, atomic on disk.

A published file differs from our module by a `Layout`: a table of names, kept beside the module that it describes.
Complaints name the keys as the file has them.
"""

import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._tensor import _rebuild_from_type_v2

from vargen.core.atomic import write_atomically

NESTING = ("model", "module", "state_dict", "ema")  # where training scripts put the weights, in order of precedence


@dataclass(frozen=True)
class Layout:
    """How a published file names what our module holds."""

    rename: tuple[tuple[str, str], ...] = ()  # regular expressions on our key, applied in turn, give the file's
    pointwise: str | None = None  # the file's keys that are 1x1 convolutions there and linear layers here
    stacked: str | None = None  # the file's keys that hold several of ours, one below the other
    ignored: str | None = None  # the file's keys that hold no weights
    zeros: str | None = None  # of these, those that are taken to be all zeros
    under: str | None = None  # the name under which the file must have them; None: bare, or under one of NESTING

    def published(self, key: str) -> str:
        """The file's name of our `key`."""
        for pattern, replacement in self.rename:
            key = re.sub(pattern, replacement, key)
        return key

    def expected(self, module: nn.Module) -> dict[str, tuple[list[str], tuple[int, ...]]]:
        """The keys that a file must have, each with our keys in it and the shape in the file."""
        out: dict[str, tuple[list[str], tuple[int, ...]]] = {}
        for ours, value in module.state_dict().items():
            key, shape = self.published(ours), tuple(value.shape)
            shape = (*shape, 1, 1) if self.pointwise and re.search(self.pointwise, key) else shape
            before, above = out.get(key, ([], (0,)))
            assert not before or (self.stacked and re.search(self.stacked, key)), f"two of our keys are {key}"
            out[key] = ([*before, ours], (above[0] + shape[0], *shape[1:]) if before else shape)
        return out


PLAIN = Layout()
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Misfit(ValueError):
    """Weights that are not a module's; `problems` has all of them, the message the first few."""

    def __init__(self, path: Path, name: str, problems: list[str], *, most: int = 12) -> None:
        self.problems = problems
        more = f"; and {len(problems) - most} more" if len(problems) > most else ""
        super().__init__(f"the weights file {path} does not fit {name}: {'; '.join(problems[:most])}{more}")


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors."""
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, dict(metadata or {})))


def metadata(path: Path) -> dict[str, str]:
    """The text that a safetensors file carries beside its tensors; none where it is of another format."""
    if not _is_safetensors(path):
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read(path: Path, under: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch file, bare or nested as training scripts do it.

    With `under`, those that the file has under that name. A folder has the files that its index names (`shards`). They
    are mapped, not read: bytes come from the disk when they are used. ValueError, naming the file, where it is missing,
    damaged, holds no weights, or asks for code to be run (which never happens).
    """
    if path.is_dir():
        return {key: value for shard in shards(path) for key, value in read(shard).items()}
    if not path.is_file():
        raise ValueError(f"no weights file {path}")
    _refuse_lookalikes(path)
    try:
        loaded = load_file(path) if _is_safetensors(path) else _unpickle(path, under)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f"asks for {wanted[1]}" if wanted else "is no PyTorch or safetensors file"
        raise ValueError(f"the weights file {path} {what}: it was refused and nothing in it was run") from None
    except Exception as error:  # a damaged pickle can end in any of them
        raise ValueError(f"the weights file {path} is damaged: {_first_line(error)}") from None
    if under and not (isinstance(loaded, Mapping) and isinstance(loaded.get(under), Mapping)):
        raise ValueError(f"the weights file {path} has no {under}: ema=False (--no-ema) takes plain weights")
    return _tensors(loaded, path, under)


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder as the hub has them: one, or those of an index. ValueError where one lacks."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"no weights file in {folder}: expected model.safetensors, or shards and {index.name}")
        return [folder / "model.safetensors"]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        paths = [folder / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"the index {index} is damaged: expected JSON with a weight_map") from None
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"the folder {folder} lacks {', '.join(missing)} of {len(paths)} files")
    return paths


def _refuse_lookalikes(path: Path) -> None:
    """What downloads leave in place of a file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"the weights file {path} is only a git-lfs pointer to the real one: fetch that")
    if start.startswith(b"<"):
        raise ValueError(f"the weights file {path} is a web page: the download went wrong")


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9:
        raise EOFError("it ends before its header")
    return start[8:] == b"{"


def _unpickle(path: Path, under: str | None) -> object:
    """FSDP's files rebuild their tensors through a helper that not every release of torch allows by itself."""
    mapped = _is_mapped(path)
    with torch.serialization.safe_globals([_rebuild_from_type_v2]):
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if mapped:
        _check_records(path, _weights(loaded, under))
    return loaded


def _is_mapped(path: Path) -> bool:
    """Whether a file need not be read whole: old and compressed PyTorch files must be."""
    if path.is_dir():
        return True
    if not zipfile.is_zipfile(path):
        return _is_safetensors(path)
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _check_records(path: Path, weights: Mapping[Any, Any]) -> None:
    """A mapped tensor takes bytes from its record's start on, and would read past the end of one that is too short."""
    with zipfile.ZipFile(path) as archive:
        records = Counter(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
    storages = {}
    for value in weights.values():
        if isinstance(value, Tensor) and _is_dense(value):
            storage = Tensor.untyped_storage(value)
            storages[storage.data_ptr()] = storage.nbytes()
    if missing := Counter(size for size in storages.values() if size) - records:
        raise RuntimeError(f"it has no whole record of {min(missing)} bytes")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _weights(loaded: object, under: str | None) -> Mapping[Any, Any]:
    """The table of weights in what a training script saved, or an empty one."""
    if not isinstance(loaded, Mapping):
        return {}
    nested = [loaded[name] for name in ([under] if under else NESTING) if isinstance(loaded.get(name), Mapping)]
    return nested[0] if nested else loaded


def _tensors(loaded: object, path: Path, under: str | None) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        table = _weights(loaded, under)
        if table and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in table.items()):
            return {key: _plain(value) for key, value in table.items()}
        inside = f"a table of {', '.join(map(repr, list(table)[:5])) or 'nothing'}"
    else:
        inside = f"a {type(loaded).__name__}"
    raise ValueError(
        f"the weights file {path} holds {inside}, expected tensors by name, bare or under {', '.join(NESTING)}"
    )


def _plain(value: Tensor) -> Tensor:
    """Neither a Parameter nor what FSDP made of it; by the class's own methods, since a file may set attributes."""
    return Tensor.as_subclass(Tensor.detach(value), Tensor) if _is_dense(value) else value


def _is_dense(value: Tensor) -> bool:
    return value.layout is torch.strided and not value.is_meta and not value.is_quantized


def load_into(
    module: nn.Module,
    path: Path,
    layout: Layout = PLAIN,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Give `module`, best built on the meta device, the weights of a file, in `dtype` on `device`.

    Strict: `Misfit`, a ValueError, knows every missing, unexpected or misshapen key. Beside what the weights themselves
    take on `device`, at most about a sixteenth of the file is held at a time.
    """
    mapped, state, expected = read(path, layout.under), module.state_dict(), layout.expected(module)
    _check(type(module).__name__, mapped, expected, layout, path)
    sizes = {key: mapped[key].nbytes for key in expected}
    del mapped
    loaded = {}
    for keys in _portions(sizes, sum(sizes.values()) // (16 if _is_mapped(path) else 1)):
        mapped = read(path, layout.under)  # anew for each portion, so that the pages of the last one are given back
        for key in keys:
            ours, value = expected[key][0], mapped.pop(key)
            parts = value.split([len(state[one]) for one in ours]) if len(ours) > 1 else [value]
            for one, part in zip(ours, parts, strict=True):
                loaded[one] = part.to(device, dtype, copy=True).reshape(state[one].shape)
        del mapped
    module.load_state_dict(loaded, assign=True)
    assert not any(value.is_meta for value in module.state_dict().values())


def _portions(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Keys in groups of about `limit` bytes, at least one each."""
    group, held = [], 0
    for key, size in sizes.items():
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(key)
        held += size
    if group:
        yield group


def _check(
    name: str,
    found: dict[str, Tensor],
    expected: dict[str, tuple[list[str], tuple[int, ...]]],
    layout: Layout,
    path: Path,
) -> None:
    if not found.keys() & expected.keys():
        raise ValueError(
            f"the weights file {path} is none of {name}'s: not one key fits (it begins with {next(iter(found))}, "
            f"expected keys such as {next(iter(expected))})"
        )
    problems, ignored = [], re.compile(layout.ignored or r"(?!)")
    for key, (_, shape) in expected.items():
        if key in found:
            value = found[key]
            if not _is_dense(value):
                problems.append(f"{key} is no plain dense tensor")
            elif value.shape != shape:
                problems.append(f"{key} is {tuple(value.shape)}, expected {shape}")
            elif value.dtype not in FLOATS:
                problems.append(f"{key} is {value.dtype}, expected floating-point numbers")
    problems += [f"missing {key}" for key in expected if key not in found]
    empty = re.compile(layout.zeros or r"(?!)")
    problems += [f"{key} is not all zeros" for key, value in found.items() if empty.fullmatch(key) and value.any()]
    problems += [f"unexpected {key}" for key in found if key not in expected and not ignored.fullmatch(key)]
    if problems:
        raise Misfit(path, name, problems)


def fetch(repository: str, file: str, revision: str) -> Path:
    """A published file's path on this machine, downloaded once; of `*`, a folder with all weights and their JSON.

    ValueError where it cannot be had.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        if file == "*":
            wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
            return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # the network's many complaints, all with the same remedy
        offline = isinstance(error, LocalEntryNotFoundError)
        why = "the hub is out of reach and the cache has no copy" if offline else _first_line(error)
        raise ValueError(f"cannot download {file} of {repository} ({why}): give a local copy's path instead") from None
