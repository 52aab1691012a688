"""The nearest code to each vector, without the table of all distances: what a VQ tokenizer's `encode` does."""

import torch
from torch import Tensor

from vargen.kernels.choice import Kernels, constexpr, jit, power, tl

VECTORS, CODES = 64, 128  # of a program, and at a time


def nearest(vectors: Tensor, codes: Tensor, kernels: Kernels, *, sphere: bool = False) -> Tensor:
    """Ids (N,) of the codes (V, D) nearest to vectors (N, D), float32; the lowest id of equals.

    On the `sphere`, where all have length 1, the nearest code has the largest product.
    """
    unfit = None if vectors.shape[1] <= 256 else f"vectors of {vectors.shape[1]} channels are above 256"
    if kernels.triton("nearest", vectors, unfit=unfit):
        return _launch(vectors.contiguous(), codes.contiguous())
    product = vectors @ codes.T
    return (product if sphere else 2 * product - codes.square().sum(1)).argmax(1)


def _launch(vectors: Tensor, codes: Tensor) -> Tensor:
    count, dim = vectors.shape
    ids = torch.empty(count, dtype=torch.int64, device=vectors.device)
    grid = (-(-count // VECTORS),)
    _block[grid](
        vectors, codes, ids, count, len(codes),
        DIM=dim, CHANNELS=power(dim), VECTORS=VECTORS, CODES=CODES, num_warps=4,
    )  # fmt: skip
    return ids


@jit
def _block(
    vectors,
    codes,
    ids,
    count,
    vocabulary,
    DIM: constexpr,
    CHANNELS: constexpr,
    VECTORS: constexpr,
    CODES: constexpr,
):
    vector, channel = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS), tl.arange(0, CHANNELS)
    inside = channel < DIM
    x = tl.load(vectors + vector[:, None].to(tl.int64) * DIM + channel, (vector < count)[:, None] & inside, 0.0)
    best, found = tl.full([VECTORS], float("inf"), tl.float32), tl.zeros([VECTORS], tl.int32)
    for start in range(0, vocabulary, CODES):
        code = start + tl.arange(0, CODES)
        there = code < vocabulary
        c = tl.load(codes + code[None].to(tl.int64) * DIM + channel[:, None], there[None] & inside[:, None], 0.0)
        far = tl.sum(c * c, 0)[None] - 2 * tl.dot(x, c, input_precision="ieee")
        far = tl.where(there[None], far, float("inf"))
        least, at = tl.min(far, 1, return_indices=True, return_indices_tie_break_left=True)
        found = tl.where(least < best, start + at, found)
        best = tl.minimum(best, least)
    tl.store(ids + vector, found.to(tl.int64), vector < count)
