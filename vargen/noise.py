"""Noise as a function, not a stream: every random number is computed from (seed, slot, purpose, index).

An image therefore depends on its own seed alone: not on the batch it is in, the order of the batch, the number of
processes, or how many drafts were thrown away. The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in
wrapping int64 arithmetic, started from a key that hashes seed, slot and purpose. `uniform` is bit-equal on every
device. `gumbel` and `normal` take their logarithms in float64 and round once to float32, so that a device's last bit
hardly ever shows.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a draw is for: draws of different purposes are independent."""

    TOKEN = 1  # the token that plain decoding draws at a slot
    ACCEPT = 2  # keep or reject a draft
    REDRAW = 3  # the token that replaces a draft
    GUESS = 4  # the first draft of a slot


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
    key = _mix(seed[:, None] + _signed(_GAMMA * purpose))
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


class Table:
    """Noise for slots 0 .. count - 1 of each row, computed `ahead` slots at a time and kept.

    A decoding step at batch 1 costs about a millisecond on a CPU; twenty small operations for every step's noise would
    show. `kind` is `uniform`, `gumbel` or `normal`.
    """

    def __init__(self, kind, seed: Tensor, purpose: int, *, count: int, size: int, ahead: int = 32) -> None:
        self._kind, self._seed, self._purpose = kind, seed, purpose
        self._ahead, self._count, self._size, self._filled = ahead, count, size, 0
        self._values = torch.empty(len(seed), count, size, device=seed.device)

    def until(self, stop: int) -> Tensor:
        """All values (B, count, size), of which slots below `stop` are filled."""
        while self._filled < min(stop, self._count):
            end = min(self._count, max(stop, self._filled + self._ahead))
            slots = torch.arange(self._filled, end, device=self._seed.device)
            self._values[:, self._filled : end] = self._kind(self._seed, slots[None], self._purpose, self._size)
            self._filled = end
        return self._values

    def at(self, slots: Tensor, stop: int) -> Tensor:
        """Values (B, n, size) at `slots` (B, n), all below `stop`."""
        index = slots[..., None].expand(-1, -1, self._size)
        return self.until(stop).gather(1, index)
