"""Conditions of running batches: each row is read once, in pieces between the steps of others, and kept for the next.

What a model keeps of a row of a condition (its keys and values, and the logits behind it) depends on that row alone:
whoever asks for the same prompt again, or for several images of it, takes a copy, and nothing is run.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from vargen.core.types import Condition, KVCache

PIECE = 2048  # tokens of a piece, of all its rows together
LEAST = 64  # tokens of a row in a piece


@dataclass(frozen=True)
class Prefix:
    """What was read of a row."""

    kept: Tensor  # keys and values (layers, n, 2, heads, dim)
    logits: Tensor  # (1, V), of the slot behind it

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return self.kept.nbytes + self.logits.nbytes


class Prefixes:
    """Rows that were read, those used last, in at most `most` bytes."""

    def __init__(self, most: int) -> None:
        if most < 0:
            raise ValueError(f"got {most} bytes for prefixes, expected 0 (none are kept) or more")
        self.most, self.bytes = most, 0
        self._held: OrderedDict[Hashable, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def find(self, key: Hashable) -> Prefix | None:
        """A row that was read, if it is still there."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def keep(self, key: Hashable, prefix: Prefix) -> None:
        """Keep a row; those that nobody asked for the longest make room."""
        if prefix.bytes > self.most:
            return
        old = self._held.pop(key, None)
        self._held[key], self.bytes = prefix, self.bytes + prefix.bytes - (0 if old is None else old.bytes)
        while self.bytes > self.most:
            _, gone = self._held.popitem(last=False)
            self.bytes -= gone.bytes

    def clear(self) -> None:
        """Keep none."""
        self._held.clear()
        self.bytes = 0


class Reading:
    """Rows of a condition on their way through a model."""

    def __init__(
        self, condition: Condition, pool: Prefixes, weights: Hashable, empty: Callable[[int, int], KVCache]
    ) -> None:
        """Of `pool` those that were read under the same `weights`. `empty` makes a cache for rows of so many tokens."""
        self._condition, self._pool = condition, pool
        self._keys = [(weights, digest) for digest in digests(condition)]
        self._lengths = lengths(condition)
        found = {key: pool.find(key) for key in self._keys}
        self._there: dict[Hashable, Prefix] = {key: prefix for key, prefix in found.items() if prefix is not None}
        missing = {key: row for row, key in reversed(list(enumerate(self._keys))) if key not in self._there}
        self._rows = sorted(missing.values())
        self.cached = [0 if row in self._rows else n for row, n in enumerate(self._lengths)]  # tokens that are not run
        self._done = 0 if self._rows else condition.embedding.shape[1]  # tokens that were run of each row
        self._cache = empty(len(self._rows), condition.embedding.shape[1]) if self._rows else None

    @property
    def left(self) -> bool:
        """Whether there is a piece to be run."""
        return self._done < self._condition.embedding.shape[1]

    @property
    def next(self) -> tuple[int, int]:
        """Rows and tokens of the next piece."""
        whole, rows = self._condition.embedding.shape[1], len(self._rows)
        return rows, min(whole - self._done, max(LEAST, PIECE // rows))

    def step(self, prefill: Callable[[Condition, KVCache, int], Tensor]) -> Tensor:
        """Run the next piece; its logits (R', 1, V)."""
        assert self._cache is not None
        first, stop = self._done, self._done + self.next[1]
        logits = prefill(rows_of(self._condition, self._rows, stop), self._cache, first)
        self._done = stop
        if not self.left:
            for at, row in enumerate(self._rows):
                kept = self._cache.part(at, stop - self._lengths[row], stop).clone()
                self._there[self._keys[row]] = prefix = Prefix(kept, logits[at].clone())
                self._pool.keep(self._keys[row], prefix)
            self._cache = None
        return logits

    def write(self, condition: Condition, cache: KVCache) -> Tensor:
        """Write the rows to those of a cache that are in use, in the same order, as `condition` has them: it may be
        padded further. The logits (R, 1, V) of slot 0.
        """
        cache.note(condition)
        count, stop = condition.embedding.shape[:2]
        first = cache.rows(count).start
        for at, key in enumerate(self._keys):
            kept = self._there[key].kept
            cache.part(first + at, stop - kept.shape[1], stop).copy_(kept)
        return torch.stack([self._there[key].logits for key in self._keys])


def rows_of(condition: Condition, rows: list[int], stop: int) -> Condition:
    """Some rows of a condition, up to a token."""
    padding = None if condition.padding is None else condition.padding[rows, :stop]
    places = None if condition.places is None else condition.places[:, rows, :stop]
    return Condition(condition.embedding[rows, :stop], padding, places)


def lengths(condition: Condition) -> list[int]:
    """Tokens of each row, padding in front of them not counted."""
    rows, count, _ = condition.embedding.shape
    return [count] * rows if condition.padding is None else (count - condition.padding.sum(1)).tolist()


def digests(condition: Condition) -> list[bytes]:
    """For each row, what is the same for rows that say the same."""
    parts = [condition.embedding]
    parts += [] if condition.places is None else [condition.places.permute(1, 2, 0)]
    held, out = [part.contiguous().cpu().view(torch.uint8).numpy() for part in parts], []
    for row, length in enumerate(lengths(condition)):
        made = blake2b(str(length).encode())
        for part in held:
            made.update(part[row, part.shape[1] - length :].tobytes())
        out.append(made.digest())
    return out
