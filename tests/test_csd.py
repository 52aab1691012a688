"""Continuous speculative decoding: attempts, limits, and real models in float64."""

from typing import Any

import pytest
import torch
from gaussian import LARGE, LEVEL, SMALL, GaussianHead, images, settings
from scipy.stats import ks_2samp
from small import randomised

from vargen.core.types import Denoising, DenoisingPath
from vargen.engine import loops
from vargen.models import diffusion
from vargen.models.mar import MAR, MARConfig
from vargen.samplers import continuous
from vargen.samplers.continuous import ContinuousSpeculative, CSDSettings
from vargen.samplers.contract import LatentTask
from vargen.samplers.mar import MARSettings, MaskedAutoregressive


def test_attempts_made_together_are_those_made_alone(monkeypatch):
    near = (LARGE, (GaussianHead(0.79, 0.51, 0.6), 1.0))
    many, _ = images(ContinuousSpeculative, settings(4), pair=near, count=1000, batch=1000)
    monkeypatch.setattr(continuous, "MOST_AT_A_TIME", 1)
    alone, _ = images(ContinuousSpeculative, settings(4), pair=near, count=1000, batch=1000)
    assert torch.allclose(many, alone, atol=1e-5)


def test_densities_that_are_no_numbers_are_refused():
    broken = (GaussianHead(0.8, float("nan"), 0.6), 1.0)
    with pytest.raises(ValueError, match="the densities of a denoising path are no numbers"):
        images(ContinuousSpeculative, settings(4), pair=(broken, SMALL), count=8, batch=8)


def test_ratio_of_the_papers_rule():
    """Against densities written out."""

    def path(seed):
        made = torch.Generator().manual_seed(seed)
        states, means, deviations = (torch.randn(3, 2, 1, 2, generator=made).double() for _ in range(3))
        return DenoisingPath(states, means, deviations)

    large, small, x = path(0), path(1), torch.tensor([[[0.3, -0.2]], [[1.0, 0.1]]]).double()
    made = object.__new__(ContinuousSpeculative)
    for inner in (1.0, 42.0):
        made._settings = settings(3, rule="paper", inner=inner)
        wanted = torch.zeros(2, 1).double()
        for which, sign in ((large, 1), (small, -1)):
            deviation = (0.5 * which.log_variances).exp()
            distance = ((x - which.means[-1]) / deviation[-1]).square() / inner
            wanted += sign * (-0.5 * distance - deviation[-1].log()).sum(-1)  # of the last step
            wanted -= sign * deviation[:-1].log().sum((0, -1))  # the variances of those before
        assert torch.allclose(made._ratio(x, large, small), wanted)


def test_tries_end_the_papers_rule(monkeypatch):
    """Where nothing is ever taken, the last of so many samples is."""
    counts = []

    def thinned(self, large, small, how, fresh):
        counts.append(len(fresh.parts))
        rows = len(fresh.slots)
        return torch.full((rows,), 2.0), torch.arange(rows).float()[:, None]

    monkeypatch.setattr(ContinuousSpeculative, "_thinned", thinned)
    monkeypatch.setattr(ContinuousSpeculative, "_ratio", lambda self, x, large, small: torch.full(x.shape[:2], -1e9))
    drawn, _ = images(ContinuousSpeculative, settings(3, rule="paper", tries=5), count=1, batch=1)
    assert counts == [1, 2, 4] * 2
    assert drawn.tolist() == [[1.0, 1.0]]  # the fifth: the second of the last four


def test_an_image_depends_on_its_seed_alone():
    for options in ({}, {"rule": "paper"}, {"rule": "paper", "draft": 2}):
        whole, _ = images(ContinuousSpeculative, settings(4, **options), batch=24, count=24)
        alone, _ = images(ContinuousSpeculative, settings(4, **options), batch=7, count=24)
        assert torch.allclose(whole, alone, atol=1e-5)


CONFIG = MARConfig(2, 2, 32, head_depth=1, head_width=32, side=4, channels=2, classes=5, buffer=4)


def tiny(seed, config=CONFIG):
    model = randomised(MAR(config), seed, 0.7)
    assert isinstance(model, MAR)
    return model.double()


def real(sampler, chosen, *, drafter, count=8, guidance=1.5):
    """Tokens of a real model in float64, and the sampler."""
    labels = torch.arange(count) % 5
    model, small = tiny(0), drafter
    task = LatentTask(model.spec, torch.arange(count), guidance, drafter=None)
    conditions = [each.class_condition(labels, guided=True) for each in (model, small)]

    class Drafter:
        forwards = 0

        def keep(self, rows):
            raise NotImplementedError  # nobody leaves here

        def law(self, group):
            return small.head, small.decode(conditions[1], group, None)

    task = LatentTask(model.spec, torch.arange(count), guidance, drafter=Drafter())
    made, counts = sampler(chosen, task), loops.Counts()
    for _ in loops.continuous(model, conditions[0], made, loops.Clock(model.device), counts):
        pass
    return made, counts


@pytest.mark.parametrize("rows", [1, 30, 1 << 17])
@torch.inference_mode()
def test_head_judges_its_own_path_as_it_made_it(rows, monkeypatch):
    """In one pass or in several."""
    monkeypatch.setattr(diffusion, "ROWS_AT_A_TIME", rows)
    head, z = tiny(0).head, torch.randn(6, 3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    task = LatentTask(CONFIG.spec, torch.arange(3))
    for guidance in (1.0, 2.0):
        how = Denoising(8, guidance, highest=950)
        path = head.path(z, how, task.noise(torch.arange(3).expand(3, -1)))
        again = head.judge(z, how, path.states)
        assert torch.allclose(again.means, path.means, rtol=1e-4, atol=1e-4)
        assert torch.allclose(again.log_variances, path.log_variances, rtol=1e-4, atol=1e-4)
        assert torch.equal(head.sample(z, how, task.noise(torch.arange(3).expand(3, -1))), path.end)


@torch.inference_mode()
def test_a_real_model_that_drafts_for_itself_is_kept():
    for options in ({}, {"rule": "paper", "draft": 3}, {"rule": "paper", "draft": 9, "prefill": 0.3}):
        chosen = CSDSettings(iterations=6, upper=6, lower=3, highest=950, **options)
        made, counts = real(ContinuousSpeculative, chosen, drafter=tiny(0))
        assert made.counted[0] == made.counted[1]
        first = round(chosen.prefill * 6)
        assert counts.forwards == first + -(-(6 - first) // chosen.draft)


@torch.inference_mode()
def test_real_tokens_follow_the_law():
    """Against plain decoding of other seeds, by a two-sample test on projections."""
    chosen = CSDSettings(iterations=3, upper=3, lower=3, highest=950, prefill=0.0)
    plain = MARSettings(iterations=3, steps=3, highest=950)
    small = tiny(0)
    for parameter, other in zip(small.parameters(), tiny(1).parameters(), strict=True):
        parameter.lerp_(other, 0.02)
    made, _ = real(ContinuousSpeculative, chosen, drafter=small, count=500)
    reference, _ = real(MaskedAutoregressive, plain, drafter=small, count=1000)
    assert 0.2 < made.counted[1] / made.counted[0] < 0.9
    drawn, others = made.values, reference.values[500:]
    for look in (lambda v: v.mean((1, 2)), lambda v: v.std((1, 2)), lambda v: v[:, 3, 0], lambda v: v[:, :, 1].amax(1)):
        found: Any = ks_2samp(look(drawn).numpy(), look(others).numpy())
        assert found.pvalue > LEVEL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "exact", "draft": 2}, "rule exact drafts one group at a time"),
        ({"draft": 0}, "got draft 0"),
        ({"prefill": 1.5}, "got prefill 1.5"),
        ({"inner": 0.0}, "inner 0.0"),
        ({"solver": "ddim"}, "got solver ddim, but csd judges the steps of ddpm"),
        ({"upper": 5, "lower": 6}, "got steps that grow from 5 to 6"),
        ({"upper": 0}, "got upper 0"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        CSDSettings(**options)
