"""The choice of a window: it settles on what pays, and an experiment never costs more than it may."""

import numpy as np
import pytest

from vargen.samplers.width import LADDER, LOSS_ALLOWED, WidthPolicy

SLOTS = 256


def decode(costs: dict[int, float], settle) -> tuple[float, WidthPolicy]:
    """Seconds to fill an image whose steps of width w settle `settle(w)` tokens."""
    policy, done, seconds = WidthPolicy("auto", costs, SLOTS), 0.0, 0.0
    while done < SLOTS:
        width = policy.width(SLOTS - int(done))
        gain = 1.0 if width == 1 else min(settle(width), width)
        policy.observe(width, int(done + gain) - int(done))
        done, seconds = done + gain, seconds + costs[width]
    return seconds, policy


def linear(slope: float) -> dict[int, float]:
    return {w: 1 + slope * (w - 1) for w in LADDER}


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("gain", [0.0, 0.3, 1.0, 3.0])
def test_never_more_than_five_per_cent_slower_than_plain(slope, gain):
    costs = linear(slope)
    seconds, _ = decode(costs, lambda w: 1 + gain * (1 - 1 / w))
    assert seconds <= SLOTS * costs[1] * 1.05


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@pytest.mark.parametrize("chance", [0.1, 0.3, 0.6])
def test_ragged_batches_are_not_slower_either(batch, chance):
    """Rows settle at random, each at a rate of its own; a batch waits for its slowest row."""
    random = np.random.default_rng(0)
    for trial in range(20):
        costs, settled, seconds = linear(0.03 + 0.01 * trial), np.zeros(batch, int), 0.0
        policy, rates = WidthPolicy("auto", costs, SLOTS), chance * random.uniform(0.5, 1.5, batch)
        while settled.min() < SLOTS:
            width, before = policy.width(SLOTS - settled.min()), settled.min()
            kept = random.random((batch, width - 1)) < rates[:, None]
            settled = np.minimum(SLOTS, settled + 1 + kept.cumprod(1).sum(1).astype(int))
            policy.observe(width, settled.min() - before)
            seconds += costs[width]
        assert seconds <= SLOTS * costs[1] * 1.05


def test_a_free_window_is_taken_whole():
    seconds, policy = decode(linear(0.0), lambda w: 1 + w / 16)
    assert policy.width(SLOTS) == 64
    assert seconds < SLOTS / 3


def test_an_expensive_window_is_never_tried():
    seconds, policy = decode(linear(1.0), lambda w: 4.0)
    assert policy.width(SLOTS) == 1
    assert seconds == SLOTS


def test_a_poor_stretch_does_not_end_the_trial():
    """A few steps that settle one token each, as at the top of a picture, then steps that settle three."""
    policy, done = WidthPolicy("auto", linear(0.07), SLOTS), 0
    for step in range(60):
        width = policy.width(SLOTS - done)
        gain = 1 if step < 12 else min(3, width)
        policy.observe(width, gain)
        done += gain
    assert policy.width(SLOTS - done) > 1


def test_a_disappointing_window_is_given_up_within_the_allowance():
    costs = linear(0.02)
    seconds, policy = decode(costs, lambda w: 1.0)
    assert policy.width(SLOTS) == 1
    assert seconds - SLOTS <= LOSS_ALLOWED * SLOTS + max(costs.values())


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 64, 100])
def test_fixed_window_narrows_only_where_the_image_ends(window):
    policy = WidthPolicy(window, None, SLOTS)
    for remaining in range(1, SLOTS):
        width = policy.width(remaining)
        assert min(window, max(remaining, 2)) <= width <= window or window == width == 1
    policy.observe(window, 1)
    assert policy.width(SLOTS) == window
