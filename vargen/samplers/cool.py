"""COOL-SD (arXiv 2601.09212): a draft counts with a weight that falls from the first to the last.

At weight 1 the rule is exact; elsewhere it is approximate. `cool` is speculative decoding under it
(`speculative.py`); any drafting method takes it as `rule=cool`.
"""

import torch
from torch import Tensor

from vargen.core.rules import accepts, residual


def cool(draft: Tensor, q: Tensor, p: Tensor, u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(kept, rest) of COOL-SD (arXiv 2601.09212): kept with probability f = min(1, w p / q), rest max(p - q f, 0).

    `weight` (...) is w > 0, by the place in the draft, and q f = min(q, w p). At w = 1 the rule is `rules.exact`.
    """
    weighted = weight[..., None] * p
    return accepts(draft, q, weighted, u), residual(p, torch.minimum(q, weighted))
