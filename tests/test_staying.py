"""Images that leave a batch which began together, at a scale or a group: those that stay are drawn as before."""

import io
from typing import Any

import numpy as np
import pytest
import small
import torch
from every_kind import ASKED, harmon
from PIL import Image

from vargen.core.types import KVCache
from vargen.engine.staying import Staying
from vargen.server.orders import Batch, Done, Ended, Order
from vargen.server.painter import Painter

LEAVES = (((0, 2, 3), 1), ((2, 3), 2), ((3,), 3))  # who stays from which step on
SETTINGS: dict[str, Any] = {
    "var": ("next-scale", {"method": "var"}),
    "unguided from scale 1": ("next-scale", {"method": "var", "cfg_interval": 1}),
    "repainted": ("next-scale", {"method": "var", "repaints": True}),
    "smooth": ("next-scale", {"method": "var:more_smooth=true"}),
    "code": ("next-scale", {"method": "code:scales=2", "drafts": True}),
    "mar": ("mar", {"method": "mar:iterations=5:steps=2"}),
    "disa": ("mar", {"method": "disa:iterations=5:upper=4:lower=2"}),
    "csd": ("mar", {"method": "csd:iterations=5:upper=4", "drafts": True}),
    "csd, several groups": ("mar", {"method": "csd:iterations=5:upper=4:rule=paper:draft=2", "drafts": True}),
    "flowar": ("flowar", {"method": "flowar:steps=2"}),
    "xar": ("xar", {"method": "xar:steps=2"}),
}


def pipeline(kind, *, drafts=False):
    pipe = ASKED[kind][0]()
    pipe.set_progress_bar_config(disable=True)
    if drafts:
        pipe.drafter = small.var(seed=2) if kind == "next-scale" else small.mar(seed=2)
        pipe.drafters["small"] = pipe.drafter
    return pipe


def drawn(pipe, leaves, **asked):
    """What the last step has of each image that is still there, by its number."""
    partial, shown = None, {}
    for step, partial in enumerate(pipe.stream(seed=5, guidance_scale=2.0, **asked), 1):
        shown = {row: partial.of([row]).tokens[0].clone() for row in partial.staying.rows}
        for rows, when in leaves:
            if step == when:
                partial.keep(rows)
    assert partial is not None
    return shown, partial


@pytest.mark.parametrize("name", SETTINGS)
def test_those_that_stay_are_drawn_as_before(name):
    kind, asked = SETTINGS[name]
    asked = dict(asked)
    pipe = pipeline(kind, drafts=asked.pop("drafts", False))
    if asked.pop("repaints", False):
        side = pipe.pixels
        asked |= {"image": torch.rand(3, side, side), "mask_image": (torch.rand(side, side) > 0.5).float()}
    asked["class_labels"] = [0, 1, 2, 3]
    whole, _ = drawn(pipe, (), **asked)
    some, partial = drawn(pipe, LEAVES, **asked)
    assert list(some) == [3]
    torch.testing.assert_close(some[3], whole[3], atol=1e-4, rtol=1e-4)
    if kind == "next-scale":
        assert torch.equal(some[3], whole[3])
        assert partial.of([3]).images("pt").shape == (1, 3, pipe.pixels, pipe.pixels)
    two, _ = drawn(pipe, (((1, 3), 1),), **asked)
    for row in (1, 3):
        torch.testing.assert_close(two[row], whole[row], atol=1e-4, rtol=1e-4)


def test_prompts_leave_too(tmp_path):
    pipe = harmon(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    asked = {"prompt": ["a dog", "the red boat", "sea", "a boat"], "method": "mar:iterations=5:steps=2"}
    whole, _ = drawn(pipe, (), **asked)
    some, _ = drawn(pipe, LEAVES, **asked)
    torch.testing.assert_close(some[3], whole[3], atol=1e-4 * float(whole[3].abs().max()), rtol=1e-4)


def test_forwards_run_those_that_stay_alone():
    pipe, rows = pipeline("next-scale"), []
    decode = type(pipe.transformer).decode

    class Counting(type(pipe.transformer)):
        def decode(self, condition, *arguments):
            rows.append(len(condition.embedding))
            return decode(self, condition, *arguments)

    pipe.transformer.__class__ = Counting
    drawn(pipe, (((1,), 1),), class_labels=[0, 1, 2, 3], method="var")
    assert (rows[0], set(rows[1:])) == (8, {2})


def test_who_may_be_kept():
    staying = Staying(3)
    staying.keep([2, 0])
    assert staying.left() == [0, 2]
    assert staying.rows == [0, 2]
    assert staying.left() is None
    for rows in ([], [1], [0, 7]):
        with pytest.raises(ValueError, match="expected some of"):
            staying.keep(rows)
    with pytest.raises(ValueError, match="leave a batch that they may join"):
        next(iter(small.pipeline().stream([1], method="ar"))).keep([0])


def test_another_images_keys_are_found_out(monkeypatch):
    """A planted fault: who stays goes on with the keys of who stood there."""
    pipe = pipeline("next-scale")
    whole, _ = drawn(pipe, (), class_labels=[0, 1, 2, 3], method="var")
    monkeypatch.setattr(KVCache, "keep", lambda *_: None)
    some, _ = drawn(pipe, (((3,), 2),), class_labels=[0, 1, 2, 3], method="var")
    assert not torch.equal(some[3], whole[3])


@pytest.mark.parametrize("kind", ["next-scale", "mar"])
def test_who_hangs_up_leaves_the_batch(kind):
    """A server's batch goes on with those that somebody waits for, and draws them as before."""
    pipe, kept = pipeline(kind), []
    orders = tuple(Order("m", ASKED[kind][1]["method"], None, (), None, None, i, (i, i + 9)) for i in range(3))
    keep = Staying.keep

    def watched(staying, rows):
        kept.append(list(rows))
        keep(staying, rows)

    painter = Painter({"m": pipe}, 6)
    alone = [list(painter.paint(Batch((order,), (0,)), lambda _: True)) for order in orders]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Staying, "keep", watched)
        events = list(painter.paint(Batch(orders, (0, 1, 2)), lambda ticket: ticket != 1))
    done = {event.order: event for event in events if isinstance(event, Done)}
    assert (kept, set(done)) == ([[0, 1, 4, 5]], {0, 2})
    for index in done:
        (first,) = (event for event in alone[index] if isinstance(event, Done))
        ours, theirs = (np.array(Image.open(io.BytesIO(one.pictures[1])), dtype=int) for one in (done[index], first))
        assert abs(ours - theirs).max() <= 1  # of bytes, by rounding
    assert isinstance(events[-1], Ended)
    assert events[-1].abandoned == 1
