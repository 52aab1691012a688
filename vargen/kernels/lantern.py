"""LANTERN's shifted law (arXiv 2410.03355): the mass of a draft's nearest codes, moved onto the draft.

The twin gathers and scatters whole laws. In the kernel a program takes one draft, gathers its neighbours' masses and
sums them in order.
"""

import torch
from torch import Tensor

from vargen.core.dispatch import Kernels, constexpr, jit, on, power, tl

CHUNK = 2048  # ids that are copied at a time


def shifted(
    draft: Tensor, p: Tensor, neighbours: Tensor, kernels: Kernels, *, delta: float | None = None, factor: float = 0.0
) -> Tensor:
    """As `plain`: the law (..., V) that each of drafts (...) is judged by under p (..., V), `neighbours` (V, k)."""
    if not kernels.triton("shifted", p):
        return plain(draft, p, neighbours, delta=delta, factor=factor)
    vocabulary, count = p.shape[-1], neighbours.shape[1]
    p, out = p.contiguous(), torch.empty(p.shape, dtype=torch.float32, device=p.device)
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


def plain(draft: Tensor, p: Tensor, neighbours: Tensor, *, delta: float | None = None, factor: float = 0.0) -> Tensor:
    """LANTERN's law (..., V): `p` with the mass of the draft's nearest codes moved onto the draft (arXiv 2410.03355).

    `neighbours` (V, k) are the nearest codes of each code, nearest first. Those are moved whose masses, summed in this
    order, stay within `delta` (LANTERN, an additive bound) or within `factor` times the draft's own mass (LANTERN++,
    arXiv 2502.06352). At 0 nothing moves and the law is `p`.

    `delta` bounds the total variation between `p` and the law that one draft is judged by. The law of the token that
    comes out, over all drafts, may lie farther from `p`: every draft has such a law of its own.
    """
    near, own = neighbours[draft], p.gather(-1, draft[..., None])  # (..., k), (..., 1)
    mass = p.gather(-1, near)
    moved = mass.cumsum(-1) <= (factor * own if delta is None else delta)
    mass = torch.where(moved, mass, 0.0)
    out = p.scatter(-1, near, p.gather(-1, near) - mass)
    return out.scatter(-1, draft[..., None], own + mass.sum(-1, keepdim=True))


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
