"""Attention of a block's tokens over the slot cache: who sees what, and PyTorch's own kernels.

A Triton kernel that split the cache among programs lost to these when launched by itself (H100, LlamaGen-XL: 0.68x at
32 tokens; benchmarks/kernels-h100.json) and was removed. Inside a graph it had won (3B: 4.6 ms a forward, now 7.0).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


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

    @cached_property
    def mask(self) -> Tensor | None:
        """What is added to the scores (R, 1, n, stop); None where it would hide nothing."""
        alone = self.rows.shape[1] == 1 and self.first + 1 == self.stop
        if self.sees is None and self.padding is None and alone:
            return None  # a lone token at the last row sees everything
        return causal_mask(self.rows, self.stop, self.sees, self.padding, self.dtype)


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
    """Attention (R, n, H, D) of queries (R, n, H, D) over keys and values (R, stop, KH, D), KH dividing H."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=sight.mask, enable_gqa=k.shape[1] < q.shape[1])
    return out.transpose(1, 2)
