"""Continuous speculative decoding: the exact rule follows the law, and how far the paper's rule is off.

The laws are Gaussians in closed form. The level is 1e-5 per case; seeds are fixed.
"""

import pytest
import torch
from gaussian import IMAGES, LARGE, LEVEL, GaussianHead, images, p_values, settings
from scipy.stats import kstest, norm

from vargen.core.noise import Purpose
from vargen.core.types import Denoising, DenoisingPath
from vargen.samplers import continuous
from vargen.samplers.continuous import ContinuousSpeculative
from vargen.samplers.contract import LatentTask
from vargen.samplers.mar import MARSettings, MaskedAutoregressive


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 16, IMAGES])
def test_exact_rule_follows_the_law(steps, batch):
    count = {1: 200, 16: 480, IMAGES: IMAGES}[batch]
    drawn, made = images(ContinuousSpeculative, settings(steps), batch=batch, count=count)
    assert min(p_values(drawn, steps)) > LEVEL
    if steps == 1:
        assert made.counted[0] == made.counted[1]  # one step has no noise but the start's, and is the large model's
    elif batch == IMAGES:
        assert 0.2 < made.counted[1] / made.counted[0] < 0.95


@pytest.mark.parametrize("temperature", [0.6, 1.3])
def test_exact_rule_follows_the_law_at_a_temperature(temperature):
    drawn, _ = images(ContinuousSpeculative, settings(4), temperature=temperature)
    assert min(p_values(drawn, 4, temperature=temperature)) > LEVEL


APART = (GaussianHead(0.9, 0.3, 0.5), 1.0), (GaussianHead(0.4, 0.8, 0.5), 1.0)


@pytest.mark.parametrize("reused", [False, True])
def test_what_replaces_a_draft_takes_noise_of_its_own(reused, monkeypatch):
    """The draft's own would bias it: models far apart and 20,000 images show that."""
    if reused:

        def same(self, slots, *purposes, rows=None):
            first = purposes[:1] == (Purpose.RESIDUAL,)
            return noise(self, slots, *(() if first else purposes), rows=rows)

        monkeypatch.setattr(LatentTask, "noise", same)
    drawn, _ = images(ContinuousSpeculative, settings(2), pair=APART, batch=20_000, count=20_000)
    assert (min(p_values(drawn, 2, APART[0])) > LEVEL) == (not reused)


noise = LatentTask.noise


def test_purposes_are_apart():
    many = [Purpose.RESIDUAL + 8 * attempt + i for attempt in range(50) for i in range(3)]
    assert len(set(many) | set(Purpose)) == 150 + len(Purpose) - 1  # RESIDUAL is the first of them


def test_plain_decoding_follows_the_law():
    drawn, _ = images(MaskedAutoregressive, MARSettings(iterations=2, steps=5))
    assert min(p_values(drawn, 5)) > LEVEL


@pytest.mark.parametrize("bug", ["residual", "kept", "end"])
def test_planted_bugs_are_caught(bug, monkeypatch):
    """No thinning; a draft kept too often; a draft ended by the small model."""
    if bug == "residual":

        def thinned(self, large, small, how, fresh):
            path = large.head.path(large.z, how, fresh)
            return torch.full((len(path.end),), -1.0), path.end[:, 0]

        monkeypatch.setattr(ContinuousSpeculative, "_thinned", thinned)
    elif bug == "kept":
        monkeypatch.setattr(continuous, "density", lambda path, how: 0.5 * density(path, how))
    else:
        judge = GaussianHead.judge

        def ended(self, z, how, states):
            out = judge(self, z, how, states)
            return DenoisingPath(out.states, torch.cat([out.means[:-1], 0.7 * states[-1:]]), out.log_variances)

        monkeypatch.setattr(GaussianHead, "judge", ended)
    drawn, _ = images(ContinuousSpeculative, settings(5))
    assert min(p_values(drawn, 5)) < LEVEL


density = continuous.density


@pytest.mark.parametrize("inner", [1.0, 42.0])
def test_bias_of_the_papers_rule(inner, capsys):
    """It is not exact. How far it is off is shown, and the exact rule must be closer on the same laws."""

    def distance(rule, **options):
        drawn, made = images(ContinuousSpeculative, settings(5, rule=rule, **options))
        head, _ = LARGE
        mean, deviation = head.law(torch.tensor(1.25), Denoising(5))
        off = kstest(((drawn[:, 0] - mean) / deviation).numpy(), norm.cdf).statistic
        return off, made.counted[1] / made.counted[0], drawn[:, 0].mean() - mean, drawn[:, 0].std() / deviation

    paper, exact = distance("paper", inner=inner), distance("exact")
    with capsys.disabled():
        for name, (off, share, shift, ratio) in (("paper", paper), ("exact", exact)):
            print(f"\ncsd rule {name}, inner {inner}: Kolmogorov-Smirnov distance {off:.3f} from the law, ", end="")
            print(f"mean off by {shift:+.3f}, deviation {ratio:.3f} of it, {share:.0%} of the drafts kept", end="")
    assert paper[0] > 2 * exact[0]


@pytest.mark.parametrize("options", [{}, {"rule": "paper"}])
def test_a_model_that_drafts_for_itself_is_kept(options):
    _, made = images(ContinuousSpeculative, settings(5, **options), pair=(LARGE, LARGE), count=200, batch=200)
    assert made.counted[0] == made.counted[1] == 400
