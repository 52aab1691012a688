"""Keep or replace every draft of a window in one launch: the rule of `core/rules.py` that is exact.

A draft x ~ q is kept where u q(x) < p(x); else its place is taken by a draw from max(p - q, 0), or, where nothing is
left of that, it stays. The uniforms are hashed inside the kernel, from (seed, step, purpose, place in the window). Two
passes over the laws: what is left in all, then where the draw falls.
"""

import torch
from torch import Tensor

from vargen.core import rules
from vargen.core.dispatch import Kernels, constexpr, jit, on, power, tl
from vargen.core.noise import Purpose, Uniforms
from vargen.kernels import hashed

CHUNK = 2048  # ids that are summed at a time


def verify(drafts: Tensor, q: Tensor, p: Tensor, uniforms: Uniforms, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """(kept, token), both (B, w): `rules.keep` of drafts (B, w) from laws q (B, w, V) under laws p (B, w, V)."""
    if kernels.triton("verify", p):
        return _launch(drafts, q, p, uniforms)
    width = drafts.shape[1]
    accept, redraw = (uniforms.of(purpose, width) for purpose in (Purpose.ACCEPT, Purpose.REDRAW))
    return rules.keep(drafts, q, p, accept, redraw)


def _launch(drafts: Tensor, q: Tensor, p: Tensor, uniforms: Uniforms) -> tuple[Tensor, Tensor]:
    batch, width, vocabulary = p.shape
    drafts, q, p = drafts.contiguous(), q.contiguous(), p.contiguous()
    kept = torch.empty(batch, width, dtype=torch.bool, device=p.device)
    tokens = torch.empty_like(drafts)
    block = min(CHUNK, power(vocabulary))
    with on(p.device):
        _rows[(batch * width,)](
            drafts,
            q,
            p,
            uniforms.seed,
            uniforms.steps,
            kept,
            tokens,
            width,
            vocabulary,
            ACCEPT=int(Purpose.ACCEPT),
            REDRAW=int(Purpose.REDRAW),
            BLOCK=block,
            num_warps=max(1, min(8, block // 256)),
        )
    return kept, tokens


@jit
def _rows(
    drafts,
    q,
    p,
    seeds,
    steps,
    kept,
    tokens,
    width,
    vocabulary,
    ACCEPT: constexpr,
    REDRAW: constexpr,
    BLOCK: constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place, seed = row % width, tl.load(seeds + row // width)
    draft, at = tl.load(drafts + row), tl.load(steps + row // width)
    p += row * vocabulary
    q += row * vocabulary
    keep = hashed.uniform(seed, at, ACCEPT, place) * tl.load(q + draft) < tl.load(p + draft)
    token = draft
    if not keep:
        total, ids = tl.full([], 0.0, tl.float32), tl.arange(0, BLOCK)
        for start in range(0, vocabulary, BLOCK):
            there = start + ids < vocabulary
            rest = tl.load(p + start + ids, there, 0.0) - tl.load(q + start + ids, there, 0.0)
            total += tl.sum(tl.maximum(rest, 0.0), 0)
        target = hashed.uniform(seed, at, REDRAW, place) * total
        # The first id at which the running sum passes the target; rounding may carry it past the last, which is then
        # taken. An id of which nothing is left is never taken.
        found, last, before = tl.full([], -1, tl.int32), tl.full([], -1, tl.int32), tl.full([], 0.0, tl.float32)
        for start in range(0, vocabulary, BLOCK):
            there = start + ids < vocabulary
            rest = tl.load(p + start + ids, there, 0.0) - tl.load(q + start + ids, there, 0.0)
            rest = tl.maximum(rest, 0.0)
            passed = (before + tl.cumsum(rest, 0) > target) & (rest > 0)
            first = tl.min(tl.where(passed, start + ids, 2147483647), 0)
            found = tl.where((found < 0) & (first < vocabulary), first, found)
            last = tl.maximum(last, tl.max(tl.where(rest > 0, start + ids, -1), 0))
            before += tl.sum(rest, 0)
        found = tl.where(found < 0, last, found)
        token = tl.where(found < 0, draft, found.to(tl.int64))
    tl.store(kept + row, keep)
    tl.store(tokens + row, token)
