"""Headers of safetensors files: what is in one, before anything is read."""

import json
import struct
from pathlib import Path

from vargen.core.safe_json import unique

MOST_BYTES, MOST_KEYS = 32 << 20, 200_000


def fits(path: Path) -> bool:
    """Whether a file begins as safetensors do: with the length of a header that is in it and opens with a brace."""
    length, brace = _start(path)
    return brace and length <= path.stat().st_size - 8


def begins(path: Path) -> bool:
    """The same of a file that may have been cut off."""
    return path.stat().st_size < 9 or _start(path)[1]


def _start(path: Path) -> tuple[int, bool]:
    with path.open("rb") as file:
        start = file.read(9)
    return (struct.unpack("<Q", start[:8])[0], start[8:] == b"{") if len(start) == 9 else (0, False)


def read(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a file that `fits`, by key. ValueError says why where its header is none.

    What this leaves unchecked (types, and where tensors lie in the file) the library checks when it reads them.
    """
    length, _ = _start(path)
    if length > MOST_BYTES:
        raise ValueError(f"its header has {length} bytes, expected at most {MOST_BYTES}")
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        found = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("its header nests too deep") from None
    found.pop("__metadata__", None)
    if len(found) > MOST_KEYS:
        raise ValueError(f"its header has {len(found)} keys, expected at most {MOST_KEYS}")
    try:
        return {key: tuple(map(int, entry["shape"])) for key, entry in found.items()}
    except (TypeError, KeyError):
        raise ValueError("its header names something that is no tensor") from None
