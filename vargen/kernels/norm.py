"""RMSNorm (arXiv 1910.07467) in one launch: normalised in float32, cast down, then multiplied by its weight."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels, constexpr, jit, on, power, tl

WIDEST = 1 << 15  # channels that a row's registers hold


def rms_norm(x: Tensor, weight: Tensor, eps: float, kernels: Kernels | None = None) -> Tensor:
    """`x` (..., d) divided by its root mean square and multiplied by `weight` (d,)."""
    unfit = None if x.shape[-1] <= WIDEST else f"rows of {x.shape[-1]} channels are above {WIDEST}"
    if kernels is not None and kernels.triton("norm", x, unfit=unfit, pays=kernels.captured):
        return _launch(x.contiguous(), weight, eps)
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype) * weight


def _launch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    width, out = x.shape[-1], torch.empty_like(x)
    block = power(width)
    with on(x.device):
        _rows[(x.numel() // width,)](x, weight, out, width, eps, BLOCK=block, num_warps=max(1, min(8, block // 512)))
    return out


@jit
def _rows(x, weight, out, width, eps, BLOCK: constexpr):
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    there = channel < width
    y = tl.load(x + row * width + channel, there, 0.0).to(tl.float32)
    y = (y * tl.rsqrt(tl.sum(y * y, 0) / width + eps)).to(out.dtype.element_ty).to(tl.float32)
    y *= tl.load(weight + channel, there, 0.0).to(tl.float32)
    tl.store(out + row * width + channel, y.to(out.dtype.element_ty), there)
