"""The clusters of grouped speculative decoding (GSD, arXiv 2508.07747): what they weigh under two laws.

The twin sorts the vocabulary. In the kernel a program takes one draft and walks the law from it to the ids that rank
next to it, without a sort.
"""

import torch
from torch import Tensor

from vargen.core.dispatch import Kernels, constexpr, jit, on, power, tl
from vargen.kernels.sample import WIDEST


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
    """As `plain`: the masses (...) under p and q (..., V) of the clusters of drafts (...)."""
    unfit = f"the vocabulary of {p.shape[-1]} ids is above {WIDEST}" if p.shape[-1] > WIDEST else None
    if not kernels.triton("cluster", p, unfit=unfit):
        return plain(draft, q, p, codebook, below=below, above=above, gap=gap, distance=distance)
    block = power(p.shape[-1])
    ours, theirs = (torch.empty(draft.shape, dtype=torch.float32, device=p.device) for _ in range(2))
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


def plain(
    draft: Tensor,
    q: Tensor,
    p: Tensor,
    codebook: Tensor,
    *,
    below: int = 7,
    above: int = 6,
    gap: float = 0.15,
    distance: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """The masses (...) under p and q (..., V) of each draft's cluster in grouped decoding (GSD, arXiv 2508.07747).

    The cluster of x are the ids that stand `below` ranks before to `above` ranks behind it in the order of p, whose
    probability differs from x's by `gap` at most, and whose codes lie within squared `distance`; and x.
    """
    order = p.argsort(dim=-1, descending=True, stable=True)
    rank = (order == draft[..., None]).long().argmax(-1, keepdim=True)  # (..., 1)
    places = rank + torch.arange(-below, above + 1, device=p.device)  # (..., n)
    inside, members = (places >= 0) & (places < p.shape[-1]), order.gather(-1, places.clamp(0, p.shape[-1] - 1))
    own = p.gather(-1, draft[..., None])
    close = (codebook[members] - codebook[draft][..., None, :]).square().sum(-1) < distance
    alike = (p.gather(-1, members) - own).abs() <= gap
    counted = inside & alike & (close | (members == draft[..., None]))
    ours, theirs = (torch.where(counted, law.gather(-1, members), 0.0).sum(-1) for law in (p, q))
    return ours, theirs


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
