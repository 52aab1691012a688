"""The EAGLE head: it drafts as it was trained, from the model's own states, and whatever it drafts the law is exact."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from small import CONFIG, PRESETS, llamagen, pipeline, vq

import vargen
from vargen.core import checkpoints, registry, weight_files
from vargen.core.types import Block, mirrored
from vargen.core.warp import Warp
from vargen.engine import loops
from vargen.engine.drafters import HeadDrafter
from vargen.engine.guidance import Guidance
from vargen.models.eagle import EagleHead
from vargen.models.llamagen import LlamaGen, LlamaGenConfig
from vargen.models.pocket import WEIGHTS
from vargen.pipelines import choose_drafter
from vargen.pipelines.raster import RasterPipeline
from vargen.samplers.contract import Task
from vargen.samplers.dynamic import DynamicSettings, DynamicTree
from vargen.samplers.speculative import Speculative, SpeculativeSettings
from vargen.samplers.tree import TreeSettings, TreeSpeculative
from vargen.training import drafter as training

LEVEL = 1e-5  # per case; with fixed seeds a case either always passes or always fails
TINY = LlamaGenConfig(layers=1, heads=2, width=16, side=2, vocabulary=4, classes=3)
WARP, GUIDANCE = Warp(top_k=3, temperature=0.8), Guidance(1.7)
METHODS = {
    "chain": (Speculative, SpeculativeSettings(length=2)),
    "tree": (TreeSpeculative, TreeSettings(tree="2-2-1")),
    "dynamic": (DynamicTree, DynamicSettings(depth=3, branches=2, nodes=5)),
}
NAMES = ("speculative:length=3", "speculative-tree:tree=3-2-1", "speculative-dynamic:depth=3:branches=3:nodes=8")


def head_for(config=CONFIG):
    """A random head whose laws are neither flat nor certain."""
    generator, head = torch.Generator().manual_seed(5), EagleHead(config)
    for parameter in head.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5, generator=generator)
    return head.eval().requires_grad_(False)


@cache
def law():
    """Probabilities (256,) of all 2x2 images of class 1 of the tiny model, teacher-forced."""
    model, every = llamagen(TINY), torch.cartesian_prod(*[torch.arange(4)] * 4)
    condition = model.class_condition(torch.ones(256, dtype=torch.int64), guided=True)
    p = WARP(GUIDANCE.mix(mirrored(model(condition, every.repeat(2, 1)))).double())
    return p.gather(-1, every[..., None]).prod(1).flatten().numpy()


def tiny_images(name, count, batch):
    """Indices (count,) into `law` of images by a method, decoded `batch` at a time."""
    model, head, (sampler_class, settings), out = llamagen(TINY), head_for(TINY), METHODS[name], []
    for start in range(0, count, batch):
        condition = model.class_condition(torch.ones(batch, dtype=torch.int64), guided=True)
        drafter = HeadDrafter(head, model, batch, GUIDANCE, WARP)
        sampler = sampler_class(settings, Task(model.spec, torch.arange(start, start + batch), WARP, drafter=drafter))
        clock, counts = loops.Clock(model.device), loops.Counts()
        for _ in loops.raster(drafter.watch(model), condition, sampler, GUIDANCE, clock, counts):
            pass
        out.append((sampler.tokens * torch.tensor([64, 16, 4, 1])).sum(-1))
    return torch.cat(out).numpy()


@pytest.mark.parametrize("name", METHODS)
def test_law_of_whole_images(name):
    count = 3200
    drawn = tiny_images(name, count, 64)
    for batch in (1, 4):  # what is drawn does not rest on the batch, and so the law does not
        assert (tiny_images(name, 24 * batch, batch) == drawn[: 24 * batch]).all()
    seen, expected = np.bincount(drawn, minlength=256).astype(float), law() * count
    assert seen[expected == 0].sum() == 0
    large = expected >= 5
    seen, expected = (np.append(x[large], x[~large].sum()) for x in (seen, expected))
    assert chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > LEVEL


def test_drafting_with_a_cache_equals_the_unrolled_draft_of_training():
    """From every slot on, by chain; what the cache held before must not show."""
    model, head = llamagen(), head_for()
    ids = torch.randint(CONFIG.vocabulary, (2, 36), generator=torch.Generator().manual_seed(2))
    condition = model.class_condition(torch.tensor([1, 4]), guided=False)
    steps = list(training.unrolled(head, model, model.states(condition, ids), ids, 3))
    drafter = HeadDrafter(head, model, 2, Guidance(1.0), Warp())
    drafter.reserve(0)
    watched, kv = drafter.watch(model), model.make_cache(2)
    drafter._seats.cache.keys.fill_(1e3)  # what was never written must never be seen
    watched.prefill(condition, kv)
    for root in range(30):
        for step, predicted in enumerate(steps):
            first, stop = (max(root - 1, 0) if step == 0 else root + step), root + step + 1
            block = Block(ids[:, first:stop], torch.arange(first, stop).expand(2, -1), first, stop)
            found = drafter.laws(block)[:, -1]
            wanted = model.logits(predicted[:, root + step]).softmax(-1)
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
        watched.decode(Block(ids[:, root : root + 1], torch.full((2, 1), root), root, root + 1), kv)


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"cfg_interval": 9}])
@pytest.mark.parametrize("method", NAMES)
def test_the_head_sees_the_states_of_what_is_committed(method, options, monkeypatch):
    """A stale state, as of a branch that was given up, would spoil drafts and no law."""
    pipe, seen, laws, made = pipeline(), [], HeadDrafter.laws, HeadDrafter.__init__
    pipe.drafter = head_for()

    def init(self, *arguments):
        made(self, *arguments)
        seen.append(self)

    def watching(self, block):
        out = laws(self, block)
        if block.parents is None and block.tokens.shape[1] > 1:  # the first block of a step
            # Where a row is finished its slots are clamped, and what is written there is never seen.
            stops = torch.where(block.slots[:, -1] > block.slots[:, -2], block.slots[:, -1] + 1, 0)
            seen.append((self._states.clone(), stops.tolist()))
        return out

    monkeypatch.setattr(HeadDrafter, "__init__", init)
    monkeypatch.setattr(HeadDrafter, "laws", watching)
    tokens = pipe([0, 1, 2], method=method, seed=0, output_type="latent", **options).tokens.flatten(1)
    model, looked = pipe.transformer, 0
    condition = model.class_condition(torch.tensor([0, 1, 2]), guided=options.get("guidance_scale") != 1.0)
    images = [0, 1, 2] if options.get("guidance_scale") == 1.0 else [2, 1, 0, 0, 1, 2]  # of each row
    wanted = model.states(condition, tokens.repeat(len(condition.embedding) // 3, 1))
    wanted = mirrored(wanted) if len(images) > 3 else wanted
    for states, stops in seen[1:]:
        for row in range(3 if "cfg_interval" in options else 0, len(images)):  # the others may have been dropped
            stop = stops[images[row] if len(stops) == 3 else row]  # row 0 has the condition's state, row 1 + s slot s's
            torch.testing.assert_close(states[row, :stop], wanted[row, :stop], rtol=1e-3, atol=1e-3)
            looked += stop > 0
    assert looked > 20


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"top_k": 2}, {"cfg_interval": 9}])
@pytest.mark.parametrize("method", NAMES)
def test_an_image_depends_on_its_seed_alone(method, options):
    pipe = pipeline()
    pipe.drafter = head_for()
    together = pipe([0, 1, 2, 3] * 4, method=method, seed=0, output_type="latent", **options).tokens
    for index in (0, 6, 15):
        alone = pipe([index % 4], method=method, seed=index, output_type="latent", **options)
        assert torch.equal(alone.tokens[0], together[index])


def test_who_sees_whom_in_an_unrolled_draft():
    seen = training.unrolled_mask(4, 2, torch.device("cpu"))
    assert seen.shape == (4, 12)
    # Slot 3 as the second draft behind slot 1.
    assert [key for key in range(12) if seen[3, key]] == [0, 1, 4 + 2, 8 + 3]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`run(...)` of the small model's training, with few images."""
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")
    monkeypatch.setattr(training, "HELD_OUT", 8)
    asked = {"checkpoint": None, "prompts": None, "method": "ar", "batch": 4, "depth": 2, "seed": 0, "device": "cpu"}
    asked |= {"images": 24, "steps": 1, "measure": False, "work": tmp_path / "work"}
    return lambda **changes: training.run("small", tmp_path / "head.safetensors", **{**asked, **changes})


def test_training_end_to_end(train, tmp_path):
    before, figures = train(), train(steps=60, work=tmp_path / "other")
    assert figures["nats_1"] < before["nats_1"]
    assert figures["kept_1"] > before["kept_1"]
    assert train(steps=60, work=tmp_path / "other", measure=True) == figures
    head = tmp_path / "head.safetensors"
    assert float(weight_files.metadata(head)["kept_1"]) == pytest.approx(figures["kept_1"], abs=1e-4)
    pipe = vargen.load("small", device="cpu", drafter="eagle", drafter_checkpoint=head)
    trace = pipe([0, 1], method="speculative:length=3", seed=0).trace
    assert 0 < trace.drafts_kept < trace.drafts
    assert trace.settings["drafter"] == "eagle"
    pipe([0], method="speculative:drafter=eagle", seed=0)  # the one that was loaded: none ships
    assert list(pipe.drafters) == ["eagle"]
    assert not any(value.is_inference() for value in pipe.drafters["eagle"].parameters())


def test_a_run_does_not_go_on_from_another_s(train):
    train()
    train()
    with pytest.raises(ValueError, match="is of another run"):
        train(method="sjd:window=4")  # the same number of other images
    with pytest.raises(ValueError, match="is of another run"):
        train(seed=1)


def test_a_checkpoint_that_is_none(train, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "small-eagle.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        train()


class Reading(RasterPipeline):
    """Prompts without a text encoder: states from the letters."""

    def encode_prompt(self, prompt, image=None):
        many = [prompt] if isinstance(prompt, str) else prompt
        states = [torch.randn(5, 8, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in many]
        return torch.stack(states), torch.tensor([[0, 1, 1, 1, 1]] * len(many))


def test_training_for_a_model_that_takes_prompts(tmp_path):
    shapes = LlamaGenConfig(layers=2, heads=2, width=32, side=4, vocabulary=48, caption_width=8, caption_tokens=5)
    pipe = Reading(llamagen(shapes), vq(), preset=replace(PRESETS["small"], classes=0, spec=shapes.spec))
    (tmp_path / "prompts.txt").write_text("a boat\n\n  a red house \n")
    asked = training._asked(pipe, tmp_path / "prompts.txt", 13)
    assert asked[:3] == ["a boat", "a red house", "a boat"]
    ids = training.draw(pipe, asked, tmp_path / "drawn.npy", "ar")
    assert torch.equal(training.draw(pipe, asked, tmp_path / "drawn.npy", "ar"), ids)  # kept
    head, shape = EagleHead(shapes), {"batch": 4, "depth": 2, "seed": 0, "data": "these"}
    training.train(head, pipe, asked[:9], ids[:9], tmp_path / "a.pt", steps=1, **shape)
    before = training.measured(head, pipe, asked[9:], ids[9:], 2)
    training.train(head, pipe, asked[:9], ids[:9], tmp_path / "b.pt", steps=40, **shape)
    assert training.measured(head, pipe, asked[9:], ids[9:], 2)["nats_1"] < before["nats_1"]
    pipe.drafter = head.requires_grad_(False)
    assert pipe(prompt="a boat", method="speculative:length=3", seed=0).trace.drafts_kept > 0
    with pytest.raises(ValueError, match="give --prompts"):
        training._asked(pipe, None, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 0}, "got images 0, expected at least 1"),
        ({"batch": 0}, "got batch 0"),
        ({"depth": 0}, "got depth 0"),
        ({"steps": 0}, "got steps 0"),
        ({"depth": 36}, "got depth 36, expected at most 35"),
        ({"measure": True}, "to measure"),
        ({"prompts": "none.txt"}, "draws classes and takes no prompts"),
    ],
)
def test_training_complains_before_it_draws(train, changes, words, monkeypatch):
    monkeypatch.setattr(training, "draw", None)
    with pytest.raises(ValueError, match=words):
        train(**changes)


@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("rows", "5", "rows 5 instead of 6"),
        ("vocabulary", "47", "vocabulary 47 instead of 48"),
        ("codebook", "0", "codebook 0 instead of"),
        ("columns", None, "columns None instead of 6"),
    ],
)
def test_a_head_of_another_layout_or_codebook_is_refused(what, value, words, tmp_path):
    """Its tensors would fit: they depend on the model's width alone."""
    pipe, path = pipeline(), tmp_path / "head.safetensors"
    about = {key: text for key, text in (choose_drafter.described(pipe) | {what: value}).items() if text is not None}
    checkpoints.save(path, head_for().state_dict(), about)
    with pytest.raises(ValueError, match=words):
        choose_drafter.load_head(pipe, path)
    path = path.with_suffix(".pt")
    torch.save(head_for().state_dict(), path)  # it says nothing at all
    with pytest.raises(ValueError, match="rows None instead of 6"):
        choose_drafter.load_head(pipe, path)


def test_heads_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="small comes with no EAGLE head"):
        choose_drafter.load_head(pipeline(), None)
    other = LlamaGenConfig(layers=1, heads=2, width=16, side=6, vocabulary=48, classes=5)
    path = tmp_path / "head.safetensors"
    checkpoints.save(path, head_for(other).state_dict())
    with pytest.raises(ValueError, match="does not fit EagleHead"):
        choose_drafter.load_head(pipeline(), path)
    pipe = pipeline()
    pipe.drafter = EagleHead(other)
    with pytest.raises(ValueError, match="width 16 instead of 32"):
        pipe([0], method="speculative", seed=0)


def test_the_head_that_ships():
    assert (WEIGHTS / "pocket-llamagen-eagle.safetensors").stat().st_size < 2_000_000
    pipe = vargen.load("pocket-llamagen", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    asked = {"class_labels": [0, 1, 2, 3], "seed": 0, "output_type": "latent"}
    eagle = pipe(**asked, method="speculative").trace
    assert eagle.settings["drafter"] == "eagle"
    small = pipe(**asked, method="speculative:drafter=pocket-llamagen-small").trace
    assert isinstance(pipe.drafters["eagle"], EagleHead)
    assert isinstance(pipe.drafters["pocket-llamagen-small"], LlamaGen)
    assert eagle.drafts_kept / eagle.drafts > small.drafts_kept / small.drafts > 0.25
    assert eagle.forwards_per_image < small.forwards_per_image
    assert small.settings["drafter"] == "pocket-llamagen-small"
    with pytest.raises(ValueError, match="unknown model 'nobody'"):
        pipe(**asked, method="speculative:drafter=nobody")
