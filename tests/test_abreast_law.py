"""Rows abreast: the law of what is drawn, where it is known."""

from typing import Literal

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from toy import checked, images, p_value

from vargen.core import rules
from vargen.core.specs import RasterSpec
from vargen.core.warp import Warp
from vargen.samplers.contract import Task
from vargen.samplers.jacobi2d import Jacobi2D, Jacobi2DSettings
from vargen.samplers.zipar import AdaptiveZipAR, ZipAR, ZipARSettings

LEVEL = 1e-5  # per case; with fixed seeds a case either always passes or always fails
COUNT = 4800

GUESSES: list[tuple[bool, Literal["uniform", "above"]]] = [(False, "uniform"), (True, "above")]


class Beside:
    """Laws that rest on the tokens above and to the left alone, of a grid with 3 ids: no method abreast loses anything.

    A draft that is refined ahead of the row above is judged there as if the token above were a fourth id.
    """

    ROWS, COLUMNS, IDS = 3, 3, 3
    table = torch.randn(5, 4, IDS, generator=torch.Generator().manual_seed(5)) * 1.3  # left (or none), above, id

    def __init__(self, sampler):
        self.sampler, self.spec = sampler, RasterSpec(self.ROWS, self.COLUMNS, self.IDS, 1)

    def draw(self, settings, count):
        made = self.sampler(settings, Task(self.spec, torch.arange(count), Warp()))
        made.accept(self.table[4, 3].expand(count, 1, -1))
        while min(made.settled) < self.spec.slots:
            final, tokens, block = torch.from_numpy(made.committed), made.tokens.clone(), made.propose()
            slot = (block.slots + 1).clamp(max=self.spec.slots - 1)
            place = block.slots if block.places is None else block.places
            over = (slot - self.COLUMNS).clamp(min=0)
            above = torch.where((slot >= self.COLUMNS) & final.gather(1, over), tokens.gather(1, over), 3)
            left = torch.where((slot % self.COLUMNS == 0) | (place != block.slots), 4, block.tokens)
            made.accept(self.table[left, above])
        return made.tokens

    def law(self):
        """Probabilities (3^9,) of all images."""
        p = torch.ones(1, dtype=torch.float64)
        for slot in range(self.spec.slots):
            ids = torch.arange(len(p))
            left = ids % 3 if slot % self.COLUMNS else torch.full_like(ids, 4)
            above = ids // 3 ** (self.COLUMNS - 1) % 3 if slot >= self.COLUMNS else torch.full_like(ids, 3)
            p = (p[:, None] * self.table[left, above].double().softmax(-1)).flatten()
        return p.numpy()


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        (ZipAR, ZipARSettings(1)),
        (AdaptiveZipAR, ZipARSettings(1)),
        *(
            (Jacobi2D, Jacobi2DSettings(window=1, drafts=3, ahead=ahead, coupled=coupled, guess=guess))
            for ahead in (0, 1, 9)
            for coupled, guess in GUESSES
        ),
    ],
)
def test_where_nothing_is_lost_the_law_is_right(sampler, settings):
    """Pairs of neighbours and whole rows, of 20,000 images."""
    toy = Beside(sampler)
    drawn, law = toy.draw(settings, 20_000), toy.law().reshape([3] * 9)
    for slots in ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (4, 5, 8)):
        expected = law.sum(axis=tuple(set(range(9)) - set(slots))).flatten() * len(drawn)
        seen = (drawn[:, slots] * torch.tensor([9, 3, 1])).sum(-1).bincount(minlength=27)
        assert chisquare(seen.numpy(), expected).pvalue > LEVEL


@pytest.mark.parametrize("settings", [{}, {"coupled": True}, {"coupled": True, "guess": "above"}])
def test_law_of_whole_images_where_rows_wait(settings):
    assert p_value(checked(Jacobi2D, Jacobi2DSettings(window=2, **settings), COUNT)) > LEVEL


def test_resampling_from_p_instead_of_the_residual_is_caught(monkeypatch):
    monkeypatch.setattr(rules, "residual", lambda p, q: p)
    assert p_value(images(Jacobi2D, Jacobi2DSettings(window=2, coupled=True), COUNT, 128)) < LEVEL


def test_a_row_that_waited_in_vain_draws_afresh():
    """What was refused on trial says nothing of the token that is drawn once the row above is whole."""
    count, spec = 20_000, RasterSpec(2, 3, 4, 1)
    made = AdaptiveZipAR(ZipARSettings(1), Task(spec, torch.arange(count), Warp()))
    laws, waited = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.3, 0.3, 0.3]]).log(), None
    made.accept(laws[0].expand(count, 1, -1))
    while min(made.settled) < spec.slots:
        block = made.propose()
        made.accept(laws[min(1, int(made.committed[:, :3].sum(1).max()) - 1)].expand(count, block.tokens.shape[1], -1))
        if waited is None and made.committed[:, 2].all():
            waited = torch.from_numpy(~made.committed[:, 3])
    assert waited is not None
    seen = made.tokens[waited, 3].bincount(minlength=4).numpy()
    assert 0.4 * count < seen.sum() < 0.8 * count
    assert chisquare(seen, np.array([0.1, 0.3, 0.3, 0.3]) * seen.sum()).pvalue > LEVEL
