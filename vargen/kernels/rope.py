"""Rotary embedding (arXiv 2104.09864) of queries and keys, and the cache write of keys and values, in one launch.

Channels i and i + D / 2 of a head are turned together, in float32. `enter` takes queries, keys and values one by one,
and may normalise each head first (Chameleon); `enter_joined` takes them as one projection gives them (LlamaGen).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vargen.core.dispatch import Kernels, constexpr, jit, on, power, tl
from vargen.core.types import KVCache


@dataclass(frozen=True)
class Halves:
    """Turns channels i and i + D / 2: x cos + (x with its halves changed over) sin, both (R, n, 1, D) float32. The sine
    of the first half is negative.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, angles: Tensor) -> "Halves":
        """Of the angles (n, D / 2) of tokens, (1, n, 1, D)."""
        cos, sin = angles.cos().repeat(1, 2), torch.cat([-angles.sin(), angles.sin()], dim=-1)
        return Halves(cos[None, :, None], sin[None, :, None])

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles, (R, n, 1, D / 2)."""
        half = self.cos.shape[-1] // 2
        return self.cos[..., :half], self.sin[..., half:]

    def turn(self, x: Tensor) -> Tensor:
        """`x` (R, n, H, D), turned."""
        y = x if x.dtype == torch.float32 else x.float()
        y = (y * self.cos).addcmul_(y.roll(y.shape[-1] // 2, -1), self.sin)
        return y if x.dtype == torch.float32 else y.to(x.dtype)


@dataclass(frozen=True)
class Joined(Halves):
    """Turns queries and keys, and leaves values, all three in one (R, n, 3, H, D).

    Cosines and sines are (R or 1, n, 3, 1, D) float32: of queries, of keys, of values (1 and 0).
    """

    @classmethod
    def of(cls, angles: Tensor) -> "Joined":
        """Of the angles (n, D / 2) of tokens, (1, n, 3, 1, D)."""
        turned = Halves.of(angles)
        cos = torch.stack([turned.cos, turned.cos, torch.ones_like(turned.cos)], dim=2)
        return cls(cos, torch.stack([turned.sin, turned.sin, torch.zeros_like(turned.sin)], dim=2))

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        half = self.cos.shape[-1] // 2
        return self.cos[:, :, 0, :, :half], self.sin[:, :, 0, :, half:]

    @property
    def alone(self) -> Halves:
        """What turns queries, or keys, that are by themselves."""
        return Halves(self.cos[:, :, 0], self.sin[:, :, 0])

    def to(self, device: torch.device) -> "Joined":
        return Joined(self.cos.to(device), self.sin.to(device))


class HeadNorm(Protocol):
    """A LayerNorm of heads (R, n, H, D), float32, whose weight and bias (groups, D) serve H / groups heads each."""

    weight: Any
    bias: Any
    eps: float

    def __call__(self, x: Tensor) -> Tensor: ...


class Cache(Protocol):
    """What keys and values enter; see `KVCache`."""

    @property
    def kernels(self) -> Kernels | None: ...

    def write(self, layer: int, flat: Tensor | None, k: Tensor, v: Tensor, stop: int) -> tuple[Tensor, Tensor]: ...


def enter_joined(
    qkv: Tensor, turns: Joined, cache: KVCache, layer: int, flat: Tensor, stop: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `enter`, of queries, keys and values (R, n, 3, H, D) in one."""
    if cache.kernels.triton("rope", qkv, pays=cache.kernels.captured):
        q, k, v = qkv.unbind(2)
        out = _launch(q, k, v, turns, cache.keys[layer], cache.values[layer], flat, None)
        return out, *cache.seen(layer, len(qkv), stop)
    turned = turns.turn(qkv)
    return turned[:, :, 0], *cache.write_both(layer, flat, turned[:, :, 1:], stop)


def enter(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turns: Halves,
    cache: Cache,
    layer: int,
    flat: Tensor | None,
    stop: int,
    norms: tuple[HeadNorm, HeadNorm] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (R, n, H, D) turned, and all keys and values (R, KH, stop, D), with k and v (R, n, KH, D) among them.

    k, turned, and v are written at `flat` (R * n,) rows of a layer of the cache. `norms` are of q and k.
    """
    kernels = cache.kernels
    if kernels is not None and kernels.triton("rope", q, pays=kernels.captured):
        held: Any = cache
        out = _launch(q, k, v, turns, held.keys[layer], held.values[layer], flat, norms)
        return out, *held.seen(layer, len(k), stop)
    if norms is not None:
        q, k = norms[0](q), norms[1](k)
    heads, turned = q.shape[2], turns.turn(torch.cat([q, k], dim=2))
    turned = turned if turned.dtype == v.dtype else turned.to(v.dtype)
    return turned[:, :, :heads], *cache.write(layer, flat, turned[:, :, heads:], v, stop)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, turns: Any, keys: Tensor, values: Tensor, flat: Tensor | None, norms: Any
) -> Tensor:
    assert flat is not None
    rows, n, heads, dim = q.shape
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # views, where rows follow one another
    q, k, v = (part if part.stride(2) == 1 else part.contiguous() for part in (q, k, v))
    cos, sin = (part.expand(rows, n, 1, dim // 2) for part in turns.parts)
    out = torch.empty(rows, n, heads, dim, dtype=v.dtype, device=v.device)
    shares = [q, q, k, k]  # not read where there are no norms
    if norms is not None:
        shares = [part.contiguous() for norm in norms for part in (norm.weight, norm.bias)]
    with on(q.device):
        _heads[(rows * n, heads + 2 * k.shape[1])](
            q, k, v, cos, sin, *shares, flat, out, keys, values,
            keys.stride(1), n, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            cos.stride(0), cos.stride(1), cos.stride(3),
            norms[0].eps if norms else 0.0,
            HEADS=heads, KEYS=k.shape[1], DIM=dim, HALF=power(dim // 2), NORM=norms is not None,
            Q_EACH=heads // len(shares[0]) if norms else 1, K_EACH=k.shape[1] // len(shares[2]) if norms else 1,
            num_warps=1,
        )  # fmt: skip
    return out


@jit
def _turned(x, out, cos, sin, weight, bias, eps, step, DIM: constexpr, HALF: constexpr, NORM: constexpr):
    i = tl.arange(0, HALF)
    there = i < DIM // 2
    first, second = i, i + DIM // 2
    a, b = tl.load(x + first, there, 0.0).to(tl.float32), tl.load(x + second, there, 0.0).to(tl.float32)
    if NORM:
        mean = (tl.sum(a, 0) + tl.sum(b, 0)) / DIM
        a, b = tl.where(there, a - mean, 0.0), tl.where(there, b - mean, 0.0)
        scale = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / DIM + eps)
        a = a * scale * tl.load(weight + first, there, 0.0) + tl.load(bias + first, there, 0.0)
        b = b * scale * tl.load(weight + second, there, 0.0) + tl.load(bias + second, there, 0.0)
    c, s = tl.load(cos + i * step, there, 0.0), tl.load(sin + i * step, there, 0.0)
    tl.store(out + first, (a * c - b * s).to(out.dtype.element_ty), there)
    tl.store(out + second, (b * c + a * s).to(out.dtype.element_ty), there)


@jit
def _heads(
    q, k, v, cos, sin, q_weight, q_bias, k_weight, k_bias, flat, out, keys, values,
    place, n, q_token, q_head, k_token, k_head, v_token, v_head, turn_row, turn_token, turn_channel, eps,
    HEADS: constexpr, KEYS: constexpr, DIM: constexpr, HALF: constexpr, NORM: constexpr,
    Q_EACH: constexpr, K_EACH: constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    angle = (token // n) * turn_row + (token % n) * turn_token
    if head < HEADS:
        at = head // Q_EACH * DIM
        _turned(q + token * q_token + head * q_head, out + (token * HEADS + head) * DIM, cos + angle, sin + angle,
                q_weight + at, q_bias + at, eps, turn_channel, DIM, HALF, NORM)  # fmt: skip
    elif head < HEADS + KEYS:
        head -= HEADS
        at, row = head // K_EACH * DIM, tl.load(flat + token)
        _turned(k + token * k_token + head * k_head, keys + row * place + head * DIM, cos + angle, sin + angle,
                k_weight + at, k_bias + at, eps, turn_channel, DIM, HALF, NORM)  # fmt: skip
    else:
        head -= HEADS + KEYS
        channel, row = tl.arange(0, 2 * HALF), tl.load(flat + token)
        there = channel < DIM
        value = tl.load(v + token * v_token + head * v_head + channel, there, 0.0)
        tl.store(values + row * place + head * DIM + channel, value, there)
