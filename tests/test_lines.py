"""Images whose rows end with a newline that is given: every raster method knows it, and loses no law by it."""

from dataclasses import replace

import pytest
import torch
from test_exactness import LEVEL, METHODS
from toy import LINED, ToyModel, checked, images, law, p_value

from vargen.samplers.dynamic import DynamicSettings, DynamicTree
from vargen.samplers.jacobi2d import Jacobi2D, Jacobi2DSettings
from vargen.samplers.pac import ProactiveJacobi, ProactiveSettings
from vargen.samplers.speculative import Speculative, SpeculativeSettings
from vargen.samplers.tree import TreeSettings, TreeSpeculative
from vargen.samplers.zipar import AdaptiveZipAR, ZipAR, ZipARSettings

COUNT = 3200
ONE_ROW = replace(LINED, rows=1, columns=4)
ALL = METHODS | {
    "pac": (ProactiveJacobi, ProactiveSettings(window=4, tree="3-2-2")),
    "speculative": (Speculative, SpeculativeSettings(length=3)),
    "tree": (TreeSpeculative, TreeSettings(tree="3-2-1")),
    "dynamic": (DynamicTree, DynamicSettings(depth=3, branches=2, nodes=6)),
    "zipar": (ZipAR, ZipARSettings(8)),
    "zipar-adaptive": (AdaptiveZipAR, ZipARSettings(8)),
    "jacobi-2d": (Jacobi2D, Jacobi2DSettings(window=8, drafts=3)),
}


def toy(name, spec):
    """What `images` is told of a method."""
    drafter = ToyModel(11, spec) if hasattr(ALL[name][0], "partner") else None
    return {"drafter": drafter, "spec": spec}


def drawn(name, spec, count, batch):
    sampler, settings = ALL[name]
    return images(sampler, settings, count, batch, **toy(name, spec))


def test_the_toy_has_newlines_where_rows_end_and_nowhere_else():
    found = torch.tensor(law(spec=LINED)).view(4, 4, 4, 4)
    assert found.sum() == pytest.approx(1)
    assert found[:3, 3, :3, 3].sum() == pytest.approx(1)
    assert (found[:3, 3, :3, 3] > 0).all()


@pytest.mark.parametrize("spec", [LINED, ONE_ROW], ids=["two rows", "one row"])
@pytest.mark.parametrize("name", ALL)
def test_law_of_whole_images(name, spec):
    sampler, settings = ALL[name]
    assert p_value(checked(sampler, settings, COUNT, **toy(name, spec)), spec=spec) > LEVEL


@pytest.mark.parametrize("spec", [LINED, ONE_ROW], ids=["two rows", "one row"])
def test_sjd_exact_draws_the_tokens_of_ar(spec):
    assert (drawn("exact", spec, 64, 16) == drawn("ar", spec, 64, 16)).all()


def test_laws_are_certain_of_newlines_alone():
    logits = torch.randn(1, 4, 4)
    logits[0, 1] = float("nan")  # a model that is never asked what ends a row may say anything of the other ids
    logits[0, 1, 3] = 0.0
    found = LINED.given(logits, torch.arange(4)[None]).softmax(-1)[0]
    assert found[[1, 3]].tolist() == [[0, 0, 0, 1]] * 2
    assert (found[[0, 2], 3] == 0).all()
    assert torch.equal(found[0, :3], logits[0, 0, :3].softmax(-1))
