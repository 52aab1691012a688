"""Relaxed rules: small cases by hand, the exact rule at every neutral setting, LANTERN's bound, neighbour tables."""

from typing import Any

import numpy as np
import pytest
import torch
from small import pipeline
from toy import images, law, p_value

from vargen.core import registry, rules
from vargen.core.dispatch import Kernels
from vargen.kernels import lantern as shift
from vargen.samplers import neighbours, relax
from vargen.samplers.contract import Task
from vargen.samplers.cool import cool
from vargen.samplers.gsd import gsd
from vargen.samplers.lantern import lantern
from vargen.samplers.sjd import CoupledJacobi, CoupledSettings

IDS = 24
PLAIN = Kernels("torch")
CODES = torch.nn.functional.normalize(torch.randn(IDS, 3, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VARGEN_CACHE", str(tmp_path / "cache"))


def laws(*shape, seed=0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.rand(*shape, IDS, generator=generator, dtype=torch.float64) ** 4 for _ in range(2))
    u, v = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    q = q / q.sum(-1, keepdim=True)
    return (
        rules.draw(q, torch.rand(*shape, generator=generator, dtype=torch.float64)),
        q,
        p / p.sum(-1, keepdim=True),
        u,
        v,
    )


def near(k):
    return neighbours.table(CODES, k)


def settled(rule, draft, q, p, u, v, *more, **settings):
    """(kept, token) of a rule."""
    known = {"kernels": PLAIN} if rule in (lantern, gsd) else {}
    kept, rest = rule(draft, q, p, u, *more, **known, **settings)
    return kept, rules.settle(kept, rest, draft, v)


NEUTRAL: dict[str, Any] = {
    "lantern": lambda a: settled(lantern, *a, near=near(10), delta=0.0),
    "lantern++": lambda a: settled(lantern, *a, near=near(10), factor=0.0),
    "gsd": lambda a: settled(gsd, *a, codebook=CODES, below=0, above=0),
    "gsd-distance": lambda a: settled(gsd, *a, codebook=CODES, distance=0.0),
    "cool": lambda a: settled(cool, *a, weight=torch.ones(a[0].shape, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_are_the_exact_rule_draw_for_draw(name):
    arguments = laws(50, 40)
    kept, tokens = rules.keep(*arguments)
    assert 0.1 < kept.double().mean() < 0.9
    relaxed = NEUTRAL[name](arguments)
    assert torch.equal(relaxed[0], kept)
    assert torch.equal(relaxed[1], tokens)


P = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
Q = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
NEAR = torch.tensor([[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]])


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ({"delta": 0.1}, [0.1, 0.2, 0.3, 0.4]),  # the nearest neighbour alone has 0.2
        ({"delta": 0.25}, [0.3, 0.0, 0.3, 0.4]),
        ({"delta": 0.5}, [0.6, 0.0, 0.0, 0.4]),
        ({"delta": 1.0}, [1.0, 0.0, 0.0, 0.0]),
        ({"factor": 1.0}, [0.1, 0.2, 0.3, 0.4]),  # 0.2 is more than once the draft's 0.1
        ({"factor": 2.0}, [0.3, 0.0, 0.3, 0.4]),
        ({"factor": 5.0}, [0.6, 0.0, 0.0, 0.4]),
    ],
)
def test_shifted_by_hand(bound, expected):
    out = shift.plain(torch.tensor(0), P, NEAR, **bound)
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64))


def test_lantern_by_hand():
    """Draft 0, delta 0.25: kept with probability (0.1 + 0.2) / 0.7, else a draw from (0, 0, 0.2, 0.3) / 0.5."""
    u = torch.tensor([0.42, 0.44, 0.44, 0.99], dtype=torch.float64)
    v = torch.tensor([0.0, 0.39, 0.41, 0.99], dtype=torch.float64)
    kept, tokens = settled(
        lantern, torch.zeros(4, dtype=torch.int64), Q.expand(4, 4), P.expand(4, 4), u, v, NEAR, delta=0.25
    )
    assert kept.tolist() == [True, False, False, False]
    assert tokens.tolist() == [0, 2, 3, 3]


def test_gsd_by_hand():
    """Ranks of P: 3, 2, 1, 0. Draft 1 with one rank to either side: members 2, 1, 0, of which 2 lies too far away."""
    codes = torch.tensor([[0.0], [0.5], [2.0], [0.4]], dtype=torch.float64)
    q = torch.tensor([0.1, 0.6, 0.25, 0.05], dtype=torch.float64)
    u = torch.tensor([0.40, 0.44], dtype=torch.float64)  # ours: 0.1 + 0.2, theirs: 0.1 + 0.6
    draft, v = torch.tensor([1, 1]), torch.tensor([0.0, 0.0], dtype=torch.float64)
    kept, tokens = settled(gsd, draft, q.expand(2, 4), P.expand(2, 4), u, v, codes, below=1, above=1)
    assert kept.tolist() == [True, False]
    assert tokens.tolist() == [1, 2]  # the residual is (0, 0, 0.05, 0.35)
    alike, _ = settled(gsd, draft, q.expand(2, 4), P.expand(2, 4), u, v, codes, below=1, above=1, gap=0.05)
    assert alike.tolist() == [False, False]  # 0 is too unlike in probability: 0.2 / 0.6
    alone, _ = settled(gsd, draft, q.expand(2, 4), P.expand(2, 4), u, v, codes, below=0, above=0)
    assert alone.tolist() == [False, False]


def test_cool_by_hand():
    """Weight 2: draft 0 is kept with probability 0.2 / 0.7; else max(p - min(q, 2 p), 0) = (0, 0.1, 0.2, 0.3)."""
    u = torch.tensor([0.28, 0.29, 0.29, 0.29], dtype=torch.float64)
    v = torch.tensor([0.0, 0.16, 0.17, 0.51], dtype=torch.float64)
    draft, two = torch.zeros(4, dtype=torch.int64), torch.full((4,), 2.0, dtype=torch.float64)
    kept, tokens = settled(cool, draft, Q.expand(4, 4), P.expand(4, 4), u, v, two)
    assert kept.tolist() == [True, False, False, False]
    assert tokens.tolist() == [0, 1, 2, 3]


def outcome(q, p, delta, table):
    """The law of LANTERN's token, exactly: sum over drafts of the mass kept and of the residual's share."""
    drafts = torch.arange(IDS)
    moved = shift.plain(drafts, p.expand(IDS, IDS), table, delta=delta)  # (V, V)
    kept = (moved.diagonal() / q).clamp(max=1)
    rest = rules.residual(moved, q.expand(IDS, IDS))
    share = rest / rest.sum(-1, keepdim=True).clamp(min=1e-300)
    return q * kept + ((q * (1 - kept))[:, None] * share).sum(0)


@pytest.mark.parametrize("delta", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_lantern_s_total_variation_bound(delta):
    """Every draft is judged by a law within `delta` of p. What comes out is a law too, and may lie farther away."""
    _, q, p, _, _ = laws(300, seed=5)
    judged, drawn = [], []
    for i in range(300):
        moved = shift.plain(torch.arange(IDS), p[i].expand(IDS, IDS), near(IDS - 1), delta=delta)
        torch.testing.assert_close(moved.sum(-1), torch.ones(IDS, dtype=torch.float64))
        judged.append((moved - p[i]).abs().sum(-1).max().item() / 2)
        token = outcome(q[i], p[i], delta, near(IDS - 1))
        assert token.sum().item() == pytest.approx(1, abs=1e-9)
        drawn.append((token - p[i]).abs().sum().item() / 2)
    assert 0.9 * delta <= max(judged) <= delta + 1e-12
    if delta == 0:
        assert max(drawn) < 1e-9
    elif delta < 0.5:
        assert max(drawn) > delta  # not a promise of the rule: said so in its docstring


def test_acceptance_grows_with_every_relaxation():
    draft, q, p, u, v = laws(4000, seed=7)

    def share(kept):
        return kept.double().mean().item()

    exact = share(rules.keep(draft, q, p, u, v)[0])
    for shares in (
        [share(settled(lantern, draft, q, p, u, v, near(20), delta=d)[0]) for d in (0.0, 0.1, 0.3, 0.9)],
        [share(settled(lantern, draft, q, p, u, v, near(20), factor=f)[0]) for f in (0.0, 1.0, 4.0, 99.0)],
        [
            share(settled(cool, draft, q, p, u, v, torch.full((4000,), w, dtype=torch.float64))[0])
            for w in (1.0, 2.0, 4.0)
        ],
    ):
        assert shares[0] == exact
        assert shares == sorted(shares)
        assert shares[-1] > exact + 0.1


@pytest.mark.parametrize("normalised", [True, False])
def test_neighbours_against_all_distances(normalised, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    codes = CODES if normalised else CODES * torch.rand(IDS, 1, generator=torch.Generator().manual_seed(1))
    distances = (codes[:, None].double() - codes[None].double()).norm(dim=-1)
    for k in (1, 5, IDS - 1):
        found = neighbours.table(codes, k)
        for i in range(IDS):
            order = sorted((j for j in range(IDS) if j != i), key=lambda j: distances[i, j].item())
            assert found[i].tolist() == order[:k]


def test_neighbours_are_kept_on_disk_by_codebook(tmp_path, monkeypatch):
    first = neighbours.table(CODES, 4)
    (path,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(neighbours, "_nearest", None)  # not called again
        assert torch.equal(neighbours.table(CODES, 4), first)
    assert not torch.equal(neighbours.table(CODES.flip(0), 4), first)  # another codebook, another file
    assert len(list((tmp_path / "cache").iterdir())) == 2
    for damage in (path.read_bytes()[:50], b"", path.read_bytes()[:-4] + (999).to_bytes(4, "little")):
        path.write_bytes(damage)
        assert torch.equal(neighbours.table(CODES, 4), first)
    np.save(path, np.zeros((3, 4), dtype=np.int32))
    assert torch.equal(neighbours.table(CODES, 4), first)


@pytest.mark.parametrize("k", [0, IDS, -1])
def test_impossible_neighbours(k):
    with pytest.raises(ValueError, match=f"got {k} neighbours, expected 1 to {IDS - 1}"):
        neighbours.table(CODES, k)


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "lantern", "k": 3, "delta": 0.0},
        {"rule": "lantern", "k": 0},
        {"rule": "lantern++", "k": 3, "factor": 0.0},
        {"rule": "gsd", "group": 1},
        {"rule": "cool", "tolerance": 1.0, "decay": 0.0},
    ],
)
def test_a_neutral_sampler_draws_what_the_exact_one_draws(settings):
    codes = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    exact = images(CoupledJacobi, CoupledSettings(window=3), 64, 16)
    assert (images(CoupledJacobi, CoupledSettings(window=3, **settings), 64, 16, codebook=codes) == exact).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "lantern", "k": 3, "delta": 0.4},
        {"rule": "lantern++", "k": 3, "factor": 2.0},
        {"rule": "gsd"},
        {"rule": "cool", "tolerance": 3.0, "decay": 0.0},
    ],
)
def test_a_relaxed_sampler_is_caught_by_the_test_of_the_law(settings):
    codes = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)) * 0.3
    drawn = images(CoupledJacobi, CoupledSettings(window=3, **settings), 12800, 128, codebook=codes)
    ruled_out = set(drawn) - set(law().nonzero()[0])  # a neighbour's mass lets in what top-k had left out
    assert ruled_out or p_value(drawn) < 1e-5


@pytest.mark.parametrize("name", ["lantern", "lantern++", "gsd", "cool"])
def test_rules_by_name_in_a_pipeline(name):
    pipe = pipeline()
    forwards = {}
    for rule in ("exact", name):
        out = pipe([0, 1], method=f"sjd-coupled:window=8:k=20:rule={rule}", seed=0, output_type="latent")
        forwards[rule] = out.trace.forwards_per_image
    assert forwards[name] <= forwards["exact"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sjd-coupled:window=4:rule=lantern:k=48", "got 48 neighbours, expected 1 to 47 in a codebook of 48"),
        ("sjd-coupled:rule=lantern:k=-1", "got k -1"),
        ("sjd-coupled:rule=lantern:delta=1.5", "got delta 1.5, expected a number from 0 to 1"),
        ("sjd-coupled:rule=lantern:delta=nan", "got delta nan"),
        ("sjd-coupled:rule=lantern++:factor=-1", "got factor -1"),
        ("sjd-coupled:rule=gsd:group=0", "got group 0"),
        ("sjd-coupled:rule=cool:tolerance=0", "got tolerance 0"),
        ("sjd-coupled:rule=nope", "expected one of exact, lantern"),
        ("sjd-coupled:coupling=gumbel:rule=gsd", "expected coupling maximal"),
    ],
)
def test_wrong_settings(spec, words):
    with pytest.raises(ValueError, match=words.replace("+", r"\+")):
        pipeline()([0], method=spec, seed=0)


def test_codes_that_are_not_known():
    _, settings = registry.method("sjd-coupled:rule=gsd")
    spec = pipeline().transformer.spec
    task = Task(spec, torch.tensor([0]), None, codebook=None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="which this model does not tell"):
        relax.rule(settings, task)
    with pytest.raises(ValueError, match="there are 24 codes and 48 ids"):
        relax.rule(settings, Task(spec, torch.tensor([0]), None, codebook=CODES))  # pyright: ignore[reportArgumentType]
