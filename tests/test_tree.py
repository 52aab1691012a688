"""Trees of drafts, fixed or grown by confidence: the exact law of whole images, everything kept from oneself, and
shapes that are none.
"""

import pytest
import torch
from small import CONFIG, llamagen, pipeline
from test_speculative import small_drafter
from toy import ToyModel, checked, images, p_value

from vargen.core import rules
from vargen.core.dispatch import Kernels
from vargen.core.specs import RasterSpec
from vargen.core.types import Block
from vargen.core.warp import Warp
from vargen.samplers.contract import Task
from vargen.samplers.dynamic import DynamicSettings, DynamicTree
from vargen.samplers.tree import TreeSettings, TreeSpeculative, parents_of

LEVEL = 1e-5  # per case; with fixed seeds a case either always passes or always fails
COUNT = 6400
SHAPES = ("3", "3-2-1", "4-1-1-1", "0+1+00+01+010")
GROWN = ((1, 2, 2), (3, 2, 5), (4, 3, 7), (2, 9, 99))  # depth, branches, nodes; the last more than there is


def draw():
    return images(TreeSpeculative, TreeSettings(tree="3-2"), COUNT, 128, drafter=ToyModel(11))


@pytest.mark.parametrize("shape", SHAPES)
def test_law_of_whole_images(shape):
    assert p_value(checked(TreeSpeculative, TreeSettings(tree=shape), COUNT, drafter=ToyModel(11))) > LEVEL


@pytest.mark.parametrize("shape", GROWN)
def test_law_of_whole_images_with_a_tree_that_grows(shape):
    settings = DynamicSettings(**dict(zip(("depth", "branches", "nodes"), shape, strict=True)))
    assert p_value(checked(DynamicTree, settings, COUNT, drafter=ToyModel(11))) > LEVEL


def test_judging_what_was_chosen_as_if_it_were_drawn_is_caught(monkeypatch):
    judge, settings = rules.among, DynamicSettings(depth=2, branches=2, nodes=4)

    def wrong(rule, drafts, there, q, p, u, offset):
        return judge(rule, drafts, there, torch.full_like(p, 1 / p.shape[-1]), p, u, offset)

    monkeypatch.setattr(rules, "among", wrong)
    assert p_value(images(DynamicTree, settings, COUNT, 128, drafter=ToyModel(11))) < LEVEL


def test_a_tree_grows_where_the_drafter_is_confident():
    """By hand: laws .6 .3 .1 behind the root, .5 .5 0 and .9 .1 0 behind its two likeliest children."""
    made = []

    class Fixed:
        forwards, kernels = 0, Kernels()

        def reserve(self, extra):
            self.extra = extra

        def keep(self, rows):
            raise AssertionError("no image leaves")

        def join(self, other):
            raise AssertionError("no image joins")

        def laws(self, block):
            made.append(block)
            if block.parents is None:
                return torch.tensor([[[0.1, 0.6, 0.3]]])
            return torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]]])

    task = Task(RasterSpec(3, 3, 3, 1), torch.tensor([0]), Warp(), drafter=Fixed())
    grown = DynamicTree(DynamicSettings(depth=2, branches=2, nodes=4), task)
    grown.accept(torch.zeros(1, 1, 3))
    block = grown.propose()
    assert block.sees is not None
    assert made[1].tokens.tolist() == [[1, 2]]  # carried on, the more confident first
    # Confidences: 1 .6, 2 .3, 1-0 .3, 1-1 .3, 2-2 .27, 2-1 .03: the first four.
    assert block.tokens[0, 1:].tolist() == [1, 2, 0, 1]
    assert grown._depths.tolist() == [[0, 1, 1, 2, 2]]
    assert grown._children.tolist() == [[[1, 2], [3, 4], [0, 0], [0, 0], [0, 0]]]
    assert block.sees[0, 1:, 9:].tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [True, False, True, False],
        [True, False, False, True],
    ]


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_a_model_that_is_certain_keeps_all_that_it_drafts_itself(batch):
    """Greedy by a low temperature: the likeliest path is the only one, and depth + 1 tokens come of each forward."""
    pipe = pipeline()
    pipe.drafter = pipe.transformer
    labels, method = [i % CONFIG.classes for i in range(batch)], "speculative-dynamic:depth=4:branches=2:nodes=8"
    out = pipe(labels, method=method, seed=0, output_type="latent", temperature=1e-6)
    assert out.trace.forwards == 1 + -(-(CONFIG.side**2 - 1) // 5)


def test_drawing_with_replacement_is_caught(monkeypatch):
    monkeypatch.setattr(rules, "without", lambda law, token: law)
    drawn = draw()
    monkeypatch.undo()
    assert p_value(drawn) > LEVEL  # with replacement in both places it is exact as well
    real, calls = rules.without, []
    monkeypatch.setattr(
        rules, "without", lambda law, token: real(law, token) if law.dim() == 2 else calls.append(1) or law
    )
    assert p_value(draw()) < LEVEL  # drawn with replacement, judged as if without
    assert calls


def test_keeping_p_after_a_refusal_is_caught(monkeypatch):
    monkeypatch.setattr(rules, "residual", lambda p, q: p)
    assert p_value(draw()) < LEVEL


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("shape", ["1-1-1", "3-2-1", "0+1+00+01+010+0100"])
def test_a_model_keeps_the_first_path_that_it_drafts_itself(shape, batch):
    pipe = pipeline()
    pipe.drafter = pipe.transformer
    labels = [i % CONFIG.classes for i in range(batch)]
    out = pipe(labels, method=f"speculative-tree:tree={shape}", seed=0, output_type="latent")
    forwards = -(-(CONFIG.side**2 - 1) // 4) if shape != "0+1+00+01+010+0100" else None
    if forwards is not None:
        assert out.trace.forwards == 1 + forwards  # depth + 1 tokens each
    else:
        assert out.trace.forwards < 20


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"top_k": 2}, {"cfg_interval": 9}])
@pytest.mark.parametrize("method", ["speculative-tree:tree=3-2-1", "speculative-dynamic:depth=3:branches=3:nodes=8"])
def test_an_image_depends_on_its_seed_alone(method, options):
    pipe = pipeline()
    pipe.drafter = small_drafter()
    together = pipe([0, 1, 2, 3] * 4, method=method, seed=0, output_type="latent", **options).tokens
    for index in (0, 6, 15):
        alone = pipe([index % 4], method=method, seed=index, output_type="latent", **options)
        assert torch.equal(alone.tokens[0], together[index])


def test_more_candidates_need_fewer_forwards():
    pipe = pipeline()
    pipe.drafter = small_drafter()
    forwards = [
        pipe(
            [0, 1, 2, 3], method=f"speculative-tree:tree={shape}", seed=0, output_type="latent"
        ).trace.forwards_per_image
        for shape in ("1-1", "8-2")
    ]
    assert forwards[1] < forwards[0]


def test_places_behind_the_image_and_moves_equal_teacher_forcing():
    """Two branches in one block; one of them is moved to its slots, and decoding goes on from there."""
    model = llamagen()
    ids = torch.randint(CONFIG.vocabulary, (2, 36), generator=torch.Generator().manual_seed(2))
    other = (ids + 1) % CONFIG.vocabulary
    condition = model.class_condition(torch.tensor([1, 4]), guided=False)
    full, cache = model(condition, ids), model.make_cache(2, extra=4)
    cache.keys.fill_(1e3)  # what was never written must never be seen
    model.prefill(condition, cache)
    first = torch.arange(5).expand(2, -1)
    model.decode(Block(ids[:, :5], first, 0, 5), cache)
    tokens = torch.stack([other[:, 5], ids[:, 5], other[:, 6], ids[:, 6]], dim=1)
    slots, places = torch.tensor([5, 5, 6, 6]).expand(2, -1), torch.arange(36, 40).expand(2, -1)
    branches = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
    sees = torch.cat([(torch.arange(36) < 5).expand(4, -1), branches], dim=1).expand(2, -1, -1)
    out = model.decode(Block(tokens, slots, 0, 40, sees, places), cache)
    torch.testing.assert_close(out[:, 1], full[:, 6], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out[:, 3], full[:, 7], rtol=1e-4, atol=1e-4)
    moves = (torch.tensor([[37, 39]] * 2), torch.tensor([[5, 6]] * 2))
    on = model.decode(Block(ids[:, 7:9], torch.tensor([[7, 8]] * 2), 7, 9, moves=moves), cache)
    torch.testing.assert_close(on, full[:, 8:10], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "neutral",
    [
        {"rule": "lantern", "k": 3, "delta": 0.0},
        {"rule": "lantern++", "k": 3, "factor": 0.0},
        {"rule": "gsd", "group": 1},
        {"rule": "cool", "tolerance": 1.0, "decay": 0.0},
    ],
)
def test_a_neutral_rule_draws_what_the_exact_one_draws(neutral, tmp_path, monkeypatch):
    monkeypatch.setenv("VARGEN_CACHE", str(tmp_path))
    codes, drafter = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), ToyModel(11)
    wanted = images(TreeSpeculative, TreeSettings(tree="3-2"), 64, 16, drafter=drafter)
    found = images(TreeSpeculative, TreeSettings(tree="3-2", **neutral), 64, 16, drafter=drafter, codebook=codes)
    assert (found == wanted).all()


def test_a_relaxed_rule_keeps_longer_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("VARGEN_CACHE", str(tmp_path))
    pipe, forwards = pipeline(), []
    pipe.drafter = small_drafter()
    for rule in ("exact", "lantern:k=40:delta=0.5"):
        out = pipe([0, 1, 2, 3], method=f"speculative-tree:tree=2-2-1:rule={rule}", seed=0, output_type="latent")
        forwards.append(out.trace.forwards_per_image)
    assert forwards[1] < forwards[0]


def test_shapes():
    assert parents_of("3") == [0, 0, 0]
    assert parents_of("2-2") == [0, 0, 1, 1, 2, 2]
    assert parents_of("2-1-1") == [0, 0, 1, 2, 3, 4]
    assert parents_of("1+0+01+00+000") == [0, 0, 1, 1, 3]
    assert len(parents_of("mc_sim_7b_63")) == 25
    assert len(parents_of("naive_extend_57")) == 57


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("", "expected widths as 4-2-1, paths"),
        ("4-0", "expected widths"),
        ("0+0", "a path stands twice"),
        ("0+10", "lacks its parent or the candidate before it"),
        ("0+2", "lacks its parent or the candidate before it"),
        ("99-99", "more than 256 nodes"),
        ("9-9-9-9-9-9-9-9-9-9-9-9", "more than 256 nodes"),
    ],
)
def test_impossible_trees(shape, words):
    with pytest.raises(ValueError, match=words):
        pipeline()([0], method=f"speculative-tree:tree={shape}", seed=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [("depth=0", "got depth 0"), ("branches=0", "got branches 0"), ("nodes=257", "expected 1 to 256")],
)
def test_impossible_growth(settings, words):
    with pytest.raises(ValueError, match=words):
        pipeline()([0], method=f"speculative-dynamic:{settings}", seed=0)


@pytest.mark.parametrize("method", ["speculative-tree:tree=2-1", "speculative-dynamic:depth=2:branches=2:nodes=6"])
def test_drafts_are_counted_within_images(method):
    """36 slots of one row; each step verifies what its tree has within the image, and keeps a path less one token."""
    pipe = pipeline()
    pipe.drafter = small_drafter()
    trace = pipe([0], method=method, seed=0, output_type="latent").trace
    assert 36 - trace.forwards <= trace.drafts_kept <= 36 - trace.forwards + 1  # the last step may end on a draft
    whole = 4 if "tree=" in method else 6
    assert whole * (trace.forwards - 3) <= trace.drafts <= whole * (trace.forwards - 1)
