"""A window of queries against the slot cache, split over the cache (Flash-Decoding, Dao et al., 2023).

Queries of a block stand at rows of the cache and see the keys up to their own, or those that a mask says: a tree's
branches, or rows abreast. Every program reads one stretch of one head's keys; stretches behind the last row that a
query stands at are not read. How far that is, is read on the device, so that the same launch serves every step. A
second launch joins the stretches.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels, constexpr, jit, on, power, tl

STRETCH = 128  # keys that a program reads
BLOCK = 32  # of them at a time
MOST = 1 << 13  # numbers of a head's queries, which a program keeps; of float32, a quarter


@dataclass(frozen=True)
class Sight:
    """What the queries of a block see; built once and shared by all layers.

    Causal by cache row unless `sees` says otherwise. Nobody sees the condition's `padding`, but for a token itself, so
    that no row of the softmax is empty. No query stands below cache row `first`, and no key is seen from `stop` on.
    """

    rows: Tensor  # (R, n): the cache row of each query
    first: int
    stop: int
    dtype: torch.dtype
    sees: Tensor | None = None  # (R or R / 2, n, stop) bool
    padding: Tensor | None = None  # (R, T) bool
    kernels: Kernels = field(default_factory=Kernels)
    made: dict[str, Tensor | None] = field(default_factory=dict)

    @property
    def mask(self) -> Tensor | None:
        """What the twin adds to the scores (R, 1, n, stop); None where it would hide nothing. Made once."""
        if "mask" not in self.made:  # and no `cached_property`, whose lock torch.compile cannot trace
            self.made["mask"] = self._mask()
        return self.made["mask"]

    def _mask(self) -> Tensor | None:
        alone = self.rows.shape[1] == 1 and self.first + 1 == self.stop
        if self.sees is None and self.padding is None and alone:
            return None  # a lone token at the last row sees everything
        dtype = torch.float32 if self.rows.is_cpu else self.dtype  # see `plain`
        return causal_mask(self.rows, self.stop, self.sees, self.padding, dtype)


def causal_mask(rows: Tensor, stop: int, sees: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of queries at `rows` (R, n) over `stop` keys, (R, 1, n, stop): 0 or -inf."""
    keys = torch.arange(stop, device=rows.device)
    hidden = keys > rows[..., None] if sees is None else ~sees
    if padding is not None:
        hidden = hidden.repeat(len(padding) // len(hidden), 1, 1)
        hidden[..., : padding.shape[1]] |= padding[:, None]
        hidden &= keys != rows[..., None]
    return torch.zeros(hidden.shape, dtype=dtype, device=rows.device).masked_fill_(hidden, float("-inf"))[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """Attention (R, n, H, D) of queries (R, n, H, D) over keys and values (R, KH, stop, D), KH dividing H."""
    if sight.kernels.triton("attention", q, unfit=_unfit(q, k), pays=sight.kernels.captured):
        return _launch(q, k, v, sight)
    q = q.transpose(1, 2)
    return plain(q, k, v, sight.mask).transpose(1, 2)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """PyTorch's attention (R, H, n, D), heads first; on a CPU in float32, since few queries of fewer bits take several
    times as long there. `mask` is added to the scores, or says what is seen; `scale` is 1 / sqrt(D) unless given.
    """
    dtype = q.dtype
    if q.is_cpu and dtype.itemsize < 4:
        q, k, v = q.float(), k.float(), v.float()
    if mask is not None and mask.is_floating_point() and mask.dtype != q.dtype:
        mask = mask.to(q.dtype)
    grouped = k.shape[1] < q.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out if out.dtype == dtype else out.to(dtype)


def _unfit(q: Tensor, k: Tensor) -> str | None:
    queries, channels = power(q.shape[1] * (q.shape[2] // k.shape[1])), power(q.shape[-1])
    most = MOST if q.element_size() <= 2 else MOST // 4
    if queries * channels > most:
        return f"{queries} queries of {channels} channels are more than {most} numbers"
    return None


def _launch(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    rows, n, heads, dim = q.shape
    kv_heads, slots = k.shape[1:3]
    group, stretches = heads // kv_heads, -(-slots // STRETCH)
    q, k, v = q.contiguous(), _inner(k), _inner(v)
    sees = None if sight.sees is None else sight.sees.contiguous()
    padding = None if sight.padding is None else sight.padding.contiguous()
    part = q.new_empty(rows, kv_heads, stretches, n * group, dim, dtype=torch.float32)
    weight = q.new_empty(2, rows, kv_heads, stretches, n * group, dtype=torch.float32)
    queries = power(n * group)
    with on(q.device):
        _stretch[(rows * kv_heads, stretches)](
            q,
            k,
            v,
            sight.rows.contiguous(),
            q if sees is None else sees,
            q if padding is None else padding,
            part,
            weight,
            n,
            slots,
            0 if padding is None else padding.shape[1],
            rows if sees is None else len(sees),
            *(k.stride(dim) for dim in (0, 2, 1)),
            *(v.stride(dim) for dim in (0, 2, 1)),
            weight.stride(0),
            dim**-0.5,
            HEADS=kv_heads,
            GROUP=group,
            DIM=dim,
            SEES=sees is not None,
            PADDING=padding is not None,
            QUERIES=queries,
            CHANNELS=power(dim),
            STRETCH=STRETCH,
            BLOCK=BLOCK,
            num_warps=4,
        )
    out = torch.empty_like(q)
    with on(q.device):
        _join[(rows * kv_heads, n * group)](
            part,
            weight,
            out,
            stretches,
            weight.stride(0),
            n,
            HEADS=kv_heads,
            GROUP=group,
            DIM=dim,
            CHANNELS=power(dim),
            STRETCHES=power(stretches, least=1),
            num_warps=4,
        )
    return out


def _inner(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@jit
def _stretch(
    q,
    k,
    v,
    places,
    sees,
    padding,
    part,
    weight,
    n,
    slots,
    padded,
    seeing,
    k_row,
    k_slot,
    k_head,
    v_row,
    v_slot,
    v_head,
    half,
    scale,
    HEADS: constexpr,
    GROUP: constexpr,
    DIM: constexpr,
    SEES: constexpr,
    PADDING: constexpr,
    QUERIES: constexpr,
    CHANNELS: constexpr,
    STRETCH: constexpr,
    BLOCK: constexpr,
):
    pair, stretch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, head, count = pair // HEADS, pair % HEADS, n * GROUP
    query, channel = tl.arange(0, QUERIES), tl.arange(0, CHANNELS)
    token, here, inside = query // GROUP, query < count, channel < DIM
    place = tl.load(places + row * n + token, here, -1)
    at = ((row * n + token) * HEADS + head) * GROUP + query % GROUP
    queries = tl.load(q + at[:, None] * DIM + channel, here[:, None] & inside, 0.0)
    # With `sees` a query may look at keys behind its own row.
    stop = slots if SEES else tl.minimum(tl.max(place, 0).to(tl.int32) + 1, slots)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for start in range(stretch * STRETCH, tl.minimum((stretch + 1) * STRETCH, stop), BLOCK):
        key = start + tl.arange(0, BLOCK)
        there = key < stop
        keys = tl.load(k + row * k_row + key[None] * k_slot + head * k_head + channel[:, None],
                       there[None] & inside[:, None], 0.0)  # fmt: skip
        if SEES:
            seen = here[:, None] & there[None]
            seen &= tl.load(sees + ((row % seeing) * n + token[:, None]) * slots + key[None], seen, 0) != 0
        else:
            seen = there[None] & (key[None] <= place[:, None])
        if PADDING:
            hidden = tl.load(padding + row * padded + key, key < padded, 0) != 0
            seen &= (~hidden)[None] | (key[None] == place[:, None])
        scores = tl.where(seen, tl.dot(queries, keys, input_precision="ieee") * scale, float("-inf"))
        peak = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(peak == float("-inf"), 0.0, peak)
        shrink, p = tl.exp(top - safe), tl.exp(scores - safe[:, None])
        values = tl.load(v + row * v_row + key[:, None] * v_slot + head * v_head + channel[None],
                         there[:, None] & inside[None], 0.0)  # fmt: skip
        out = out * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        total, top = total * shrink + tl.sum(p, 1), peak
    base = (pair * tl.num_programs(1) + stretch) * count + query
    tl.store(weight + base, top, here)
    tl.store(weight + half + base, total, here)
    tl.store(part + base[:, None] * DIM + channel, out, here[:, None] & inside)


@jit
def _join(
    part,
    weight,
    out,
    stretches,
    half,
    n,
    HEADS: constexpr,
    GROUP: constexpr,
    DIM: constexpr,
    CHANNELS: constexpr,
    STRETCHES: constexpr,
):
    pair, query = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, head, count = pair // HEADS, pair % HEADS, n * GROUP
    stretch, channel = tl.arange(0, STRETCHES), tl.arange(0, CHANNELS)
    there, inside = stretch < stretches, channel < DIM
    base = (pair * stretches + stretch) * count + query
    top = tl.load(weight + base, there, float("-inf"))
    share = tl.exp(top - tl.max(top, 0))
    total = tl.sum(share * tl.load(weight + half + base, there, 0.0), 0)
    parts = tl.load(part + base[:, None] * DIM + channel, there[:, None] & inside, 0.0)
    joined = tl.sum(parts * share[:, None], 0) / total
    at = ((row * n + query // GROUP) * HEADS + head) * GROUP + query % GROUP
    tl.store(out + at * DIM + channel, joined.to(out.dtype.element_ty), inside)
