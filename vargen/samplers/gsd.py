"""Grouped speculative decoding (GSD, arXiv 2508.07747): a draft counts with the ids that are ranked beside it.

With groups of one the rule is exact; elsewhere it is approximate. `gsd` is speculative decoding under it
(`speculative.py`); any drafting method takes it as `rule=gsd`.
"""

from typing import Any

from torch import Tensor

from vargen.core import rules
from vargen.core.dispatch import Kernels
from vargen.kernels.gsd import cluster


def gsd(
    draft: Tensor, q: Tensor, p: Tensor, u: Tensor, codebook: Tensor, kernels: Kernels, **cut: Any
) -> tuple[Tensor, Tensor]:
    """(kept, rest) of grouped speculative decoding: a draft is kept on the ratio of its `cluster`'s masses.

    `cut` says what is in a cluster. With no ranks beside its own, it is the draft and the rule is `rules.exact`.
    """
    ours, theirs = cluster(draft, q, p, codebook, kernels, **cut)
    return u * theirs < ours, rules.residual(p, q)
