"""Continuous speculative decoding: the exact rule follows the law, and how far the paper's rule is off.

The laws are Gaussians in closed form. The level is 1e-5 per case; seeds are fixed.
"""

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from scipy.stats import kstest, norm, pearsonr
from small import randomised

from vargen import generate
from vargen.core import Condition, Denoising
from vargen.models.contract import ContinuousSpec
from vargen.models.diffusion import Path
from vargen.models.mar import MAR, MARConfig
from vargen.samplers import continuous
from vargen.samplers.continuous import ContinuousSpeculative, CSDSettings
from vargen.samplers.contract import LatentTask
from vargen.samplers.mar import MARSettings, MaskedAutoregressive

LEVEL, IMAGES = 1e-5, 4000
SPEC = ContinuousSpec(2, 1, 1)


@dataclass
class GaussianHead:
    """Steps x <- gain x + push z + noise: every path, and its end, is Gaussian."""

    gain: float
    push: float
    noise: float

    def law(self, z, how):
        """Mean and deviation of the end, given z after guidance."""
        mean, variance = torch.zeros_like(z), 1.0
        for step in range(how.steps):
            mean = self.gain * mean + self.push * z
            variance = self.gain**2 * variance + (self.noise**2 if step < how.steps - 1 else 0)
        return mean, variance**0.5

    def guided(self, z, how, images):
        c, u = (z, z) if how.guidance == 1 else z.split(images)
        return u + how.guidance * (c - u)

    def path(self, z, how, noise, *, keep=True):
        x, each = noise.start(), noise.steps(max(1, how.steps - 1))
        z, taken = self.guided(z, how, len(x)), []
        for step in range(how.steps):
            mean = self.gain * x + self.push * z
            taken.append((x, mean, torch.full_like(x, self.noise).square().log()))
            x = mean + self.noise * each[min(step, len(each) - 1)]
        return Path(*map(torch.stack, zip(*taken, strict=True)))

    def judge(self, z, how, states):
        mean = self.gain * states + self.push * self.guided(z, how, states.shape[1])
        return Path(states, mean, torch.full_like(states, self.noise).square().log())

    def sample(self, z, how, noise):
        return self.path(z, how, noise).end


class Toy:
    """Two tokens; the second one's law moves with the first."""

    spec, device = SPEC, torch.device("cpu")
    condition: Any = None

    def __init__(self, head, follow):
        self.head, self.follow = head, follow

    def make_cache(self, rows):
        return None

    def decode(self, condition, group, cache):
        before = group.values.sum((1, 2)) if group.known.shape[1] else torch.zeros(len(group.values))
        copies = len(condition.embedding) // len(before)
        z = condition.embedding[:, 0, 0] + self.follow * before.repeat(copies)
        return z[:, None, None].expand(-1, group.slots.shape[1], 1)

    def image(self, values):
        raise AssertionError("nobody looks at it")

    def law(self, group):
        return self.head, self.decode(self.condition, group, None)


LARGE, SMALL = (GaussianHead(0.8, 0.5, 0.6), 1.0), (GaussianHead(0.7, 0.6, 0.7), 0.8)
GUIDANCE = 1.5


def images(sampler, settings, *, batch=IMAGES, drafter=SMALL, guidance=GUIDANCE, count=IMAGES):
    """Tokens (images, 2) in the order drawn, and the sampler of the last batch."""
    out, made = [], None
    for start in range(0, count, batch):
        seeds = torch.arange(start, min(start + batch, count))
        # the conditional half is told 1, the unconditional half 0
        condition = Condition(torch.tensor([1.0] * len(seeds) + [0.0] * len(seeds))[:, None, None])
        small: Any = Toy(*drafter)
        small.condition = condition
        task = LatentTask(SPEC, seeds, guidance, drafter=small)
        made = sampler(settings, task)
        clock, counts, large = generate.Clock(Toy.device), generate.Counts(), cast(Any, Toy(*LARGE))
        for _ in generate.continuous(large, condition, made, clock, counts):
            pass
        first = task.order()[:, -1:]  # orders are used up from their end
        out.append(torch.cat([made.values[..., 0].gather(1, first), made.values[..., 0].gather(1, 1 - first)], 1))
    assert made is not None
    return torch.cat(out), made


def p_values(drawn, steps):
    """Of both tokens against their laws in closed form, and of their independence beyond that."""
    head, follow = LARGE
    told = []
    for index, before in enumerate((torch.zeros(len(drawn)), drawn[:, 0])):
        how = Denoising(steps, 1 + (GUIDANCE - 1) / 2)  # half way in both rounds: the published schedule
        z = how.guidance + follow * before  # c = 1 + f b, u = f b
        mean, deviation = head.law(z, how)
        told.append(((drawn[:, index] - mean) / deviation).numpy())
    return [kstest(part, norm.cdf).pvalue for part in told] + [pearsonr(*told)[1]]


def settings(steps, **options):
    return CSDSettings(iterations=2, upper=steps, lower=steps, prefill=0.0, **options)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 16, IMAGES])
def test_exact_rule_follows_the_law(steps, batch):
    count = {1: 200, 16: 480, IMAGES: IMAGES}[batch]
    drawn, made = images(ContinuousSpeculative, settings(steps), batch=batch, count=count)
    assert min(p_values(drawn, steps)) > LEVEL
    if steps == 1:
        assert made.drafts == made.drafts_kept  # one step has no noise but the start's, and is the large model's
    elif batch == IMAGES:
        assert 0.2 < made.drafts_kept / made.drafts < 0.95


def test_plain_decoding_follows_the_law():
    drawn, _ = images(MaskedAutoregressive, MARSettings(iterations=2, steps=5))
    assert min(p_values(drawn, 5)) > LEVEL


@pytest.mark.parametrize("bug", ["residual", "kept", "end"])
def test_planted_bugs_are_caught(bug, monkeypatch):
    """No thinning; a draft kept too often; a draft ended by the small model."""
    if bug == "residual":

        def thinned(self, large, small, how, fresh, chance):
            path = large.head.path(large.z, how, fresh)
            return torch.ones_like(chance, dtype=torch.bool), path.end[:, 0]

        monkeypatch.setattr(ContinuousSpeculative, "_thinned", thinned)
    elif bug == "kept":
        monkeypatch.setattr(continuous, "density", lambda path, how: 0.5 * density(path, how))
    else:
        judge = GaussianHead.judge

        def ended(self, z, how, states):
            out = judge(self, z, how, states)
            return Path(out.states, torch.cat([out.means[:-1], 0.7 * states[-1:]]), out.log_variances)

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
        return off, made.drafts_kept / made.drafts, drawn[:, 0].mean() - mean, drawn[:, 0].std() / deviation

    paper, exact = distance("paper", inner=inner), distance("exact")
    with capsys.disabled():
        for name, (off, share, shift, ratio) in (("paper", paper), ("exact", exact)):
            print(f"\ncsd rule {name}, inner {inner}: Kolmogorov-Smirnov distance {off:.3f} from the law, ", end="")
            print(f"mean off by {shift:+.3f}, deviation {ratio:.3f} of it, {share:.0%} of the drafts kept", end="")
    assert paper[0] > 2 * exact[0]


@pytest.mark.parametrize("options", [{}, {"rule": "paper"}])
def test_a_model_that_drafts_for_itself_is_kept(options):
    _, made = images(ContinuousSpeculative, settings(5, **options), drafter=LARGE, count=200, batch=200)
    assert made.drafts == made.drafts_kept == 400


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

        def law(self, group):
            return small.head, small.decode(conditions[1], group, None)

    task = LatentTask(model.spec, torch.arange(count), guidance, drafter=Drafter())
    made, counts = sampler(chosen, task), generate.Counts()
    for _ in generate.continuous(model, conditions[0], made, generate.Clock(model.device), counts):
        pass
    return made, counts


@torch.inference_mode()
def test_head_judges_its_own_path_as_it_made_it():
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
        assert made.drafts == made.drafts_kept
        first = round(chosen.prefill * 6)
        assert counts.forwards == first + -(-(6 - first) // chosen.draft)


@torch.inference_mode()
def test_real_tokens_follow_the_law():
    """Against plain decoding of other seeds, by a two-sample test on projections."""
    from scipy.stats import ks_2samp

    chosen = CSDSettings(iterations=3, upper=3, lower=3, highest=950, prefill=0.0)
    plain = MARSettings(iterations=3, steps=3, highest=950)
    small = tiny(0)
    for parameter, other in zip(small.parameters(), tiny(1).parameters(), strict=True):
        parameter.lerp_(other, 0.02)
    made, _ = real(ContinuousSpeculative, chosen, drafter=small, count=500)
    reference, _ = real(MaskedAutoregressive, plain, drafter=small, count=1000)
    assert 0.2 < made.drafts_kept / made.drafts < 0.9
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
        ({"upper": 0, "lower": 0}, "got upper 0"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        CSDSettings(**options)


def test_temperature_zero_has_no_density():
    with pytest.raises(ValueError, match="got temperature 0"):
        ContinuousSpeculative(CSDSettings(iterations=2), LatentTask(SPEC, torch.arange(2), temperature=0.0))
