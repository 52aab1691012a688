"""Rows abreast: the order of tokens against a slow reference, who sees what, plain decoding's image where rows wait."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import CONFIG, llamagen, pipeline

from vargen.core.specs import RasterSpec
from vargen.core.warp import Warp
from vargen.engine import loops
from vargen.engine.guidance import Guidance
from vargen.models.llamagen import LlamaGen
from vargen.samplers.ar import ARSettings, Autoregressive
from vargen.samplers.contract import Task
from vargen.samplers.jacobi2d import Jacobi2D, Jacobi2DSettings
from vargen.samplers.zipar import AdaptiveZipAR, ZipAR, ZipARSettings

NAMES = (
    "zipar:window=2",
    "zipar-adaptive:window=2",
    "jacobi-2d:window=2:drafts=3",
    "jacobi-2d:window=2:coupled=true:ahead=2",
)
WAITING = ("zipar:window=6", "zipar:window=99", "zipar-adaptive:window=6", "jacobi-2d:window=6:drafts=1")


def logits_of(step, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(step)) * 2


def watch(sampler, spec, batch, logits=logits_of):
    """Decode under laws from nowhere, checking every block; the forward in which each slot was committed (B, slots)."""
    slots, rows = (
        spec.slots,
        np.concatenate([np.repeat(np.arange(g.rows) + 1000 * g.first, g.columns) for g in spec.grids]),
    )
    when, held, lowest = np.zeros((batch, slots), dtype=int), [{} for _ in range(batch)], 0
    sampler.accept(logits(0, (batch, 1, spec.vocabulary)))
    when[sampler.committed], forward = 1, 1
    while min(sampler.settled) < slots:
        forward += 1
        before, tokens, block = sampler.committed.copy(), sampler.tokens.clone(), sampler.propose()
        assert block.first >= lowest
        lowest, places = block.first, block.slots if block.places is None else block.places
        causal = torch.arange(block.stop) <= places[..., None]
        sees = causal if block.sees is None else block.sees
        assert int(block.slots.min()) >= block.first
        assert int(places.max()) < block.stop <= slots + sampler.extra
        for image in range(batch):
            three = (x[image].tolist() for x in (places, block.slots, block.tokens))
            own = list(zip(*three, strict=True))
            nobody = block.stop - 1 if block.places is not None else None
            standing = [p for p, s, _ in own if p != s]
            assert all(p > np.flatnonzero(before[image])[-1] for p in standing), "a place that others see"
            real = [p for p, _, _ in own if p != nobody]
            assert len(set(real)) == len(real)  # nothing is written twice
            for place, _, token in own:
                held[image][place] = token
            for index, (place, slot, _) in enumerate(own):
                if place == nobody:
                    continue
                for key in torch.nonzero(sees[image, index]).flatten().tolist():
                    if key == place:
                        continue
                    assert key < slot or (place != slot and key <= slot)
                    assert key not in standing, "what stands in for a row's end is seen by nobody else"
                    if before[image, key]:
                        assert held[image][key] == int(sampler.tokens[image, key]), "keys and values of another token"
                    else:
                        assert rows[key] == rows[slot], "a draft of another row"
                        assert key in real
        sampler.accept(logits(forward, (*block.tokens.shape, spec.vocabulary)))
        after = sampler.committed
        assert (after | ~before).all(), "what is committed stays so"
        final = torch.from_numpy(before)
        assert torch.equal(sampler.tokens[final], tokens[final])
        when[after & ~before] = forward
        assert forward < 10 * slots
    return when


def task(spec, batch):
    return Task(spec, torch.arange(batch), Warp())


def by_hand(rows, columns, window):
    """A row waits until the one above has `window` tokens, then takes one from each forward."""
    done, when, forward = [0] * rows, np.zeros((rows, columns), dtype=int), 0
    while min(done) < columns:
        forward += 1
        ready = [r for r in range(rows) if done[r] < columns and (r == 0 or done[r - 1] >= min(window, columns))]
        for row in ready:
            when[row, done[row]] = forward
            done[row] += 1
    return when.flatten()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("rows", "columns", "window"),
    [(1, 1, 1), (1, 7, 2), (7, 1, 3), (4, 4, 1), (3, 5, 2), (5, 3, 3), (4, 6, 5), (4, 6, 6), (2, 4, 99), (16, 16, 4)],
)
def test_the_order_of_slots_is_the_reference_s(rows, columns, window, batch):
    spec = RasterSpec(rows, columns, 5, 1)
    found = watch(ZipAR(ZipARSettings(window), task(spec, batch)), spec, batch)
    wanted = by_hand(rows, columns, window)
    assert (found == wanted).all()
    assert wanted.max() == columns + (rows - 1) * min(window, columns)


def test_newlines_cost_no_forward():
    spec = RasterSpec(3, 5, 9, 1, newline=7)
    sampler = ZipAR(ZipARSettings(2), task(spec, 2))
    found = watch(sampler, spec, 2)[0].reshape(3, 5)
    assert (found[:, :4].flatten() == by_hand(3, 4, 2)).all()
    assert (found[:, 4] == found[:, 3]).all()  # final with the last token of its row
    assert (sampler.tokens.unflatten(1, (3, 5))[..., 4] == 7).all()


@pytest.mark.parametrize("case", range(60))
def test_who_sees_what_on_random_grids(case):
    pick = random.Random(case)
    rows, columns, batch = pick.randint(1, 5), pick.randint(2, 6), pick.randint(1, 3)
    spec = RasterSpec(rows, columns, 4, 1, newline=pick.choice([None, None, 2]))
    window = pick.randint(1, 7)
    if case % 3 == 0:
        sampler = AdaptiveZipAR(ZipARSettings(window), task(spec, batch))
    else:
        drafts, ahead, coupled = pick.randint(1, 7), pick.randint(0, 7), pick.random() < 0.5
        settings = Jacobi2DSettings(window=window, drafts=drafts, ahead=ahead, coupled=coupled)
        settings = replace(settings, guess=pick.choice(["uniform", "above"]))
        sampler = Jacobi2D(settings, task(spec, batch))
    when = watch(sampler, spec, batch)
    assert (when > 0).all()
    assert sampler.settled == [spec.slots] * batch
    grid = when.reshape(batch, rows, columns)
    assert (np.diff(grid, axis=2) >= 0).all()  # rows fill up from the left
    drawn = columns - (spec.newline is not None)
    above, below = grid[:, :-1, : min(window, drawn)], grid[:, 1:, :1]
    assert (below > above.max(-1, keepdims=True)).all()  # and start behind `window` tokens of the row above
    assert (grid[:, 1:, :drawn] > grid[:, :-1, :drawn]).all()  # a token comes after the one above it


@pytest.mark.parametrize("case", range(20))
def test_behind_a_preview_rows_are_as_without_one(case):
    """The preview comes token by token and is seen whole; then rows start as they do in an image of one grid."""
    pick = random.Random(case)
    rows, columns, window = pick.randint(1, 5), pick.randint(2, 6), pick.randint(1, 7)
    previews = tuple((pick.randint(1, 3), pick.randint(1, 8)) for _ in range(pick.randint(1, 2)))
    spec, before = RasterSpec(rows, columns, 4, 1, previews=previews), sum(high * wide for high, wide in previews)
    found = watch(ZipAR(ZipARSettings(window), task(spec, 2)), spec, 2)
    assert (found[:, :before] == np.arange(1, before + 1)).all()
    assert (found[:, before:] == before + by_hand(rows, columns, window)).all()
    drafts, ahead = pick.randint(1, 7), pick.randint(0, 7)
    sampler = Jacobi2D(Jacobi2DSettings(window=window, drafts=drafts, ahead=ahead, guess="above"), task(spec, 2))
    found = watch(sampler, spec, 2)
    assert (found[:, :before].max(1) < found[:, before:].min(1)).all()
    assert sampler.settled == [spec.slots] * 2


@pytest.mark.parametrize(("same", "wait"), [(True, 1), (False, None)])
def test_a_row_on_trial_starts_when_its_laws_agree(same, wait):
    """Laws that never change keep the first token one forward later; disjoint ones never do, and the row waits."""
    spec = RasterSpec(3, 6, 4, 1)

    def logits(step, shape):
        out = torch.full(shape, -1e9)
        out[..., 0 if same else step % 4] = 0.0
        return out

    found = watch(AdaptiveZipAR(ZipARSettings(2), task(spec, 2)), spec, 2, logits)[0].reshape(3, 6)
    starts = [1, 1 + 2 + wait, 1 + 2 * (2 + wait)] if wait else [1, 7, 13]
    assert found[:, 0].tolist() == starts


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"top_k": 5}, {"cfg_interval": 9}])
@pytest.mark.parametrize("method", WAITING)
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_a_row_that_waits_for_all_of_the_one_above_is_plain_decoding(method, options, batch):
    pipe, asked = pipeline(), {"seed": 0, "output_type": "latent", "batch_size": batch, **options}
    labels = [0, 1, 2, 3] * 4 if batch > 1 else [0, 3]
    found, wanted = (pipe(labels, method=m, **asked) for m in (method, "ar"))
    assert torch.equal(found.tokens, wanted.tokens)
    assert found.trace.forwards == wanted.trace.forwards


class Newlines(LlamaGen):
    """Rows of five tokens and a newline."""

    @property
    def spec(self):
        return RasterSpec(6, 6, CONFIG.vocabulary, CONFIG.classes, newline=47)


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [(ZipAR, ZipARSettings(9)), (AdaptiveZipAR, ZipARSettings(5)), (Jacobi2D, Jacobi2DSettings(window=9, drafts=1))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_newlines_it_is_plain_decoding_as_well(sampler, settings, dtype):
    model, drawn = Newlines(CONFIG), []
    model.load_state_dict(llamagen().state_dict())
    labels = torch.arange(16) % 5
    condition = model.to(dtype).eval().requires_grad_(False).class_condition(labels, guided=True)
    for made in (sampler(settings, task(model.spec, 16)), Autoregressive(ARSettings(), task(model.spec, 16))):
        counts = loops.Counts()
        for _ in loops.raster(model, condition, made, Guidance(2.0), loops.Clock(model.device), counts):
            pass
        drawn.append((made.tokens, counts.forwards))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1] == drawn[1][1] == 30
    assert (drawn[0][0].unflatten(1, (6, 6))[..., -1] == 47).all()
    assert len(drawn[0][0].unflatten(1, (6, 6))[..., :-1].unique()) > 20


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"top_k": 2}, {"cfg_interval": 9}])
@pytest.mark.parametrize("method", NAMES)
def test_an_image_depends_on_its_seed_alone(method, options):
    pipe = pipeline()
    together = pipe([0, 1, 2, 3] * 4, method=method, seed=0, output_type="latent", **options).tokens
    for index in (0, 6, 15):
        alone = pipe([index % 4], method=method, seed=index, output_type="latent", **options)
        assert torch.equal(alone.tokens[0], together[index])


def test_drafts_spare_forwards():
    pipe, asked, forwards = pipeline(), {"seed": 0, "output_type": "latent", "top_k": 4}, []
    jacobi = "jacobi-2d:window=3:coupled=true"
    for method in ("zipar:window=3", "jacobi-2d:window=3", jacobi, f"{jacobi}:ahead=0", f"{jacobi}:drafts=1"):
        forwards.append(pipe([0, 1, 2, 3] * 4, method=method, **asked).trace.forwards_per_image)
    assert forwards[0] == 6 + 5 * 3 == forwards[4]
    assert forwards[1] < forwards[0]
    assert forwards[2] < forwards[3] < forwards[0]  # and to draft rows before they start spares more


@pytest.mark.parametrize("neutral", ["rule=gsd:group=1", "rule=cool:tolerance=1:decay=0", "rule=lantern:delta=0:k=5"])
def test_rules_compose(neutral, tmp_path, monkeypatch):
    monkeypatch.setenv("VARGEN_CACHE", str(tmp_path))
    pipe, asked, method = pipeline(), {"seed": 0, "output_type": "latent"}, "jacobi-2d:window=3:coupled=true"
    methods = (method, f"{method}:{neutral}", f"{method}:rule=lantern:delta=0.9:k=40")
    exact, same, other = (pipe([0, 1, 2], method=m, **asked).tokens for m in methods)
    assert torch.equal(exact, same)
    assert not torch.equal(exact, other)


@pytest.mark.parametrize("method", ["zipar:window=0", "zipar-adaptive:window=0", "jacobi-2d:drafts=0"])
def test_impossible_settings(method):
    with pytest.raises(ValueError, match=f"got {method.split(':')[1].replace('=', ' ')}, expected at least 1"):
        pipeline()([0], method=method, seed=0)
