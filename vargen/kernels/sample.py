"""From guided logits to the law that is sampled, and to a token drawn from it: `core/warp.py` in one launch.

A row of the vocabulary stays in registers. Top-k and top-p look for a threshold by bisection over the bits of the
scores, which needs no sort; ids that tie with the threshold stay, as in the twin. The draw is argmax(log p + g), its
noise hashed inside the kernel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vargen.core.dispatch import Kernels, constexpr, jit, on, power, tl
from vargen.core.noise import Table
from vargen.core.warp import Warp
from vargen.kernels import hashed

WIDEST = 1 << 15  # ids that a row's registers hold


def law(logits: Tensor, warp: Warp, kernels: Kernels) -> Tensor:
    """Probabilities (B, n, V), float32, of guided logits (B, n, V)."""
    if kernels.triton("sample", logits, unfit=_unfit(logits, warp)):
        return _launch(logits, warp, None, None)[0]
    return warp(logits)


def draw(logits: Tensor, warp: Warp, noise: Table, slots: Tensor, stops: Sequence[int], kernels: Kernels) -> Tensor:
    """Tokens (B, n): argmax(log p + g), with the Gumbel noise g of `slots` (B, n), row b's below `stops[b]`."""
    if kernels.triton("sample", logits, unfit=_unfit(logits, warp)):
        return _launch(logits, warp, noise, slots)[1]
    return (warp.scores(logits) + noise.at(slots, stops)).argmax(-1)


def _unfit(logits: Tensor, warp: Warp) -> str | None:
    if logits.shape[-1] > WIDEST:
        return f"the vocabulary of {logits.shape[-1]} ids is above {WIDEST}"
    if warp.top_n_sigma or warp.temperature_last:
        return "top-n-sigma, and a temperature behind the truncation, are for PyTorch alone"
    return None


def _launch(logits: Tensor, warp: Warp, noise: Table | None, slots: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, width, vocabulary = logits.shape
    logits, drawing = logits.contiguous(), noise is not None and slots is not None
    block, own, shared = power(vocabulary), logits, warp
    if warp.apart:  # temperature and top-p of each image, (B, 2)
        parts = (
            torch.as_tensor(part, device=logits.device).expand(batch, 1, 1) for part in (warp.temperature, warp.top_p)
        )
        own, shared = torch.cat(list(parts), 1).flatten(1).float().contiguous(), Warp(top_k=warp.top_k)
    p = logits.new_empty(0 if drawing else logits.shape, dtype=torch.float32)
    tokens = torch.empty(batch, width, dtype=torch.int64, device=logits.device)
    with on(logits.device):
        _rows[(batch * width,)](
            logits,
            logits if warp.allowed is None else warp.allowed,
            own,
            tokens if noise is None else noise.seed,
            tokens if slots is None else slots.contiguous(),
            p,
            tokens,
            width,
            vocabulary,
            shared.temperature,
            warp.top_k,
            shared.top_p,
            0 if noise is None else noise.purpose,
            ALLOWED=warp.allowed is not None,
            OWN=warp.apart,
            TEMPERED=warp.apart or warp.temperature != 1.0,
            TOP_K=0 < warp.top_k < vocabulary,
            TOP_P=warp.apart or warp.top_p < 1.0,
            DRAW=drawing,
            BLOCK=block,
            num_warps=max(1, min(16, block // 1024)),
        )
    return p, tokens


@jit
def ordered(x):
    """Floats as uint32 in the same order; both zeros alike."""
    raw = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return (raw ^ ((raw >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@jit
def _rows(
    logits,
    allowed,
    own,
    seeds,
    slots,
    p,
    tokens,
    width,
    vocabulary,
    temperature,
    top_k,
    top_p,
    purpose,
    ALLOWED: constexpr,
    OWN: constexpr,
    TEMPERED: constexpr,
    TOP_K: constexpr,
    TOP_P: constexpr,
    DRAW: constexpr,
    BLOCK: constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, BLOCK)
    there = ids < vocabulary
    scores = tl.load(logits + row * vocabulary + ids, there, float("-inf")).to(tl.float32)
    if ALLOWED:
        scores = tl.where(tl.load(allowed + ids, there, 0) != 0, scores, float("-inf"))
    if OWN:
        temperature = tl.load(own + row // width * 2)
        top_p = tl.load(own + row // width * 2 + 1)
        scores = tl.where(temperature == 1.0, scores, (scores - tl.max(scores, 0)) / temperature)
    elif TEMPERED:
        scores = (scores - tl.max(scores, 0)) / temperature
    if TOP_K:  # the largest threshold that k scores reach; two bits a turn, three counts in one sum
        keys, least = ordered(scores), tl.full([], 0, tl.uint32)
        for turn in range(16):
            step = tl.full([], 1, tl.uint32) << (30 - 2 * turn)
            one, two, three = (keys >= least + step), (keys >= least + 2 * step), (keys >= least + 3 * step)
            counts = tl.sum(one.to(tl.int64) + (two.to(tl.int64) << 20) + (three.to(tl.int64) << 40), 0)
            reached = ((counts & 0xFFFFF) >= top_k).to(tl.uint32)
            reached += (((counts >> 20) & 0xFFFFF) >= top_k).to(tl.uint32)
            reached += ((counts >> 40) >= top_k).to(tl.uint32)
            least += reached * step
        scores = tl.where(keys >= least, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 0))
    if TOP_P:  # the largest threshold above which there is more than top_p
        keys, least, most = ordered(scores), tl.full([], 0, tl.uint32), top_p * tl.sum(weights, 0)
        for turn in range(32):
            step = tl.full([], 1, tl.uint32) << (31 - turn)
            mass = tl.sum(tl.where(keys >= least + step, weights, 0.0), 0)
            least += tl.where(mass > most, step, 0).to(tl.uint32)
        scores = tl.where(keys >= least, scores, float("-inf"))
        weights = tl.where(keys >= least, weights, 0.0)
    if DRAW:
        g = hashed.gumbel(tl.load(seeds + row // width), tl.load(slots + row), purpose, ids)
        best = tl.argmax(tl.where(there, scores + g, float("-inf")), 0, tie_break_left=True)
        tl.store(tokens + row, tl.minimum(best, vocabulary - 1).to(tl.int64))  # of laws that are none, some id
    else:
        tl.store(p + row * vocabulary + ids, weights / tl.sum(weights, 0), there)
