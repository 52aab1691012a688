"""Noise as a function, not a stream: every random number is computed from (seed, slot, purpose, index).

An image therefore depends on its own seed alone: not on the batch it is in, the order of the batch, the number of
processes, or how many drafts were thrown away. The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in
wrapping int64 arithmetic, started from a key that hashes seed, slot and purpose. `uniform` is bit-equal on every
device. `gumbel` and `normal` take their logarithms in float64 and round once to float32, so that a device's last bit
hardly ever shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import lt

import torch
from torch import Tensor

Kind = Callable[[Tensor, Tensor, int, int], Tensor]  # uniform, gumbel or normal


class Purpose(IntEnum):
    """What a draw is for: draws of different purposes are independent."""

    TOKEN = 1  # the token that plain decoding draws at a slot
    ACCEPT = 2  # keep or reject a draft
    REDRAW = 3  # the token that replaces a draft
    GUESS = 4  # the first draft of a slot
    LABEL = 5  # the class of an image in a sampling run
    SMOOTH = 6  # the mixture of codes in a smoothed image
    ORDER = 7  # in which a masked model's tokens are drawn
    START = 8  # where a denoising path starts
    PATH = 9  # the noise of its steps
    CHECK = 10  # keep or reject a drafted path
    SIZE = 14  # the size of an image, where the model chooses it
    RESIDUAL = 11  # paths in the place of a rejected one: 11 to 13 the first, 19 to 21 the second, and so on


def _signed(value: int) -> int:
    """`value` modulo 2^64 as an int64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser. Shifts are logical, so the sign bits that int64 shifts in are masked out."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def bits(seed: Tensor, slot: Tensor, purpose: int, size: int) -> Tensor:
    """64 random bits as int64, (B, n, size), for seeds (B,) and slots (B, n) (or (n,), the same for all)."""
    key = _mix(
        _mix(seed)[:, None] + _signed(_GAMMA * purpose)
    )  # hashed first: no seed is another's at the next purpose
    key = _mix(key + (slot + 1) * _GAMMA)
    return _mix(key[..., None] + torch.arange(1, size + 1, device=seed.device) * _GAMMA)


def uniform(seed: Tensor, slot: Tensor, purpose: int, size: int = 1) -> Tensor:
    """Uniform on [0, 1) in steps of 2^-24, float32 (B, n, size)."""
    return ((bits(seed, slot, purpose, size) >> 40) & ((1 << 24) - 1)).float() * 2.0**-24


def _open_uniform(seed: Tensor, slot: Tensor, purpose: int, size: int) -> Tensor:
    """Uniform on (0, 1), never 0 or 1, float64: the centres of 2^32 steps."""
    return (((bits(seed, slot, purpose, size) >> 32) & ((1 << 32) - 1)).double() + 0.5) * 2.0**-32


def gumbel(seed: Tensor, slot: Tensor, purpose: int, size: int = 1) -> Tensor:
    """Standard Gumbel, float32 (B, n, size): argmax(log p + g) is a draw from p."""
    return _open_uniform(seed, slot, purpose, size).log_().neg_().log_().neg_().float()


def normal(seed: Tensor, slot: Tensor, purpose: int, size: int = 1) -> Tensor:
    """Standard normal by Box and Muller, float32 (B, n, size)."""
    u = _open_uniform(seed, slot, purpose, 2 * size)
    radius, angle = u[..., :size], u[..., size:]
    return (radius.log_().mul_(-2).sqrt_() * angle.mul_(2 * math.pi).cos_()).float()


MAX_STEPS = 1024  # of a denoising path


@dataclass(frozen=True)
class PathNoise:
    """Standard normal noise of denoising paths, by (seed, slot, step)."""

    seed: Tensor  # (B,)
    slots: Tensor  # (B, n)
    channels: int
    start_purpose: int = Purpose.START
    path_purpose: int = Purpose.PATH

    def start(self) -> Tensor:
        """Where each path starts, (B, n, C)."""
        return normal(self.seed, self.slots, self.start_purpose, self.channels)

    def steps(self, count: int) -> Tensor:
        """The noise of `count` steps, in the order in which they are made, (count, B, n, C)."""
        each = torch.arange(count, device=self.slots.device)[:, None, None]
        places = (self.slots * MAX_STEPS + each).permute(1, 0, 2).flatten(1)  # (B, count * n)
        drawn = normal(self.seed, places, self.path_purpose, self.channels)
        return drawn.unflatten(1, (count, -1)).transpose(0, 1)


class Table:
    """Noise for the slots that the images of a batch are busy with, each at its own, computed `ahead` slots at a time.

    A decoding step of a small model costs a few milliseconds on a CPU; twenty small operations for every step's noise
    would show. What a row has is kept in a ring: slots more than `reach` below the highest that was asked for are gone.
    `kind` is `uniform`, `gumbel` or `normal`.
    """

    def __init__(self, kind: Kind, seed: Tensor, purpose: int, *, size: int, reach: int = 1, ahead: int = 32) -> None:
        self.seed, self.purpose = seed, purpose
        self._kind, self._size, self._reach, self._ahead = kind, size, reach, ahead
        self._ring = reach + 2 * ahead
        self._filled = [0] * len(seed)  # of each row, the first slot that was not computed yet
        self._values: Tensor | None = None  # (B, ring, size): slot s stands at s modulo the ring
        self._rows = self._offsets()

    def at(self, slots: Tensor, stops: Sequence[int]) -> Tensor:
        """Values (B, n, size) at `slots` (B, n), of which row b's lie below `stops[b]`, by at most the table's reach.

        `stops` never fall.
        """
        if self._values is None or any(map(lt, self._filled, stops)):
            self._fill(stops)
        assert self._values is not None
        if self._reach == 1 and min(stops) == max(stops):  # the same slot in all rows
            place = (stops[0] - 1) % self._ring
            return self._values[:, place : place + 1]
        found = self._values.flatten(0, 1).index_select(0, (slots % self._ring + self._rows).flatten())
        return found.unflatten(0, slots.shape)

    def _fill(self, stops: Sequence[int]) -> None:
        """Compute what is missing below `stops`, and of rows that are about to miss some as well: all at once."""
        if self._values is None:
            shape = (len(self.seed), self._ring, self._size)
            self._values = torch.empty(shape, dtype=torch.float32, device=self.seed.device)
        each = torch.arange(self._ahead, device=self.seed.device)
        while any(map(lt, self._filled, stops)):
            rows = [b for b, stop in enumerate(stops) if self._filled[b] < stop + self._ahead // 2]
            first = torch.tensor([self._filled[b] for b in rows], device=self.seed.device)
            index, slots = torch.tensor(rows, device=self.seed.device), first[:, None] + each
            fresh = self._kind(self.seed[index], slots, self.purpose, self._size)
            self._values[index[:, None], slots % self._ring] = fresh
            for b in rows:
                self._filled[b] += self._ahead

    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""
        self.seed, self._filled = self.seed[rows], [self._filled[b] for b in rows.tolist()]
        self._values = None if self._values is None else self._values[rows]
        self._rows = self._offsets()

    def join(self, other: "Table") -> None:
        """Take the images of another table of this kind as well, behind its own."""
        if self._values is not None or other._values is not None:  # a kernel draws noise itself
            self._values = torch.cat([table._kept() for table in (self, other)])
        self.seed, self._filled = torch.cat([self.seed, other.seed]), self._filled + other._filled
        self._rows = self._offsets()

    def _kept(self) -> Tensor:
        if self._values is not None:
            return self._values
        return torch.empty(len(self.seed), self._ring, self._size, dtype=torch.float32, device=self.seed.device)

    def _offsets(self) -> Tensor:
        return torch.arange(len(self.seed), device=self.seed.device)[:, None] * self._ring


class Uniforms:
    """The uniforms of each image's decoding step, by purpose and by place in the step's window."""

    def __init__(self, seed: Tensor, size: int) -> None:
        self.seed, self._size = seed, size
        self.steps = torch.zeros(len(seed), 1, dtype=torch.int64, device=seed.device)  # that each image has behind it
        self._stops = [1] * len(seed)  # the same, plus one
        self._tables: dict[int, Table] = {}

    def of(self, purpose: int, stop: int, first: int = 0) -> Tensor:
        """(B, stop - first), of the places from `first` to `stop` - 1."""
        if purpose not in self._tables:
            self._tables[purpose] = Table(uniform, self.seed, purpose, size=self._size)
        return self._tables[purpose].at(self.steps, self._stops)[:, 0, first:stop]

    def advance(self) -> None:
        """Another step is done."""
        self.steps = self.steps + 1
        self._stops = [stop + 1 for stop in self._stops]

    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""
        self.seed, self.steps, self._stops = self.seed[rows], self.steps[rows], [self._stops[b] for b in rows.tolist()]
        for table in self._tables.values():
            table.keep(rows)

    def join(self, other: "Uniforms") -> None:
        """Take the images of others as well, behind its own."""
        for purpose, table in self._tables.items():
            new = other._tables.get(purpose)
            table.join(Table(uniform, other.seed, purpose, size=self._size) if new is None else new)
        self.seed, self.steps = torch.cat([self.seed, other.seed]), torch.cat([self.steps, other.steps])
        self._stops = self._stops + other._stops
