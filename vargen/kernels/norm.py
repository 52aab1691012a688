"""RMSNorm (arXiv 1910.07467) in one launch: normalised in float32, cast down, then multiplied by its weight.

`add_norm` is that of a sum, which it leaves as well: what a layer adds to its states, and the norm in front of the next
part, have the same numbers to read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels, constexpr, jit, on, power, tl

WIDEST = 1 << 15  # channels that a row's registers hold


def rms_norm(x: Tensor, weight: Tensor, eps: float, kernels: Kernels | None = None) -> Tensor:
    """`x` (..., d) divided by its root mean square and multiplied by `weight` (d,)."""
    if kernels is not None and kernels.triton("norm", x, unfit=_unfit(x), pays=kernels.captured):
        return _launch(x.contiguous(), None, weight, eps)[1]
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype) * weight


def add_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, eps: float, kernels: Kernels | None = None
) -> tuple[Tensor, Tensor]:
    """`x` + `change`, both (..., d), and `rms_norm` of that; without a change, x itself and its own."""
    if change is None:
        return x, rms_norm(x, weight, eps, kernels)
    if kernels is not None and kernels.triton("add_norm", x, unfit=_unfit(x, change), pays=kernels.captured):
        return _launch(x.contiguous(), change.contiguous(), weight, eps)
    x = x + change
    return x, rms_norm(x, weight, eps)


def _unfit(x: Tensor, change: Tensor | None = None) -> str | None:
    if x.shape[-1] > WIDEST:
        return f"rows of {x.shape[-1]} channels are above {WIDEST}"
    if change is not None and (x.shape, x.dtype) != (change.shape, change.dtype):
        return f"{x.dtype} {tuple(x.shape)} and {change.dtype} {tuple(change.shape)} are not alike"
    return None


def _launch(x: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    width, out = x.shape[-1], torch.empty_like(x)
    block, adds = power(width), change is not None
    total = torch.empty_like(x) if adds else x
    with on(x.device):
        _rows[(x.numel() // width,)](
            x, change if adds else x, weight, total, out, width, eps,
            ADD=adds, BLOCK=block, num_warps=max(1, min(8, block // 512)),
        )  # fmt: skip
    return total, out


@jit
def _rows(x, change, weight, total, out, width, eps, ADD: constexpr, BLOCK: constexpr):
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there, at = channel < width, row * width + channel
    y = tl.load(x + at, there, 0.0).to(tl.float32)
    if ADD:
        y = (y + tl.load(change + at, there, 0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + at, y, there)
        y = y.to(tl.float32)
    y = (y * tl.rsqrt(tl.sum(y * y, 0) / width + eps)).to(out.dtype.element_ty).to(tl.float32)
    y *= tl.load(weight + channel, there, 0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), there)
