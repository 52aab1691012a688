"""Acceptance rules: pure functions of a draft, the law it was drawn from, the law it should have, and noise.

`keep` is the one fact that lossless decoding rests on (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv
2302.01318): with x ~ q, keeping x with probability min(1, p(x) / q(x)) and else drawing from max(p - q, 0), normalised,
gives a token ~ p, whatever q was.
"""

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
    token, total = _draw(residual(p, q), u)
    return torch.where(total > 0, token, draft)


def keep(draft: Tensor, q: Tensor, p: Tensor, u_accept: Tensor, u_redraw: Tensor) -> tuple[Tensor, Tensor]:
    """(kept, token): `token` (...) ~ p where `draft` (...) ~ q; `kept` says where it is the draft. q, p (..., V)."""
    kept = accepts(draft, q, p, u_accept)
    return kept, torch.where(kept, draft, replace(draft, q, p, u_redraw))


def leading(kept: Tensor) -> Tensor:
    """Length (B,) of the run of True at the start of each row of `kept` (B, n)."""
    return kept.long().cumprod(-1).sum(-1)
