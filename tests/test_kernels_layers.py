"""The kernels inside a forward (attention, norms, rotary embedding) against float64, on small odd shapes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from vargen.core.dispatch import Kernels, triton
from vargen.core.types import KVCache
from vargen.kernels import attention, rope
from vargen.kernels.attention import Sight
from vargen.kernels.norm import add_norm, rms_norm
from vargen.kernels.silu_mul import silu_mul
from vargen.models.chameleon import HeadNorm

pytestmark = pytest.mark.skipif(triton is None, reason="Triton is not installed for this platform")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter cannot reckon in bfloat16


SMALL = ("norm", "add_norm", "silu_mul", "rope", "attention")  # in the order in which they are asked for below


def kernels():
    return Kernels("triton")


def drawer(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return generator, lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def seen(sight, count):
    keys = torch.arange(count, device=DEVICE)
    if sight.sees is None:
        out = keys <= sight.rows[..., None]
    else:
        out = sight.sees.repeat(len(sight.rows) // len(sight.sees), 1, 1)
    if sight.padding is not None:
        out = out.clone()
        out[..., : sight.padding.shape[1]] &= ~sight.padding[:, None]
    return out | (keys == sight.rows[..., None]) if sight.padding is not None else out


def reference(q, k, v, hidden):
    q, k, v = q.double().transpose(1, 2), k.double(), v.double()
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(hidden[:, None], -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize(
    ("rows", "n", "slots", "heads", "kv_heads", "dim", "form", "dtype"),
    [
        (2, 1, 300, 4, 4, 32, "causal", torch.float32),
        (3, 5, 257, 6, 2, 20, "causal", torch.float32),  # grouped; neither heads nor channels a power of two
        (2, 3, 40, 2, 2, 16, "sees", torch.float32),
        (4, 3, 140, 2, 1, 64, "padded", torch.float32),
        (2, 4, 140, 2, 2, 32, "both", torch.float32),
        (2, 17, 130, 4, 4, 100, "causal", HALF),
    ],
)
def test_attention(rows, n, slots, heads, kv_heads, dim, form, dtype):
    generator, normal = drawer(n, dtype)
    q, keys = normal(rows, n, heads, dim), normal(2, rows, slots + 9, kv_heads, dim)
    values = normal(2, rows, slots + 9, kv_heads, dim)
    k, v = (part[1, :, :slots].transpose(1, 2) for part in (keys, values))  # of a layer of a cache, what is in use
    first = torch.randint(7, slots - n, (rows, 1), generator=generator)
    if form == "both":  # conditional and unconditional rows stand at the same places
        first = first[: rows // 2].repeat(2, 1)
    places = (first + torch.arange(n)).to(DEVICE)
    padding = sees = None
    if form in ("padded", "both"):
        padding = (torch.arange(6) < torch.randint(0, 6, (rows, 1), generator=generator)).to(DEVICE)
    if form in ("sees", "both"):
        sees = (torch.rand(rows // 2 if form == "both" else rows, n, slots, generator=generator) < 0.5).to(DEVICE)
        sees |= torch.arange(slots, device=DEVICE) == places[: len(sees), :, None]
    sight = Sight(places, 0, slots, dtype, sees, padding, kernels())
    visible = seen(sight, slots)
    if form == "causal":  # what nobody sees may be anything
        beyond = torch.arange(slots, device=DEVICE) > places.max()
        k[:, :, beyond], v[:, :, beyond] = math.nan, math.nan
    out = attention.attend(q, k, v, sight)
    k, v = k.nan_to_num(0.0), v.nan_to_num(0.0)
    want = reference(q, k, v, ~visible)
    plain = attention.attend(q, k, v, replace(sight, kernels=Kernels("torch")))
    assert out.dtype == dtype
    assert sight.kernels.ran == {"attention": "triton"}
    assert (out - want).abs().max() <= max(2 * (plain - want).abs().max(), 1e-6)


def test_attention_of_too_many_queries():
    """A long prompt is left to PyTorch, unless the kernel is asked for."""
    x = torch.zeros(1, 257, 1, 64, device=DEVICE)
    keys = x.transpose(1, 2)
    sight = Sight(torch.arange(257, device=DEVICE)[None], 0, 257, x.dtype, kernels=Kernels(captured=True))
    assert torch.equal(attention.attend(x, keys, keys, sight), x)
    assert sight.kernels.ran == {"attention": "torch"}
    with pytest.raises(ValueError, match="attention cannot run: 512 queries of 64 channels are more than 2048"):
        attention.attend(x, keys, keys, replace(sight, kernels=kernels()))


@pytest.mark.parametrize("width", [16, 100, 1280])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_norm(width, dtype):
    _, normal = drawer(width, dtype)
    x, weight, ran = normal(3, 5, width) * 7, normal(width), kernels()
    x[0, 0] = 0
    got, plain = rms_norm(x, weight, 1e-5, ran), rms_norm(x, weight, 1e-5)
    want = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    assert ran.ran == {"norm": "triton"}
    assert got.dtype == dtype
    assert (got - want).abs().max() <= 2 * (plain - want).abs().max()


@pytest.mark.parametrize("width", [16, 100, 1280])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_norm_of_a_sum(width, dtype):
    """The sum is the twin's to the bit; what is normalised is the sum as it is kept."""
    _, normal = drawer(width, dtype)
    x, change, weight, ran = normal(3, 5, width) * 7, normal(3, 5, 2 * width)[..., width:], normal(width), kernels()
    x[0, 0] = change[0, 0] = 0
    total, got = add_norm(x, change, weight, 1e-5, ran)
    wanted, plain = add_norm(x, change, weight, 1e-5)
    want = wanted.double() * (wanted.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    assert ran.ran == {"add_norm": "triton"}
    assert got.dtype == dtype
    assert torch.equal(total, wanted)
    assert torch.equal(total, x + change)
    assert (got - want).abs().max() <= 2 * (plain - want).abs().max()


def test_norm_of_nothing_but_x():
    _, normal = drawer(0, torch.float32)
    x, weight, ran = normal(2, 3, 32), normal(32), kernels()
    total, got = add_norm(x, None, weight, 1e-5, ran)
    assert total is x
    assert ran.ran == {"norm": "triton"}
    assert torch.allclose(got, rms_norm(x, weight, 1e-5), atol=1e-6)
    with pytest.raises(ValueError, match=r"add_norm cannot run: torch.float32 \(2, 3, 32\) and torch.float64"):
        add_norm(x, x.double(), weight, 1e-5, ran)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("width", [16, 100, 2500])  # of which the last takes several programs
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_silu_mul(width, joined, dtype):
    _, normal = drawer(width, dtype)
    gate, up = (
        (normal(2, 3, 2 * width) * 4).chunk(2, dim=-1) if joined else (normal(2, 3, width) * 4, normal(2, 3, width))
    )
    gate[0, 0, :3] = torch.tensor([0.0, 60.0, -200.0])
    ran = kernels()
    got, plain = silu_mul(gate, up, ran), silu_mul(gate, up)
    want = torch.nn.functional.silu(gate.double()) * up.double()
    assert ran.ran == {"silu_mul": "triton"}
    assert (got.dtype, got.shape, got.is_contiguous()) == (dtype, gate.shape, True)
    assert (got - want).abs().max() <= max(2 * (plain - want).abs().max(), 1e-6)
    with pytest.raises(ValueError, match="silu_mul cannot run"):
        silu_mul(gate, up[..., 1:], ran)


def turned(x, turns):
    """In float64."""
    cos, sin = (part.double() for part in turns.parts)
    a, b = x.double().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def normed(x, norm):
    each = x.shape[2] // len(norm.weight)
    weight, bias = (part.double().repeat_interleave(each, dim=0) for part in (norm.weight, norm.bias))
    y = x.double() - x.double().mean(-1, keepdim=True)
    return y * (y.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * weight + bias


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "joined", "groups", "dtype"),
    [
        (3, 3, 20, True, 0, torch.float32),
        (2, 2, 64, True, 0, HALF),
        (4, 2, 32, False, 0, torch.float32),
        (4, 2, 100, False, 2, torch.float32),
        (4, 4, 16, False, 1, HALF),
    ],
)
def test_rope(heads, kv_heads, dim, joined, groups, dtype):
    """Queries, and the whole cache: what was there before stays."""
    rows, n, slots = 3, 4, 11
    _, normal = drawer(dim, dtype)
    qkv = torch.empty(0)
    if joined:  # one projection, as in LlamaGen
        qkv = normal(rows, n, 3 * heads * dim).unflatten(-1, (3, heads, dim))
        q, k, v = qkv.unbind(2)
        angles = normal(1, n, 1, dim // 2).float()  # the same in all rows
        cos, sin = angles.cos().repeat(1, 1, 1, 2), torch.cat([-angles.sin(), angles.sin()], dim=-1)
        tables = (cos, cos, torch.ones_like(cos)), (sin, sin, torch.zeros_like(sin))
        turns: Any = rope.Joined(*(torch.stack(part, dim=2) for part in tables))
    else:
        q, k, v = normal(rows, n, heads, dim), normal(rows, n, kv_heads, dim), normal(rows, n, kv_heads, dim)
        angles = normal(rows, n, 1, dim // 2).float()
        sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
        turns = rope.Halves(angles.cos().repeat(1, 1, 1, 2), sin)
    norms = (HeadNorm(groups, dim).to(DEVICE, dtype), HeadNorm(groups, dim).to(DEVICE, dtype)) if groups else None
    for norm in norms or ():
        norm.weight.data, norm.bias.data = normal(groups, dim), normal(groups, dim)
    places = torch.tensor([[0, 1, 2, 3], [7, 8, 9, 10], [9, 2, 4, 3]], device=DEVICE)
    results = []
    for impl in ("triton", "torch"):
        cache = KVCache(2, rows + 1, slots, kv_heads, dim, dtype=dtype, device=torch.device(DEVICE))
        cache.end = rows  # of a cache that has room for one more
        cache.keys.add_(5)
        cache.values.add_(6)
        cache.kernels, cache.end = Kernels(impl), rows  # the block has the first rows
        with torch.no_grad():
            where = (turns, cache, 1, cache.flat(places), slots - 1)
            out, keys, values = rope.enter_joined(qkv, *where) if joined else rope.enter(q, k, v, *where, norms)
        assert cache.kernels.ran == {"rope": impl}
        assert keys.shape == values.shape == (rows, kv_heads, slots - 1, dim)
        assert keys.data_ptr() == cache.keys[1].data_ptr()
        results.append((out, cache.keys, cache.values))
    (out, keys, values), (plain, plain_keys, plain_values) = results
    assert out.dtype == dtype
    assert torch.equal(values, plain_values)
    for got, other, given, norm in ((out, plain, q, 0), (keys[1], plain_keys[1], k, 1)):
        want = turned(given if norms is None else normed(given, norms[norm]), turns)
        if norm:
            row = torch.arange(rows, device=DEVICE)[:, None]
            got, other = got[row, places], other[row, places]
        assert (got - want).abs().max() <= max(2 * (other - want).abs().max(), 1e-6)
    written = torch.zeros(rows + 1, slots, dtype=torch.bool, device=DEVICE)
    written[torch.arange(rows, device=DEVICE)[:, None], places] = True
    assert (keys[0] == 5).all()
    assert (keys[1][~written] == 5).all()
    assert (values[1][~written] == 6).all()
    assert torch.equal(values[1][torch.arange(rows, device=DEVICE)[:, None], places], v)


def test_small_kernels_are_for_graphs(monkeypatch):
    """Launched by themselves they cost more than they spare: `auto` takes them while a graph is captured."""
    told = []

    def noting(self, op, tensor, *, unfit=None, pays=True):
        told.append((op, pays))
        return False

    monkeypatch.setattr(Kernels, "triton", noting)
    x = torch.ones(1, 1, 1, 16, device=DEVICE)
    for captured in (False, True):
        cache = KVCache(1, 1, 1, 1, 16, dtype=x.dtype, device=torch.device(DEVICE))
        cache.kernels = ran = Kernels(captured=captured)
        rms_norm(x, x[0, 0, 0], 1e-5, ran)
        add_norm(x, x, x[0, 0, 0], 1e-5, ran)
        silu_mul(x, x, ran)
        place = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
        turns = rope.Halves(x, x)
        rope.enter(x, x, x, turns, cache, 0, cache.flat(place), 1)
        attention.attend(x, x, x, Sight(place, 0, 1, x.dtype, kernels=ran))
    assert told == [(op, pays) for pays in (False, True) for op in SMALL]


def test_auto_takes_a_kernel_where_it_pays():
    class OnCuda:
        is_cuda = True

    tensor: Any = OnCuda()
    assert not Kernels().triton("norm", tensor, pays=False)
    assert Kernels().triton("norm", tensor, pays=True)
    assert not Kernels().triton("norm", tensor, pays=True, unfit="too wide")
