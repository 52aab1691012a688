"""Acceptance rules: pure functions of a draft, the law it was drawn from, the law it should have, and noise.

`keep` is the one fact that lossless decoding rests on (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv
2302.01318): with x ~ q, keeping x with probability min(1, p(x) / q(x)) and else drawing from max(p - q, 0), normalised,
gives a token ~ p, whatever q was.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def draw(weights: Tensor, u: Tensor) -> Tensor:
    """Ids (...) drawn from unnormalised `weights` (..., V) with one uniform `u` (...) each, by inverse distribution."""
    return _draw(weights, u)[0]


def _draw(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    cumulative = weights.cumsum(-1)
    total = cumulative[..., -1]
    ids = torch.searchsorted(cumulative, (u * total)[..., None], right=True).squeeze(-1)
    return ids.clamp_(max=weights.shape[-1] - 1), total


def accepts(draft: Tensor, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
    """Whether each draft (...) from law q (..., V) is kept under law p: u q(x) < p(x)."""
    index = draft[..., None]
    return u * q.gather(-1, index).squeeze(-1) < p.gather(-1, index).squeeze(-1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What a rejected draft is replaced from, (..., V), not normalised: max(p - q, 0)."""
    return (p - q).clamp_(min=0)


def replace(draft: Tensor, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
    """A token (...) from the residual; the draft where nothing is left because p = q up to rounding."""
    return _from(residual(p, q), draft, u)


def _from(rest: Tensor, draft: Tensor, u: Tensor) -> Tensor:
    token, total = _draw(rest, u)
    return torch.where(total > 0, token, draft)


def settle(kept: Tensor, rest: Tensor, draft: Tensor, u: Tensor) -> Tensor:
    """Tokens (...): the draft where it is kept, else one drawn from `rest` (..., V), what a rule leaves."""
    return torch.where(kept, draft, _from(rest, draft, u))


def keep(draft: Tensor, q: Tensor, p: Tensor, u_accept: Tensor, u_redraw: Tensor) -> tuple[Tensor, Tensor]:
    """(kept, token): `token` (...) ~ p where `draft` (...) ~ q; `kept` says where it is the draft. q, p (..., V)."""
    kept = accepts(draft, q, p, u_accept)
    return kept, torch.where(kept, draft, replace(draft, q, p, u_redraw))


def leading(kept: Tensor) -> Tensor:
    """Length (B,) of the run of True at the start of each row of `kept` (B, n)."""
    return kept.long().cumprod(-1).sum(-1)


Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(draft, q, p, u, offset) -> (kept, rest), as below; `offset` is a draft's place in its window or tree."""


def among(
    rule: Rule, drafts: Tensor, there: Tensor, q: Tensor | None, p: Tensor, u: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """The first of several drafts (B, K) that is kept, and what the token comes from where none is (B, V).

    Recursive rejection (arXiv 2402.14160): they are tried in turn, where they are `there` (B, K). A refused draft
    leaves what the rule leaves as the law for the next. `q` (B, V) is the law of the first draft; the others were drawn
    from it without replacement. None: they were chosen, not drawn, so that each has a law of its own, certain of it.
    The rank is (B,), -1 where none is kept; `offset` (B,) is their place for the rule; the law is not normalised.
    """
    rank, rest = torch.full_like(drafts[:, 0], -1), p
    for k in range(drafts.shape[1]):
        token, tried = drafts[:, k], there[:, k] & (rank < 0)
        if q is None:
            law = torch.zeros_like(p).scatter(-1, token[:, None], 1.0)
        else:
            total = q.sum(-1)
            tried = tried & (total > 0)  # beyond the law's support nothing was drawn
            law = _normalised(q, total[:, None])
            q = without(q, token)
        kept, left = rule(token, law, p, u[:, k], offset)
        total = left.sum(-1, keepdim=True)
        refused = (tried & ~kept)[:, None] & (total > 0)
        rest = torch.where(refused, left, rest)
        p = torch.where(refused, _normalised(left, total), p)
        rank = torch.where(tried & kept, k, rank)
    return rank, rest


def _normalised(mass: Tensor, total: Tensor) -> Tensor:
    """`mass` (B, V) as a law, however little there is; where there is none it stays."""
    return mass / torch.where(total > 0, total, 1.0)


def without(law: Tensor, token: Tensor) -> Tensor:
    """`law` (..., V), not normalised any more, without `token` (...)."""
    return law.scatter(-1, token[..., None], 0.0)


# Rules that judge a draft: (kept, rest), `rest` (..., V) being what its replacement is drawn from, not normalised. The
# relaxed ones are in `samplers/lantern.py`, `gsd.py` and `cool.py`.


def exact(draft: Tensor, q: Tensor, p: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(kept, rest) of speculative decoding: with `settle` it is `keep`."""
    return accepts(draft, q, p, u), residual(p, q)
