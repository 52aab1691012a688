"""What the relaxed rules need to know of a law: LANTERN's shifted law, and the masses of GSD's clusters.

The twins are `shifted` and `cluster` of `samplers/rules.py`, which gather, sort and scatter the whole vocabulary. Here
a program takes one draft: the first gathers its neighbours' masses and sums them in order; the second walks the law
from the draft to the ids that rank next to it, without a sort.
"""

import torch
from torch import Tensor

from vargen.kernels.choice import Kernels, constexpr, jit, on, power, tl
from vargen.kernels.sample import WIDEST
from vargen.samplers import rules

CHUNK = 2048  # ids that are copied at a time


def shifted(
    draft: Tensor, p: Tensor, neighbours: Tensor, kernels: Kernels, *, delta: float | None = None, factor: float = 0.0
) -> Tensor:
    """`rules.shifted`, (..., V), of drafts (...) under laws p (..., V), `neighbours` (V, k)."""
    if not kernels.triton("shifted", p):
        return rules.shifted(draft, p, neighbours, delta=delta, factor=factor)
    vocabulary, count = p.shape[-1], neighbours.shape[1]
    p, out = p.contiguous(), torch.empty(p.shape, device=p.device)
    with on(p.device):
        _shifted[(draft.numel(),)](
            draft.contiguous(),
            p,
            neighbours.contiguous(),
            out,
            vocabulary,
            count,
            factor if delta is None else delta,
            OWN=delta is None,
            BLOCK=min(CHUNK, power(vocabulary)),
            NEAR=power(count),
            num_warps=4,
        )
    return out


def cluster(
    draft: Tensor,
    q: Tensor,
    p: Tensor,
    codebook: Tensor,
    kernels: Kernels,
    *,
    below: int = 7,
    above: int = 6,
    gap: float = 0.15,
    distance: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """`rules.cluster`: the masses (...) under p and q (..., V) of the clusters of drafts (...)."""
    unfit = f"the vocabulary of {p.shape[-1]} ids is above {WIDEST}" if p.shape[-1] > WIDEST else None
    if not kernels.triton("cluster", p, unfit=unfit):
        return rules.cluster(draft, q, p, codebook, below=below, above=above, gap=gap, distance=distance)
    block = power(p.shape[-1])
    ours, theirs = torch.empty(draft.shape, device=p.device), torch.empty(draft.shape, device=p.device)
    with on(p.device):
        _cluster[(draft.numel(),)](
            draft.contiguous(),
            q.contiguous(),
            p.contiguous(),
            codebook.contiguous(),
            ours,
            theirs,
            p.shape[-1],
            below,
            above,
            gap,
            distance,
            DIM=codebook.shape[1],
            CHANNELS=power(codebook.shape[1]),
            BLOCK=block,
            num_warps=max(1, min(16, block // 1024)),
        )
    return ours, theirs


@jit
def _shifted(
    drafts,
    p,
    neighbours,
    out,
    vocabulary,
    count,
    bound,
    OWN: constexpr,
    BLOCK: constexpr,
    NEAR: constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    draft, near = tl.load(drafts + row), tl.arange(0, NEAR)
    p += row * vocabulary
    out += row * vocabulary
    own = tl.load(p + draft)
    ids = tl.load(neighbours + draft * count + near, near < count, 0)
    mass = tl.load(p + ids, near < count, 0.0)
    moved = (tl.cumsum(mass, 0) <= (bound * own if OWN else bound)) & (near < count)
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(out + at, tl.load(p + at, at < vocabulary, 0.0), at < vocabulary)
    tl.debug_barrier()  # the copy is there before its places are written again
    tl.store(out + ids, 0.0, moved)
    tl.store(out + draft, own + tl.sum(tl.where(moved, mass, 0.0), 0))


@jit
def _cluster(
    drafts,
    q,
    p,
    codes,
    ours,
    theirs,
    vocabulary,
    below,
    above,
    gap,
    distance,
    DIM: constexpr,
    CHANNELS: constexpr,
    BLOCK: constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    draft, ids, channel = tl.load(drafts + row), tl.arange(0, BLOCK), tl.arange(0, CHANNELS)
    p += row * vocabulary
    q += row * vocabulary
    law = tl.load(p + ids, ids < vocabulary, -1.0)
    # Larger is ranked before: first by mass, which is not negative, then by the smaller id. None is 0.
    keys = (law.to(tl.int32, bitcast=True).to(tl.int64) << 32) + (2147483647 - ids)
    keys = tl.where(ids < vocabulary, keys, -1)
    own = tl.load(p + draft)
    start = (own.to(tl.int32, bitcast=True).to(tl.int64) << 32) + (2147483647 - draft)
    code = tl.load(codes + draft * DIM + channel, channel < DIM, 0.0)
    mass_p, mass_q, at = own, tl.load(q + draft), start
    last = tl.full([], 9223372036854775807, tl.int64)
    for step in range(below + above):
        at = tl.where(step == below, start, at)
        before = tl.min(tl.where(keys > at, keys, last), 0)
        behind = tl.max(tl.where(keys < at, keys, -1), 0)
        found = tl.where(step < below, before, behind)
        there = (found >= 0) & (found != last)
        member = tl.where(there, 2147483647 - (found & 2147483647), 0)
        there_p = tl.load(p + member)
        apart = tl.load(codes + member * DIM + channel, channel < DIM, 0.0) - code
        alike = there & (tl.abs(there_p - own) <= gap) & (tl.sum(apart * apart, 0) < distance)
        mass_p += tl.where(alike, there_p, 0.0)
        mass_q += tl.where(alike, tl.load(q + member), 0.0)
        at = tl.where(there, found, at)
    tl.store(ours + row, mass_p)
    tl.store(theirs + row, mass_q)
