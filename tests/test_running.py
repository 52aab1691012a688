"""Images that join a running batch, and leave it, at any step are those that are drawn alone, and follow the law."""

import numpy as np
import pytest
import torch
from toy import GUIDANCE, IDS, LINED, SLOTS, SQUARE, WARP, ToyModel, images, p_value

from vargen.core import noise
from vargen.core import warp as warps
from vargen.core.types import Block, KVCache
from vargen.core.warp import Warp
from vargen.engine import loops
from vargen.engine.drafters import ModelDrafter
from vargen.engine.guidance import Guidance, together
from vargen.engine.rows import Law
from vargen.engine.running import RunningBatch
from vargen.engine.seats import closed
from vargen.samplers.ar import ARSettings, Autoregressive
from vargen.samplers.contract import Task
from vargen.samplers.dynamic import DynamicSettings, DynamicTree
from vargen.samplers.jacobi import JacobiWindow
from vargen.samplers.jacobi2d import Jacobi2D, Jacobi2DSettings
from vargen.samplers.pac import ProactiveJacobi, ProactiveSettings
from vargen.samplers.sjd import CoupledJacobi, CoupledSettings, SJDSettings, SpeculativeJacobi
from vargen.samplers.sjd_exact import ExactJacobi, ExactSettings
from vargen.samplers.speculative import Speculative, SpeculativeSettings
from vargen.samplers.tree import TreeSettings, TreeSpeculative
from vargen.samplers.zipar import AdaptiveZipAR, ZipAR, ZipARSettings

LEVEL = 1e-5
POWERS = IDS ** torch.arange(SLOTS - 1, -1, -1)
DRAFTS = {
    "speculative": (Speculative, SpeculativeSettings(length=2)),
    "tree": (TreeSpeculative, TreeSettings(tree="2-1")),
    "dynamic": (DynamicTree, DynamicSettings(depth=2, branches=2, nodes=4)),
}
METHODS = {
    "ar": (Autoregressive, ARSettings()),
    "sjd": (SpeculativeJacobi, SJDSettings(window=3)),
    "sjd-above": (SpeculativeJacobi, SJDSettings(window=4, guess="above")),
    "maximal": (CoupledJacobi, CoupledSettings(window=3)),
    "sample-left": (CoupledJacobi, CoupledSettings(window=4, guess="sample-left")),
    "gumbel": (CoupledJacobi, CoupledSettings(window=4, coupling="gumbel")),
    "exact": (ExactJacobi, ExactSettings(window=4)),
    "pac": (ProactiveJacobi, ProactiveSettings(window=4, tree="2-2")),
    **DRAFTS,
}
ABREAST = {
    "zipar": (ZipAR, ZipARSettings(window=1)),
    "zipar-adaptive": (AdaptiveZipAR, ZipARSettings(window=1)),
    "jacobi-2d": (Jacobi2D, Jacobi2DSettings(window=1, drafts=2, ahead=1)),
}


def batch_of(name, capacity, spec=SQUARE):
    model, (sampler, settings) = ToyModel(spec=spec), {**METHODS, **ABREAST}[name]

    def make(seeds, warp, drafter):
        return sampler(settings, Task(spec, seeds, warp, drafter=drafter))

    clock, counts = loops.Clock(model.device), loops.Counts()
    return RunningBatch(model, clock, counts, capacity=capacity, guided=True, make=make), model


def drafter_of(name, seeds, laws):
    if name not in DRAFTS:
        return None
    small, device = ToyModel(5), ToyModel.device
    guidance = together([law.guidance for law in laws], device, guided=True)
    condition = small.class_condition(torch.tensor(seeds), guided=True)
    return ModelDrafter(small, condition, guidance, warps.together([law.warp for law in laws], device))


def running(name, count, capacity, *, most=3, gone=0.0, spec=SQUARE, law=lambda seed: Law(GUIDANCE, WARP)):
    """Images (count,) of seeds 0 to count - 1 that join at random steps, `most` at a time; who hangs up is -1."""
    batch, model = batch_of(name, capacity, spec)
    rng, left, out = np.random.default_rng(7), list(range(count)), torch.full((count,), -1)
    while left or batch.rows:
        free = min(capacity - len(batch.rows), len(left), int(rng.integers(1, most + 1)))
        if free and (not batch.rows or rng.random() < 0.6):
            seeds, left = left[:free], left[free:]
            laws = [law(seed) for seed in seeds]
            condition = model.class_condition(torch.tensor(seeds), guided=True)
            batch.admit(condition, seeds, laws, drafter_of(name, seeds, laws))
        if batch.busy:
            batch.step()
        done = [row for row, n in zip(batch.rows, batch.settled, strict=True) if n == SLOTS]
        off = [row for row in batch.rows if row not in done and rng.random() < gone]
        batch.leave([*off, *done])
        for row in done:
            out[row.seed] = (row.tokens * POWERS).sum()
            assert 0 < row.forwards <= SLOTS + 1
    return out.numpy()


@pytest.mark.parametrize("capacity", [1, 4, 16])
@pytest.mark.parametrize("name", [*METHODS, *ABREAST])
def test_images_are_those_drawn_alone(name, capacity):
    sampler, settings = {**METHODS, **ABREAST}[name]
    alone = images(sampler, settings, 60, 1, drafter=ToyModel(5) if name in DRAFTS else None)
    assert (running(name, 60, capacity) == alone).all()
    hung_up = running(name, 60, capacity, gone=0.1)
    assert 10 < (hung_up >= 0).sum() < 60
    assert (hung_up[hung_up >= 0] == alone[hung_up >= 0]).all()


@pytest.mark.parametrize("name", ["ar", "sjd", "exact", "zipar"])
def test_images_whose_rows_end_in_newlines(name):
    sampler, settings = {**METHODS, **ABREAST}[name]
    assert (running(name, 60, 4, spec=LINED) == images(sampler, settings, 60, 1, spec=LINED)).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_law_of_images_that_join(name):
    assert p_value(running(name, 2560, 64, most=16)) > LEVEL


def own_law(seed):
    guidance = (Guidance(1.7), Guidance(1.0), Guidance(2.5, 1), Guidance(0.5), Guidance(1.7, 0))[seed % 5]
    return Law(guidance, Warp(top_k=3, temperature=(0.8, 1.0, 1.3)[seed % 3], top_p=(1.0, 0.9)[seed % 2]))


@pytest.mark.parametrize("capacity", [1, 4, 16])
@pytest.mark.parametrize("name", ["ar", "maximal", "exact", "pac", "tree", "zipar"])
def test_each_image_has_its_own_law(name, capacity):
    """Guidance, where it ends, temperature and top-p."""
    together_, alone = running(name, 60, capacity, law=own_law), []
    for seed in range(60):
        alone.append(running_alone(name, seed))
    assert (together_ == np.array(alone)).all()


def running_alone(name, seed):
    """The image of a plain call under the law of its seed."""
    (sampler, settings), law, seeds = {**METHODS, **ABREAST}[name], own_law(seed), torch.tensor([seed])
    guided, drafter = law.guidance.active, None
    model, small = ToyModel(guided=guided), ToyModel(5, guided=guided)
    condition = model.class_condition(seeds, guided=guided)
    if name in DRAFTS:
        drafter = ModelDrafter(small, condition, law.guidance, law.warp)
    made = sampler(settings, Task(SQUARE, seeds, law.warp, drafter=drafter))
    for _ in loops.raster(model, condition, made, law.guidance, loops.Clock(model.device), loops.Counts()):
        pass
    return int((made.tokens[0] * POWERS).sum())


def wrong_seats(monkeypatch):
    """An image that takes another's seat finds the keys of that one there."""
    monkeypatch.setattr(KVCache, "take", lambda *_: None)


def wrong_noise(monkeypatch):
    """Noise by the seat, not by the image."""
    monkeypatch.setattr(noise.Table, "keep", lambda table, rows: keep_noise(table, torch.arange(len(rows))))


def wrong_steps(monkeypatch):
    """Noise by the steps of the batch, not of the image."""
    monkeypatch.setattr(noise.Uniforms, "join", joined_late)


def wrong_window(monkeypatch):
    """A row's window as it was left by the image before."""
    monkeypatch.setattr(JacobiWindow, "join", stale_window)


keep_noise, join_uniforms, join_window = noise.Table.keep, noise.Uniforms.join, JacobiWindow.join


def joined_late(self, other):
    other.steps, other._stops = self.steps[:1].expand_as(other.steps), self._stops[:1] * len(other._stops)
    join_uniforms(self, other)


def stale_window(self, other):
    join_window(self, other)
    if self._p is not None:
        self._known[-1] = self._p.shape[1] - 1


@pytest.mark.parametrize("plant", [wrong_seats, wrong_noise, wrong_steps, wrong_window])
def test_a_planted_fault_is_caught(plant, monkeypatch):
    name = "exact" if plant is wrong_noise else "maximal"
    sampler, settings = METHODS[name]
    alone = images(sampler, settings, 60, 1)
    plant(monkeypatch)
    assert (running(name, 60, 4, most=1) != alone).any()


def test_where_guidance_ends_is_a_slot():
    """Of rows abreast, a block's slots may lie behind the places of the cache that it uses."""
    block = Block(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[11]]), first=3, stop=9)
    logits = torch.randn(2, 1, IDS, generator=torch.Generator().manual_seed(0))
    wanted = Guidance(3.0).mix(logits, block)
    assert torch.equal(Guidance(3.0, 30).mix(logits, block), wanted)
    assert torch.equal(Guidance(3.0, 1 << 80).mix(logits, block), wanted)
    assert torch.equal(Guidance(3.0, 10).mix(logits, block), logits[1:])


def test_who_leaves_makes_room_for_the_last():
    assert closed(5, [1]) == [0, 4, 2, 3]
    assert closed(5, [4]) == [0, 1, 2, 3]
    assert closed(5, [0, 1, 3]) == [2, 4]
    assert closed(3, [0, 1, 2]) == []
    assert closed(4, [3, 0]) == [2, 1]


def test_no_more_than_there_are_seats():
    batch, model = batch_of("ar", 2)
    condition = model.class_condition(torch.arange(3), guided=True)
    with pytest.raises(ValueError, match="got 3 images, expected 1 to 2"):
        batch.admit(condition, [0, 1, 2], [Law(GUIDANCE, WARP)] * 3)
    assert not batch.rows
    with pytest.raises(ValueError, match="differ in more than temperature and top-p"):
        batch.admit(condition, [0, 1], [Law(GUIDANCE, WARP), Law(GUIDANCE, Warp(top_k=2))])
    assert not batch.busy
