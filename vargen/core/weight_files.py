"""What a file of weights has: looked at first, then mapped. None of it is run, and nothing that it says is believed."""

import pickle
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vargen.core import headers, opcodes, pickles, safe_json
from vargen.core.messages import first_line, quoted, shown

# Where training scripts put the weights, in order of precedence; the last two are of VAR's trainer.
NESTING = ("model", "module", "state_dict", "ema", "trainer.var_wo_ddp", "trainer.vae_local")
PREFIXES = ("module.", "_orig_mod.", "model.", "transformer.")  # what wrappers of modules put before every key


def metadata(path: Path) -> dict[str, str]:
    """The text that a safetensors file carries beside its tensors; none where it is of another format."""
    if not headers.fits(path):
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


@dataclass(frozen=True)
class Place:
    """Where the weights are: in a file or folder, in tables within each other, behind what begins all their keys."""

    path: Path
    tables: tuple[str, ...]
    prefix: str
    shapes: Mapping[str, tuple[int, ...]]  # of what is there that is a tensor, by key


def find(path: Path, under: str | None = None, wanted: Collection[str] = ()) -> Place:
    """Look for weights in a safetensors file or a PyTorch file, bare or nested as training scripts do it.

    With `under`, those that the file has under that name. A folder has the files that its index names (`shards`). Of
    several tables, and behind a prefix that wrappers of modules leave, those with one of the `wanted` keys are taken.
    ValueError, naming the file, where it is missing, damaged, holds no weights, or asks for code to be run (which never
    happens).
    """
    if path.is_dir():
        return _together(path, [find(shard) for shard in shards(path)], wanted)
    if not path.is_file():
        raise ValueError(f"no weights file {path}")
    with _complaints(path):
        if headers.fits(path):
            found: Any = {key: opcodes.Shape(shape) for key, shape in headers.read(path).items()}
        else:
            _refuse_lookalikes(path)
            found = pickles.scan(path)
    if under and not (isinstance(found, Mapping) and isinstance(found.get(under), Mapping)):
        raise ValueError(f"the weights file {path} has no {under}: ema=False (--no-ema) takes plain weights")
    named = [tuple(name.split(".")) for name in NESTING]
    nested = [names for names in ([(under,)] if under else named) if isinstance(_in(found, names), Mapping)] or [()]
    fitting = ((names, prefix_of(_in(found, names), wanted)) for names in nested)
    names, prefix = next((each for each in fitting if each[1] is not None), (nested[0], ""))
    return Place(path, names, prefix or "", _shapes(_in(found, names), path, prefix or ""))


def _in(found: Any, names: Sequence[str]) -> Any:
    """What stands under `names`, one in the other; None where nothing does."""
    for name in names:
        found = dict.get(found, name) if isinstance(found, dict) else None  # a file may set `get`
    return found


def prefix_of(keys: Any, wanted: Collection[str]) -> str | None:
    """What begins all `keys` and hides them from `wanted`: "" where one is found as it is, None where none is."""
    found, names = "", list(keys) if isinstance(keys, Mapping) else []
    for _ in range(3):
        if any(isinstance(name, str) and name[len(found) :] in wanted for name in names):
            return found
        begun = [found + prefix for prefix in PREFIXES]
        more = [each for each in begun if all(isinstance(name, str) and name.startswith(each) for name in names)]
        if not more:
            return None
        found = more[0]
    return None


def _shapes(table: Any, path: Path, prefix: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a table of tensors. ValueError says what it is where it is none."""
    if isinstance(table, Mapping):
        tensors = [isinstance(key, str) and isinstance(value, opcodes.Shape) for key, value in table.items()]
        if tensors and all(tensors):
            return {key[len(prefix) :]: value.shape for key, value in table.items()}
        inside = f"a table of {', '.join(map(quoted, list(table)[:5])) or 'nothing'}"
    else:
        inside = f"a {'list' if isinstance(table, list) else type(table).__name__.lower()}"
    raise ValueError(
        f"the weights file {path} holds {inside}, expected tensors by name, bare or under {', '.join(NESTING)}"
    )


def _together(folder: Path, parts: list[Place], wanted: Collection[str]) -> Place:
    """The weights of all files of a folder. ValueError names a key that two of them have."""
    found: dict[str, tuple[int, ...]] = {}
    for part in parts:
        if twice := found.keys() & part.shapes.keys():
            raise ValueError(f"the folder {folder} has the key {shown(min(twice))} in two files")
        found |= part.shapes
    prefix = prefix_of(found, wanted) or ""
    return Place(folder, (), prefix, {key[len(prefix) :]: shape for key, shape in found.items()})


def tensors(place: Place) -> dict[str, Tensor]:
    """The weights, mapped and not read: bytes come from the disk when they are used."""
    if place.path.is_dir():
        parts = (tensors(Place(shard, (), "", {})) for shard in shards(place.path))
        return {key[len(place.prefix) :]: value for part in parts for key, value in part.items()}
    with _complaints(place.path):
        if headers.fits(place.path):
            table: Any = load_file(place.path)
        else:
            table = _in(_unpickled(place.path), place.tables)
    return {key[len(place.prefix) :]: _plain(value) for key, value in dict.items(table)}  # a file may set `items`


def _unpickled(path: Path) -> Any:
    """What torch makes of its own file; by a name it would take any file that is called so for safetensors."""
    with torch.serialization.safe_globals(pickles.DATA):
        if is_mapped(path):
            return torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def stamp(path: Path) -> list[tuple[int, ...]]:
    """What tells a file, or those of a folder (`shards`), from others put in their place; nothing where one lacks."""
    try:
        found = [each.stat() for each in (shards(path) if path.is_dir() else [path])]
    except OSError:
        return []
    return [(each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file or folder (`find`), as they are."""
    return tensors(find(path))


@contextmanager
def _complaints(path: Path) -> Iterator[None]:
    """What reading a file may end in, as one sentence that names it."""
    try:
        yield
    except opcodes.Refused as error:
        raise ValueError(f"the weights file {path} {error}") from None
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|global) ([\w.]{1,80})", str(error))
        what = f"asks for {wanted[1]}" if wanted else "is no PyTorch or safetensors file"
        raise ValueError(f"the weights file {path} {what}: it was refused and nothing in it was run") from None
    except Lookalike as error:
        raise ValueError(f"the weights file {path} is {error}") from None
    except Exception as error:  # a damaged file can end in any of them
        raise ValueError(f"the weights file {path} is damaged: {first_line(error)}") from None


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder as the hub has them: one, or those of an index. ValueError where one lacks."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if pickled := sorted(folder.glob("pytorch_model*.bin*")):
            raise ValueError(
                f"the folder {folder} has its weights in {shown(pickled[0].name)}, expected safetensors: transformers "
                "writes them by from_pretrained and save_pretrained"
            )
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"no weights file in {folder}: expected model.safetensors, or shards and {index.name}")
        return [folder / "model.safetensors"]
    try:
        names = sorted(set(safe_json.read(index)["weight_map"].values()))
        paths = [folder / Path(name).name for name in names]
        missing = [shown(path.name) for path in paths if not path.is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"the index {index} is damaged: expected JSON with a weight_map") from None
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"the folder {folder} lacks {', '.join(missing[:5])}{more} of {len(paths)} files")
    return paths


class Lookalike(Exception):
    """A file that is something else; the message says what."""


def _refuse_lookalikes(path: Path) -> None:
    """What downloads leave in place of a file; a file that was cut off is no other kind of file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise Lookalike("only a git-lfs pointer to the real one: fetch that")
    if start.startswith(b"<"):
        raise Lookalike("a web page: the download went wrong")
    if headers.begins(path):
        raise EOFError("it ends before its header")


def is_mapped(path: Path) -> bool:
    """Whether a file need not be read whole: PyTorch files must be that are old, compressed or misnamed."""
    if path.is_dir() or not pickles.is_zip(path):
        return path.is_dir() or headers.fits(path)
    return path.suffix != ".safetensors" and pickles.is_stored(path)


def _plain(value: Tensor) -> Tensor:
    """Neither a Parameter nor what FSDP made of it; by the class's own methods, since a file may set attributes."""
    return Tensor.as_subclass(Tensor.detach(value), Tensor) if is_dense(value) else value


def is_dense(value: Tensor) -> bool:
    return value.layout is torch.strided and not value.is_meta and not value.is_quantized
