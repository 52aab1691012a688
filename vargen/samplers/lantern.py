"""LANTERN (arXiv 2410.03355) and LANTERN++ (2502.06352): codes that lie close to a draft's count as the draft.

With no neighbours, or a bound of 0, the rule is exact; elsewhere it is approximate. The methods `lantern` and
`lantern++` are classes in `speculative.py`, speculative decoding under this rule; any drafting method takes it as
`rule=lantern`, and `relax.py` is where rules are chosen.
"""

from torch import Tensor

from vargen.core import rules
from vargen.core.dispatch import Kernels
from vargen.kernels.lantern import shifted


def lantern(
    draft: Tensor, q: Tensor, p: Tensor, u: Tensor, near: Tensor, kernels: Kernels, **bound: float
) -> tuple[Tensor, Tensor]:
    """(kept, rest) under the `shifted` law: `rules.exact` with a draft's neighbours (V, k) counted as the draft.

    `bound` is its `delta` or `factor`.
    """
    return rules.exact(draft, q, shifted(draft, p, near, kernels, **bound), u)
