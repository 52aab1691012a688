"""The one reader of JSON that comes from outside: bounded in size and depth before anything believes it."""

import json
from pathlib import Path
from typing import Any

from vargen.core.messages import shown

MOST_BYTES = 32 << 20
DEEPEST = 64


def read(path: Path, most: int = MOST_BYTES) -> Any:
    """The JSON of a file. OSError where it cannot be read, ValueError where it is none or out of bounds."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no plain file")
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"got {size} bytes of JSON, expected at most {most}")
    return parse(path.read_text(encoding="utf-8"))


def member(path: Path, key: str) -> Any:
    """What the JSON object in a file has under `key`; None where it has nothing, or cannot be read."""
    try:
        found = read(path)
    except (OSError, ValueError):
        return None
    return found.get(key) if isinstance(found, dict) else None


def parse(text: str) -> Any:
    """The JSON of a text. ValueError where it is none, or where values stand in each other more than `DEEPEST` deep."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"got JSON that nests more than {DEEPEST} deep") from None
    level, depth = [found], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        if (depth := depth + 1) > DEEPEST:
            raise ValueError(f"got JSON that nests more than {DEEPEST} deep")
        level = [one for each in level for one in (each.values() if isinstance(each, dict) else each)]
    return found


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object for `json.loads(object_pairs_hook=...)`. ValueError names a key that stands twice in it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys, seen = [key for key, _ in pairs], set()
        twice = next(key for key in keys if key in seen or seen.add(key))
        raise ValueError(f"it has the key {shown(twice)} twice")
    return found
