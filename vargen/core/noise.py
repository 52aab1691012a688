"""Noise as a function, not a stream: every random number is computed from (seed, slot, purpose, index).

An image therefore depends on its own seed alone: not on the batch it is in, the order of the batch, the number of
processes, or how many drafts were thrown away. The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in
wrapping int64 arithmetic, started from a key that hashes seed, slot and purpose. `uniform` is bit-equal on every
device. `gumbel` and `normal` take their logarithms in float64 and round once to float32, so that a device's last bit
hardly ever shows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

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
    """Noise for the slots that a batch is busy with, computed `ahead` slots at a time.

    A decoding step of a small model costs a few milliseconds on a CPU; twenty small operations for every step's noise
    would show. Noise of slots below the last `first` is dropped. `kind` is `uniform`, `gumbel` or `normal`.
    """

    def __init__(self, kind: Kind, seed: Tensor, purpose: int, *, size: int, ahead: int = 32) -> None:
        self.seed, self.purpose = seed, purpose
        self._kind, self._size, self._ahead = kind, size, ahead
        self._first = self._stop = 0
        self._values = torch.empty(len(seed), 0, size, dtype=torch.float32, device=seed.device)

    def between(self, first: int, stop: int) -> Tensor:
        """Values (B, stop - first, size) of slots `first` to `stop` - 1; `first` never goes back."""
        if stop > self._stop:
            start, end = max(first, self._stop), stop + self._ahead
            slots = torch.arange(start, end, device=self.seed.device)
            fresh = self._kind(self.seed, slots[None], self.purpose, self._size)
            kept = self._values[:, first - self._first :] if first < self._stop else self._values[:, :0]
            self._values, self._first, self._stop = torch.cat([kept, fresh], 1), first, end
        return self._values[:, first - self._first : stop - self._first]

    def at(self, slots: Tensor, first: int, stop: int) -> Tensor:
        """Values (B, n, size) at `slots` (B, n), which lie between `first` and `stop` - 1."""
        values = self.between(first, stop)
        if stop - first == 1:  # of one slot, the same in all rows
            return values.expand(-1, slots.shape[1], -1)
        return values.gather(1, (slots - first)[..., None].expand(-1, -1, self._size))


class Uniforms:
    """The uniforms of a decoding step, by purpose and by place in the step's window."""

    def __init__(self, seed: Tensor, size: int) -> None:
        self.seed, self.step, self._size = seed, 0, size
        self._tables: dict[int, Table] = {}

    def of(self, purpose: int, stop: int, first: int = 0) -> Tensor:
        """(B, stop - first), of the places from `first` to `stop` - 1."""
        if purpose not in self._tables:
            self._tables[purpose] = Table(uniform, self.seed, purpose, size=self._size)
        return self._tables[purpose].between(self.step, self.step + 1)[:, 0, first:stop]
