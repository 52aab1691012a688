"""The gate of a feed-forward layer (SwiGLU, arXiv 2002.05202) in one launch: SiLU in float32, cast down, times `up`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels, constexpr, jit, on, tl

BLOCK = 1024  # channels of a program


def silu_mul(gate: Tensor, up: Tensor, kernels: Kernels | None = None) -> Tensor:
    """SiLU of `gate` times `up`, both (..., d): two tensors, or halves of one."""
    if kernels is not None and kernels.triton("silu_mul", gate, unfit=_unfit(gate, up), pays=kernels.captured):
        return _launch(gate, up)
    return F.silu(gate) * up


def _unfit(gate: Tensor, up: Tensor) -> str | None:
    if (gate.shape, gate.dtype) == (up.shape, up.dtype):
        return None
    return f"{gate.dtype} {tuple(gate.shape)} and {up.dtype} {tuple(up.shape)} are not alike"


def _launch(gate: Tensor, up: Tensor) -> Tensor:
    out, width = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device), gate.shape[-1]
    gate, up = (part.reshape(-1, width) for part in (gate, up))  # views, also of halves
    gate, up = (part if part.stride(1) == 1 else part.contiguous() for part in (gate, up))
    with on(gate.device):
        _channels[(len(gate), -(-width // BLOCK))](
            gate, up, out, gate.stride(0), up.stride(0), width, BLOCK=BLOCK, num_warps=4
        )
    return out


@jit
def _channels(gate, up, out, gate_row, up_row, width, BLOCK: constexpr):
    row, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = channel < width
    g = tl.load(gate + row * gate_row + channel, there, 0.0).to(tl.float32)
    g = (g / (1.0 + tl.exp(-g))).to(out.dtype.element_ty).to(tl.float32)
    u = tl.load(up + row * up_row + channel, there, 0.0).to(tl.float32)
    tl.store(out + row * width + channel, (g * u).to(out.dtype.element_ty), there)
