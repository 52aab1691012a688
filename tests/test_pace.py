"""Blocks of a running batch are as wide as pays, and images do not hang on it."""

import itertools

import numpy as np
import pytest
import small
import torch

from vargen.core import registry
from vargen.engine import pace
from vargen.engine.pace import Pace
from vargen.pipelines.running import RunningImages

SETTLES = {1: 1.0, 2: 1.27, 4: 1.61, 8: 2.03, 16: 2.67}  # as pocket-llamagen with sjd-exact
CPU, FLAT = (3.5e-3, 0.05e-3, 0.15e-3, 0.2e-3), (4e-3, 0.0, 0.0, 0.0)  # seconds: see `Pace`


def seconds(costs, images, width):
    return float(np.array(costs) @ np.array([1, images, images * width, images * (width > 1)]))


def best(costs, images):
    return max(SETTLES, key=lambda width: SETTLES[width] / seconds(costs, images, width))


def play(costs, images, steps, seed=0, made=None):
    """Tokens a second against the best width's, of steps whose seconds and tokens vary."""
    rng, made, tokens, took = np.random.default_rng(seed), made or Pace(16), 0.0, 0.0
    for _ in range(steps):
        width = made.width(images)
        spent = seconds(costs, images, width) * rng.uniform(0.9, 1.3)
        settled = 1 + rng.poisson(SETTLES[width] - 1, images).mean()
        made.note(images, width, spent, settled)
        tokens, took = tokens + settled, took + spent
    wide = best(costs, images)
    return tokens / took * 1.1 * seconds(costs, images, wide) / SETTLES[wide]


@pytest.mark.parametrize("images", [1, 4, 16])
@pytest.mark.parametrize("costs", [CPU, FLAT])
def test_it_finds_the_width_that_pays(costs, images):
    assert play(costs, images, 2000) > 0.93


def test_it_follows_the_number_of_images():
    made = Pace(16)
    for images in (1, 16, 1, 16):
        play(CPU, images, 300, made=made)
    assert play(CPU, 16, 400, made=made) > 0.93
    assert play(CPU, 1, 400, made=made) > 0.93
    assert play(CPU, 16, 300, made=Pace(16)) > 0.8  # from the start


def test_a_window_is_the_most():
    assert Pace(1).widths == (1,)
    assert Pace(3).widths == (1, 2, 3)
    assert Pace(16).widths == (1, 2, 4, 8, 16)
    assert Pace(5).widths == (1, 2, 4, 5)


class Wild(Pace):
    """Any width, another one at every step."""

    turns = itertools.count()

    def width(self, images):
        return self.widths[np.random.default_rng(next(self.turns)).integers(len(self.widths))]


@pytest.mark.parametrize("window", [1, 2, 5, 16])
def test_images_do_not_hang_on_it(monkeypatch, window):
    monkeypatch.setattr("vargen.engine.running.Pace", Wild)
    pipe, out = small.pipeline(), {}
    batch = RunningImages(pipe, 4)
    batch.admit([0, 1, 2], num_images_per_prompt=4, seed=3, method=f"sjd-exact:window={window}")
    while batch.drawing:
        out |= {image.seed: image for image in batch.step()}
    *_, plain = pipe.stream([0, 1, 2], num_images_per_prompt=4, seed=3, method="ar")
    assert len(batch._counts.widths) > min(2, window - 1)
    for row, seed in enumerate(range(3, 15)):
        assert torch.equal(out[seed].partial.tokens[0], plain.tokens[row])


def test_only_methods_that_draw_the_same_image_at_any_width_are_asked(monkeypatch):
    monkeypatch.setattr("vargen.engine.running.Pace", Wild)
    pipe = small.pipeline()
    for name in registry.methods("raster", None):
        steady = registry.sampler(name).steady
        assert steady == (name == "sjd-exact")
    for adapts, method in ((True, "sjd-coupled:window=5"), (False, "sjd-exact:window=5")):
        batch = RunningImages(pipe, 4, adaptive_window=adapts)
        batch.admit([1], seed=3, method=method)
        while batch.drawing:
            batch.step()
        alone = pipe([1], seed=3, method=method).trace
        assert batch.forwards == alone.forwards


def test_steps_are_noted_as_they_are():
    made = Pace(16)
    for _ in range(pace.TRY * len(made.widths)):
        width = made.width(2)
        made.note(2, width, seconds(CPU, 2, width), SETTLES[width])
    costs = np.linalg.lstsq(made._products, made._sums, rcond=None)[0]
    assert [costs @ pace._shape(2, width) for width in made.widths] == pytest.approx(
        [seconds(CPU, 2, width) for width in made.widths], rel=0.05
    )
