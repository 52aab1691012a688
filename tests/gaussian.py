"""Laws in closed form for continuous speculative decoding: steps of a Gaussian head, and a model of two tokens."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from scipy.stats import kstest, norm, pearsonr

from vargen.core.specs import ContinuousSpec
from vargen.core.types import Condition, Denoising, DenoisingPath
from vargen.engine import loops
from vargen.samplers.continuous import CSDSettings
from vargen.samplers.contract import LatentTask

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
            noise = self.noise * how.temperature if step < how.steps - 1 else 0
            variance = self.gain**2 * variance + noise**2
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
            x = mean + self.noise * how.temperature * each[min(step, len(each) - 1)]
        return DenoisingPath(*map(torch.stack, zip(*taken, strict=True)))

    def judge(self, z, how, states):
        mean = self.gain * states + self.push * self.guided(z, how, states.shape[1])
        return DenoisingPath(states, mean, torch.full_like(states, self.noise).square().log())

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


def images(sampler, settings, *, batch=IMAGES, pair=(LARGE, SMALL), temperature=1.0, count=IMAGES):
    """Tokens (images, 2) in the order drawn, and the sampler of the last batch."""
    out, made = [], None
    for start in range(0, count, batch):
        seeds = torch.arange(start, min(start + batch, count))
        # the conditional half is told 1, the unconditional half 0
        condition = Condition(torch.tensor([1.0] * len(seeds) + [0.0] * len(seeds))[:, None, None])
        small: Any = Toy(*pair[1])
        small.condition = condition
        task = LatentTask(SPEC, seeds, GUIDANCE, temperature, small)
        made = sampler(settings, task)
        clock, counts, large = loops.Clock(Toy.device), loops.Counts(), cast(Any, Toy(*pair[0]))
        for _ in loops.continuous(large, condition, made, clock, counts):
            pass
        first = task.order()[:, -1:]  # orders are used up from their end
        out.append(torch.cat([made.values[..., 0].gather(1, first), made.values[..., 0].gather(1, 1 - first)], 1))
    assert made is not None
    return torch.cat(out), made


def p_values(drawn, steps, large=LARGE, temperature=1.0):
    """Of both tokens against their laws in closed form, and of their independence beyond that."""
    head, follow = large
    told = []
    for index, before in enumerate((torch.zeros(len(drawn)), drawn[:, 0])):
        how = Denoising(steps, 1 + (GUIDANCE - 1) / 2, temperature)  # half way in both rounds: the published schedule
        z = how.guidance + follow * before  # c = 1 + f b, u = f b
        mean, deviation = head.law(z, how)
        told.append(((drawn[:, index] - mean) / deviation).numpy())
    return [kstest(part, norm.cdf).pvalue for part in told] + [pearsonr(*told)[1]]


def settings(steps, **options):
    return CSDSettings(iterations=2, upper=steps, lower=steps, prefill=0.0, **options)
