"""SJD-PAC: the exact law of whole images, coupled Jacobi where the tree has one path, and what its bugs would do."""

import pytest
import torch
from small import pipeline
from toy import checked, images, p_value

from vargen.core import rules
from vargen.samplers import pac
from vargen.samplers.pac import ProactiveJacobi, ProactiveSettings
from vargen.samplers.sjd import CoupledJacobi, CoupledSettings

LEVEL = 1e-5  # per case; with fixed seeds a case either always passes or always fails
COUNT = 6400
PATHS = "0+1+2+00+01+10+20+200"  # a rank-2 branch that is deeper than the window's own line


def draw(tree="3-2-2"):
    return images(ProactiveJacobi, ProactiveSettings(window=4, tree=tree), COUNT, 128)


def caught(drawn):
    try:
        return p_value(drawn) < LEVEL
    except AssertionError:  # an image that the law rules out
        return True


@pytest.mark.parametrize(("window", "tree"), [(2, "3"), (4, "2-2"), (4, "4-4-4"), (4, PATHS)])
def test_law_of_whole_images(window, tree):
    assert p_value(checked(ProactiveJacobi, ProactiveSettings(window=window, tree=tree), COUNT)) > LEVEL


@pytest.mark.parametrize("guess", ["above", "sample-left"])
def test_law_behind_other_first_guesses(guess):
    settings = ProactiveSettings(window=4, tree="3-2-2", guess=guess)
    assert p_value(checked(ProactiveJacobi, settings, COUNT)) > LEVEL


@pytest.mark.parametrize("tree", ["1", "1-1-1"])
def test_a_tree_of_one_path_is_coupled_jacobi(tree):
    wanted = images(CoupledJacobi, CoupledSettings(window=4), 64, 16)
    assert (images(ProactiveJacobi, ProactiveSettings(window=4, tree=tree), 64, 16) == wanted).all()


def test_candidates_drawn_with_replacement_are_caught(monkeypatch):
    real = rules.without
    monkeypatch.setattr(rules, "without", lambda law, token: real(law, token) if law.dim() == 2 else law)
    assert p_value(draw("3-3")) < LEVEL  # judged as if without


def test_judging_a_candidate_by_the_law_of_another_path_is_caught(monkeypatch):
    follow = pac.Shape.__init__

    def wrong(self, *arguments):
        follow(self, *arguments)
        self.kin = torch.zeros_like(self.kin)  # nobody sees the other nodes on its path

    monkeypatch.setattr(pac.Shape, "__init__", wrong)
    assert caught(draw())


def test_leaving_the_kept_path_where_it_was_run_is_caught(monkeypatch):
    propose = ProactiveJacobi.propose

    def wrong(self):
        self._moves = None
        return propose(self)

    monkeypatch.setattr(ProactiveJacobi, "propose", wrong)
    assert caught(draw())


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"top_k": 2}, {"cfg_interval": 9}])
def test_an_image_depends_on_its_seed_alone(options):
    pipe, method = pipeline(), "sjd-pac:window=8:tree=3-2"
    together = pipe([0, 1, 2, 3] * 4, method=method, seed=0, output_type="latent", **options).tokens
    for index in (0, 6, 15):
        alone = pipe([index % 4], method=method, seed=index, output_type="latent", **options)
        assert torch.equal(alone.tokens[0], together[index])


def test_candidates_spare_forwards():
    pipe, asked = pipeline(), {"seed": 0, "output_type": "latent", "top_k": 8, "batch_size": 64}
    forwards = [  # of 128 images: 26.6, 26.0 and 24.4, where 16 images may order them by chance
        pipe([0, 1, 2, 3] * 32, method=method, **asked).trace.forwards_per_image
        for method in ("sjd-coupled:window=8", "sjd-pac:window=8:tree=2-2", "sjd-pac:window=8:tree=8-2-1")
    ]
    assert forwards[0] > forwards[1] > forwards[2]


@pytest.mark.parametrize("window", ["1", "3", "auto"])
def test_windows_too_narrow_for_the_tree(window):
    """They do without it: a tree of three levels needs four slots."""
    pipe = pipeline()
    found = pipe([0, 1], method=f"sjd-pac:window={window}:tree=2-2-2", seed=0, output_type="latent")
    if window == "3":
        wanted = pipe([0, 1], method="sjd-coupled:window=3", seed=0, output_type="latent")
        assert torch.equal(found.tokens, wanted.tokens)
    assert found.trace.forwards <= 36


@pytest.mark.parametrize(
    "neutral",
    [
        {"rule": "lantern", "delta": 0.0, "k": 3},
        {"rule": "gsd", "group": 1},
        {"rule": "cool", "decay": 0.0, "tolerance": 1.0},
    ],
)
def test_a_neutral_rule_draws_what_the_exact_one_draws(neutral, tmp_path, monkeypatch):
    monkeypatch.setenv("VARGEN_CACHE", str(tmp_path))
    codes, shape = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), {"window": 4, "tree": "3-2"}
    wanted = images(ProactiveJacobi, ProactiveSettings(**shape), 64, 16)
    assert (images(ProactiveJacobi, ProactiveSettings(**shape, **neutral), 64, 16, codebook=codes) == wanted).all()


def test_bad_settings():
    with pytest.raises(ValueError, match="a path stands twice"):
        pipeline()([0], method="sjd-pac:tree=0+0", seed=0)
    with pytest.raises(ValueError, match="got window 0"):
        pipeline()([0], method="sjd-pac:window=0", seed=0)
    with pytest.raises(ValueError, match="has no setting 'coupling'"):
        pipeline()([0], method="sjd-pac:coupling=gumbel", seed=0)
