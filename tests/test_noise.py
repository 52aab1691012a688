"""Noise: the published stream, independence of shape and order, and the right distributions."""

import numpy as np
import pytest
import torch
from scipy import stats

from vargen.core import noise
from vargen.core.noise import Purpose

SEEDS = torch.tensor([0, 1, -5, 1 << 62])


def splitmix64(state: int) -> int:
    """The generator in plain integers, as published."""
    mask = (1 << 64) - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_bits_are_splitmix64():
    gamma = 0x9E3779B97F4A7C15
    for row, seed in enumerate(SEEDS.tolist()):
        for slot in (0, 7):
            key = splitmix64(splitmix64(splitmix64(seed) + gamma * Purpose.ACCEPT) + gamma * (slot + 1))
            expected = [splitmix64(key + gamma * (i + 1)) for i in range(5)]
            got = noise.bits(SEEDS, torch.tensor([[slot]]), Purpose.ACCEPT, 5)[row, 0]
            assert [value % (1 << 64) for value in got.tolist()] == expected


def test_no_seed_is_another_at_another_purpose():
    """Seeds that lie a multiple of the generator's step apart share nothing, whatever the two are for."""
    slots, step = torch.arange(8)[None], noise._signed(0x9E3779B97F4A7C15)
    drawn = [
        noise.bits(torch.tensor([noise._signed(5 + k * step)]), slots, purpose, 4).flatten()
        for k in range(4)
        for purpose in Purpose
    ]
    together = torch.cat(drawn)
    assert together.unique().numel() == together.numel()


def test_published_vector():
    """The first outputs of SplitMix64 from state 1234567, as its authors list them."""
    gamma, expected = 0x9E3779B97F4A7C15, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567 + gamma * (i + 1)) for i in range(3)] == expected


def test_values_depend_on_seed_slot_and_purpose_alone():
    slots = torch.arange(6)[None]
    together = noise.gumbel(SEEDS, slots, Purpose.TOKEN, 9)
    assert torch.equal(noise.gumbel(SEEDS.flip(0), slots, Purpose.TOKEN, 9).flip(0), together)
    assert torch.equal(noise.gumbel(SEEDS[2:3], slots[:, 4:5], Purpose.TOKEN, 9), together[2:3, 4:5])
    assert torch.equal(noise.gumbel(SEEDS, slots, Purpose.TOKEN, 3), together[..., :3])
    assert not torch.equal(noise.gumbel(SEEDS, slots, Purpose.GUESS, 9), together)
    assert together.flatten().unique().numel() == together.numel()


@pytest.mark.parametrize(
    ("kind", "law"), [(noise.uniform, "uniform"), (noise.gumbel, "gumbel_r"), (noise.normal, "norm")]
)
def test_distributions(kind, law):
    values = kind(torch.arange(100), torch.arange(20)[None], Purpose.TOKEN, 50)
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert stats.kstest(values.flatten().double().numpy(), law).pvalue > 1e-4
    flat = values.reshape(-1, 50).double().numpy()
    correlation = np.corrcoef(flat.T) - np.eye(50)
    assert np.abs(correlation).max() < 6 / np.sqrt(len(flat))


def test_uniform_is_below_one():
    values = noise.uniform(torch.arange(1000), torch.arange(100)[None], Purpose.ACCEPT, 10)
    assert values.min() >= 0
    assert values.max() <= 1 - 2**-24


def at(kind, table, slots, size):
    return kind(table.seed, slots, table.purpose, size)


@pytest.mark.parametrize("ahead", [1, 3, 32])
def test_table_equals_the_function_wherever_rows_stand(ahead):
    table = noise.Table(noise.gumbel, SEEDS, Purpose.TOKEN, size=4, reach=5, ahead=ahead)
    stops, rng = [0] * len(SEEDS), np.random.default_rng(0)
    for _ in range(60):
        stops = [stop + int(more) for stop, more in zip(stops, rng.integers(0, 6, len(stops)), strict=True)]
        slots = torch.tensor([[max(0, stop - int(k)) for k in rng.integers(1, 6, 3)] for stop in stops])
        assert torch.equal(table.at(slots, [max(1, stop) for stop in stops]), at(noise.gumbel, table, slots, 4))


@pytest.mark.parametrize("late", [False, True])
def test_tables_whose_rows_come_and_go_equal_the_function(late):
    """`late`: the rows that join were never asked for anything."""
    table, other = (noise.Table(noise.uniform, seeds, 2, size=3) for seeds in (SEEDS, SEEDS[:2] + 7))
    for stop in range(1, 40):
        table.at(torch.full((len(SEEDS), 1), stop - 1), [stop] * len(SEEDS))
    if not late:
        other.at(torch.zeros(2, 1, dtype=torch.int64), [1, 1])
    table.keep(torch.tensor([3, 0]))
    table.join(other)
    for step in range(50):
        slots = torch.tensor([[39 + step], [39 + step], [step], [step]])
        assert torch.equal(table.at(slots, (slots[:, 0] + 1).tolist()), at(noise.uniform, table, slots, 3))


def test_uniforms_are_keyed_by_the_steps_of_each_image():
    one, other = noise.Uniforms(SEEDS, 4), noise.Uniforms(SEEDS[:1] + 9, 4)
    one.of(3, 4)
    for _ in range(5):
        one.advance()
    other.advance()
    one.join(other)
    one.keep(torch.tensor([1, len(SEEDS)]))
    for _ in range(40):
        one.advance()
    seeds, steps = torch.cat([SEEDS[1:2], SEEDS[:1] + 9]), torch.tensor([[45], [41]])
    for purpose in (3, 4):  # of which one was asked for before
        assert torch.equal(one.of(purpose, 3, 1), noise.uniform(seeds, steps, purpose, 4)[:, 0, 1:3])
