"""Seconds per step by width of block, which `window=auto` weighs: measured once, and kept for other processes.

They are kept under all that they depend on, in the user's cache folder, and measured anew after a month.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from vargen.core import safe_json
from vargen.core.atomic import dumps, write_json
from vargen.core.machine import cache_folder

LASTS = 30 * 24 * 3600  # seconds
Costs = dict[int, float]


def costs(about: Mapping[str, Any], measure: Callable[[], Costs]) -> Costs:
    """Those that were kept of what `about` says, else what `measure` gives, which is kept if that can be."""
    told = dumps(dict(about), sort_keys=True, default=str)
    path = cache_folder() / f"steps-{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
    try:
        fresh = 0 <= time.time() - path.stat().st_mtime < LASTS
        found = _read(safe_json.read(path)) if fresh else None
    except (OSError, ValueError):
        found = None
    if found is not None:
        return found
    made = measure()
    with contextlib.suppress(OSError):  # where there is nowhere to keep them, they are measured again
        write_json(path, {"about": told, "seconds": {str(width): seconds for width, seconds in made.items()}})
    return made


def _read(found: Any) -> Costs | None:
    """Seconds by width; None where it is no such thing."""
    kept = found.get("seconds") if isinstance(found, dict) else None
    if not isinstance(kept, dict) or "1" not in kept:
        return None
    if not all(width.isdecimal() and type(each) is float and 0 < each < math.inf for width, each in kept.items()):
        return None
    return {int(width): each for width, each in sorted(kept.items(), key=lambda item: int(item[0]))}
