"""Key-value caches that stay where they are, for graphs that read and write them (`graphs.py`).

One that nobody holds any more is handed out again, and its graphs with it.
"""

import copy
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from vargen.core.types import KVCache
from vargen.engine.graphs import Capture, Capturing, Recorder

Spec = TypeVar("Spec")  # the layout of the images that a model draws
KEPT = 2  # caches that are kept for the next call, with their graphs: the last one, and
SPARE_BYTES = 2 << 30  # others that take no more than this together


@dataclass(eq=False)
class Held:
    """A cache that stays, and the graphs that read and write it."""

    key: Any  # what the cache was asked for with
    cache: KVCache
    graphs: Recorder
    handed: Callable[[], KVCache | None] = lambda: None
    condition: dict[Hashable, Tensor] = field(default_factory=dict)  # what the cache knows of conditions, for graphs


class Caches:
    """Caches that stay where they are: one that nobody holds any more is handed out again, and its graphs with it."""

    def __init__(self, device: torch.device, capture: Capture | None = None) -> None:
        self._device, self._capture = device, capture or Capturing()  # one for all, which share their memory
        self._held: list[Held] = []
        self._of: weakref.WeakKeyDictionary[KVCache, Held] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def captures(self) -> int:
        """Graphs that are kept."""
        return sum(len(held.graphs) for held in self._held)

    def hand(self, key: Hashable, make: Callable[[], KVCache]) -> KVCache:
        """A cache that was used before, if nobody holds it, with what stands in it; or a new one."""
        held = next((held for held in self._free() if held.key == key), None)
        if held is None:
            self.release(last=False)
            held = Held(key, make(), Recorder(self._device, self._capture))
        else:
            self._held = [other for other in self._held if other is not held]
        self._held = [*self._held, held]
        handed = copy.copy(held.cache)  # the same memory, and another object, so that it shows when it is given up
        held.handed = weakref.ref(handed, partial(_given_up, weakref.ref(self)))
        self._of[handed] = held
        return handed

    def of(self, cache: KVCache) -> Held:
        """What a cache that was handed out is of."""
        return self._of[cache]

    def release(self, *, last: bool = True) -> None:
        """Give up caches that nobody holds, but for the last one, if `last`, and those before it that are small."""
        kept, left = (0, SPARE_BYTES) if last else (1, SPARE_BYTES)
        for held in reversed(self._free()):
            small = held.cache.bytes <= left
            if kept == 0 or (kept < KEPT and small):
                left -= held.cache.bytes if kept else 0
                kept += 1
            else:
                self._held.remove(held)

    def forget(self) -> None:
        """Give up every cache that nobody holds."""
        self._held = [held for held in self._held if held.handed() is not None]

    def _free(self) -> list[Held]:
        return [held for held in self._held if held.handed() is None]


def _given_up(owner: Callable[[], Caches | None], _: Any) -> None:
    caches = owner()
    if caches is not None:
        caches.release()


class Replaying(Generic[Spec]):
    """What stands for a model whose forwards are replayed over caches that stay where they are."""

    def __init__(self, model: Any, capture: Capture | None = None) -> None:
        self.model = model
        self.caches = Caches(model.device, capture)

    @property
    def spec(self) -> Spec:
        return self.model.spec

    @property
    def device(self) -> torch.device:
        return self.model.device

    def release(self) -> None:
        """Give up caches that nobody uses."""
        self.caches.forget()
