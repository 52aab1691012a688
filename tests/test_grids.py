"""Two grids in one image: where each begins, and that every method knows it. The law is enumerated."""

import pytest
import torch
from toy import IDS, checked, images, law, p_value

from vargen.core.specs import RasterSpec
from vargen.engine.guidance import Guidance
from vargen.samplers.ar import ARSettings, Autoregressive
from vargen.samplers.jacobi2d import Jacobi2D, Jacobi2DSettings
from vargen.samplers.pac import ProactiveJacobi, ProactiveSettings
from vargen.samplers.sjd import CoupledJacobi, CoupledSettings, SJDSettings, SpeculativeJacobi
from vargen.samplers.sjd_exact import ExactJacobi, ExactSettings
from vargen.samplers.zipar import AdaptiveZipAR, ZipAR, ZipARSettings

LEVEL, COUNT = 1e-5, 6400
TALL = RasterSpec(1, 3, IDS, 1, previews=((1, 1),))
WIDE = RasterSpec(2, 1, IDS, 1, previews=((1, 2),))  # a preview wider than what it shows
SPEC = RasterSpec(4, 6, 99, 0, previews=((1, 1), (2, 3)))
EXACT = {
    "ar": (Autoregressive, ARSettings()),
    "sjd": (SpeculativeJacobi, SJDSettings(window=3)),
    "sjd-preview": (SpeculativeJacobi, SJDSettings(window=4, guess="preview")),
    "coupled-above": (CoupledJacobi, CoupledSettings(window=4, guess="above")),
    "coupled-preview": (CoupledJacobi, CoupledSettings(window=3, guess="sample-preview")),
    "gumbel-preview": (CoupledJacobi, CoupledSettings(window=4, guess="preview", coupling="gumbel")),
    "exact-preview": (ExactJacobi, ExactSettings(window=4, guess="preview")),
    "pac-preview": (ProactiveJacobi, ProactiveSettings(window=3, guess="preview")),
}
WAITING = {
    "zipar": (ZipAR, ZipARSettings(9)),
    "zipar-adaptive": (AdaptiveZipAR, ZipARSettings(9)),
    "jacobi-2d": (Jacobi2D, Jacobi2DSettings(window=9, drafts=3)),
    "jacobi-2d-above": (Jacobi2D, Jacobi2DSettings(window=9, drafts=3, ahead=2, coupled=True, guess="above")),
}


@pytest.mark.parametrize("spec", [TALL, WIDE])
@pytest.mark.parametrize("name", EXACT)
def test_law_of_whole_images(name, spec):
    """`checked` also holds batches of 1 and 4 to draw the same."""
    sampler, settings = EXACT[name]
    drawn = checked(sampler, settings, COUNT, spec=spec)
    assert (images(sampler, settings, 160, 16, spec=spec) == drawn[:160]).all()
    assert p_value(drawn, spec=spec) > LEVEL


@pytest.mark.parametrize("spec", [TALL, WIDE])
@pytest.mark.parametrize("name", WAITING)
def test_rows_that_wait_for_all_of_the_one_above_draw_the_law(name, spec):
    sampler, settings = WAITING[name]
    assert p_value(checked(sampler, settings, COUNT, spec=spec), spec=spec) > LEVEL


def test_a_draft_that_is_believed_is_caught(monkeypatch):
    """What `guess=preview` copies is a draft: taken for a token, it leaves the law."""
    from vargen.core import rules

    monkeypatch.setattr(rules, "residual", lambda p, q: p)
    sampler, settings = EXACT["sjd-preview"]
    assert p_value(images(sampler, settings, COUNT, 128, spec=TALL), spec=TALL) < LEVEL
    assert law(Guidance(1.7), TALL).sum() == pytest.approx(1)


def test_grids_follow_one_another():
    assert [(grid.first, grid.stop) for grid in SPEC.grids] == [(0, 1), (1, 7), (7, 31)]
    assert SPEC.slots == 31
    parts = SPEC.split(torch.arange(62).view(2, 31))
    assert [tuple(part.shape) for part in parts] == [(2, 1, 1), (2, 2, 3), (2, 4, 6)]
    assert parts[2][1, 0, 0] == 31 + 7
    first, columns = SPEC.around(torch.tensor([0, 1, 6, 7, 30]))
    assert isinstance(first, torch.Tensor)
    assert isinstance(columns, torch.Tensor)
    assert first.tolist() == [0, 1, 1, 7, 7]
    assert columns.tolist() == [1, 3, 3, 6, 6]


def test_a_preview_shows_the_same_place():
    shown = SPEC.previewed(torch.arange(31))
    assert (shown[:7] == -1).all()  # previews have none
    assert shown[7:].view(4, 6).tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2
    odd = RasterSpec(5, 4, 9, 0, previews=((2, 3),)).previewed(torch.arange(6, 26)).view(5, 4)
    assert odd.tolist() == [[0, 0, 1, 2]] * 3 + [[3, 3, 4, 5]] * 2


def test_previews_and_newlines_are_no_layout():
    with pytest.raises(ValueError, match="newlines"):
        RasterSpec(2, 2, 9, 0, newline=8, previews=((1, 1),))


@pytest.mark.parametrize("guess", ["preview", "sample-preview"])
def test_a_model_without_previews_takes_no_guess_from_them(guess):
    from small import pipeline

    with pytest.raises(ValueError, match="draws no preview"):
        pipeline()([0], method=f"sjd:window=4:guess={guess}")


@pytest.mark.parametrize("guess", ["left", "above", "preview"])
def test_first_drafts_come_from_their_own_grid(guess):
    """By hand: the nearest known slot of the same grid, to the left or above, or the preview's, where it is known."""
    from vargen.core.warp import Warp
    from vargen.samplers.contract import Task

    made = ExactJacobi(ExactSettings(window=8, guess=guess), Task(SPEC, torch.arange(1), Warp()))
    for n in range(1, 31):
        made._pointers, made._known = torch.tensor([[n]]), torch.tensor([[2]])
        slots = n + torch.arange(8)[None]
        inside, source = (part[0].tolist() for part in made._source(slots))
        for slot, there, found in zip(slots[0].tolist(), inside, source, strict=True):
            if not n + 2 <= slot < 31:
                continue
            grid = next(grid for grid in SPEC.grids if grid.first <= slot < grid.stop)
            if guess == "preview":
                wanted = int(SPEC.previewed(torch.tensor(slot)))
                assert there == (0 <= wanted < n + 2), (n, slot)
            else:
                step = 1 if guess == "left" else grid.columns
                wanted = next((at for at in range(slot - step, grid.first - 1, -step) if at < n + 2), -1)
                assert there == (wanted >= 0), (n, slot)
            assert not there or found == wanted, (n, slot)
