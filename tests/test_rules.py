"""Acceptance rules alone: their mass, by integration over the noise instead of sampling."""

import pytest
import torch

from vargen.core import rules


def laws(count: int = 200, ids: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(count, ids, generator=generator, dtype=torch.float64) ** 3 for _ in range(2))
    p[::3, :5] = 0  # ids that a filter ruled out
    return p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)


def kept_probability(p, q):
    """Of each draft (..., V), found by asking `accepts` over a fine grid of noise."""
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    ids = torch.arange(p.shape[-1])
    shape = (len(grid), len(ids))
    kept = rules.accepts(ids.expand(shape), q.expand(*shape, -1), p.expand(*shape, -1), grid[:, None].expand(shape))
    return kept.double().mean(0)


def test_kept_mass_plus_residual_mass_is_p():
    """`accepts` turns over exactly at min(1, p / q), and that mass and the residual's share of the rest add up to p."""
    p, q = laws()
    share = (p / q).clamp(max=1)
    ids = torch.arange(p.shape[-1]).expand(p.shape)
    wide = (*p.shape, p.shape[-1])
    for factor, expected in ((1 - 1e-12, share > 0), (1 + 1e-12, share == 1)):
        u = (share * factor).clamp(max=1 - 1e-16)
        assert torch.equal(rules.accepts(ids, q[:, None].expand(wide), p[:, None].expand(wide), u), expected)
    kept, rest = q * share, rules.residual(p, q)
    total = kept + (1 - kept.sum(-1, keepdim=True)) * rest / rest.sum(-1, keepdim=True)
    torch.testing.assert_close(total, p, rtol=0, atol=1e-12)


def test_accepts_with_the_stated_probability():
    p, q = laws(count=20)
    for one, other in zip(p, q, strict=True):
        torch.testing.assert_close(kept_probability(one, other), (one / other).clamp(max=1), rtol=0, atol=1e-4)


def test_replace_draws_the_residual():
    p, q = laws(count=5)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for one, other in zip(p, q, strict=True):
        rest = (one - other).clamp(min=0)
        shape = (len(u), len(one))
        ids = rules.replace(torch.zeros(len(u), dtype=torch.int64), other.expand(shape), one.expand(shape), u)
        share = torch.bincount(ids, minlength=len(one)).double() / len(u)
        torch.testing.assert_close(share, rest / rest.sum(), rtol=0, atol=2e-5)


def test_identical_laws_accept_everything_and_disjoint_laws_nothing():
    p, _ = laws()
    draft = p.argmax(-1)
    u = torch.linspace(0, 1 - 2**-24, len(p), dtype=torch.float64)
    kept, token = rules.keep(draft, p, p, u, u)
    assert kept.all()
    assert (token == draft).all()
    other = torch.zeros_like(p).scatter_(-1, draft[:, None], 1.0)  # only the draft
    rest = p.masked_fill(other > 0, 0)
    kept, token = rules.keep(draft, other, rest / rest.sum(-1, keepdim=True), u, u)
    assert not kept.any()
    assert (rest.gather(-1, token[:, None]) > 0).all()


def test_nothing_left_keeps_the_draft():
    p = torch.tensor([[0.25, 0.75]])
    assert rules.replace(torch.tensor([1]), p, p, torch.tensor([0.3])).item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draw_never_takes_an_impossible_id(dtype):
    weights = torch.zeros(6, 1000, dtype=dtype)
    weights[:, 3], weights[:, 500], weights[:, 998] = 0.3, 0.2, 1e-7
    u = torch.tensor([0.0, 0.1, 0.6, 0.9, 1 - 2**-24, 0.5999999], dtype=dtype)
    assert set(rules.draw(weights, u).tolist()) <= {3, 500, 998}


def test_leading():
    kept = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    assert rules.leading(kept).tolist() == [2, 0, 4]


def drawn_among(p, q, count, generator):
    """Tokens drawn by `among` from two candidates of law q without replacement, q and p (V,), float32."""
    exact = q.double().expand(count, -1)
    first = torch.multinomial(exact, 1, generator=generator)
    left = exact.scatter(1, first, 0.0)
    there = torch.cat([torch.ones(count, 1, dtype=torch.bool), left.sum(1, keepdim=True) > 0], dim=1)
    second = torch.multinomial(torch.where(there[:, 1:], left, 1.0), 1, generator=generator)
    drafts = torch.cat([first, second], dim=1)
    u, v = torch.rand(count, 2, generator=generator), torch.rand(count, generator=generator)
    rule = lambda draft, q, p, u, offset: rules.exact(draft, q, p, u)  # noqa: E731
    laws = q.expand(count, -1), p.expand(count, -1)
    rank, rest = rules.among(rule, drafts, there, *laws, u, torch.zeros(count))
    kept = drafts.gather(1, rank.clamp(min=0)[:, None])[:, 0]
    return torch.where(rank >= 0, kept, rules.draw(rest, v))


@pytest.mark.parametrize("rare", [1e-20, 1e-35, 1e-40])
def test_the_rest_of_a_sharp_law_is_a_law(rare):
    """However little mass the first candidate leaves, the second has a law: an absolute epsilon drew (.2, .8, 0)."""
    p, q, count = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.0, rare, 0.0]), 20_000
    tokens = drawn_among(p, q, count, torch.Generator().manual_seed(0))
    share = torch.bincount(tokens, minlength=3) / count
    assert (share - p).abs().max() < 5 * (0.25 / count) ** 0.5  # a false alarm: below 1e-5


def test_sharp_laws_of_many_kinds():
    """p from q over 80 orders of magnitude, 4 ids; chi-square of all of them together."""
    from scipy.stats import chi2

    generator, statistic, count = torch.Generator().manual_seed(1), 0.0, 5_000
    for _ in range(20):
        p = torch.softmax(torch.randn(4, generator=generator), 0)
        q = torch.softmax(40 * torch.randn(4, generator=generator), 0)
        tokens = drawn_among(p, q, count, generator)
        statistic += float(((torch.bincount(tokens, minlength=4) - count * p) ** 2 / (count * p)).sum())
    assert chi2.sf(statistic, 60) > 1e-6
