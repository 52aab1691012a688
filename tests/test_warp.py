"""Logits to probabilities: against transformers' processors, and the borders of each setting."""

import math

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vargen.core.types import mirrored
from vargen.core.warp import Warp
from vargen.engine.guidance import Guidance

IDS = torch.LongTensor()  # what the processors of transformers ask for and do not read
LOGITS = torch.randn(50, 40, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 40, 99])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_against_transformers(temperature, top_k, top_p):
    expected = TemperatureLogitsWarper(temperature)(IDS, LOGITS) if temperature != 1 else LOGITS
    expected = TopKLogitsWarper(top_k)(IDS, expected) if top_k else expected
    expected = TopPLogitsWarper(top_p)(IDS, expected) if top_p < 1 else expected
    before = LOGITS.clone()
    torch.testing.assert_close(Warp(temperature, top_k, top_p)(LOGITS), expected.softmax(-1))
    assert torch.equal(LOGITS, before)


def test_tiny_temperature_is_greedy():
    p = Warp(temperature=1e-39)(LOGITS)
    assert torch.equal(p.argmax(-1), LOGITS.argmax(-1))
    assert torch.allclose(p.max(-1).values, torch.ones(50))


def test_ties_with_the_last_kept_logit_stay():
    assert (Warp(top_k=2)(torch.tensor([3.0, 1.0, 1.0, 0.0])) > 0).tolist() == [True, True, True, False]


def test_allowed_ids():
    allowed = torch.arange(40) % 3 == 0
    p = Warp(allowed=allowed, top_k=5)(LOGITS)
    assert (p[:, ~allowed] == 0).all()
    assert ((p > 0).sum(-1) == 5).all()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"top_p": math.nan}, "top-p"),
    ],
)
def test_out_of_range(settings, word):
    with pytest.raises(ValueError, match=word):
        Warp(**settings)


def test_guidance():
    rows = torch.randn(6, 2, 5)
    torch.testing.assert_close(Guidance(3.0).mix(mirrored(rows)), rows[3:] + (rows[:3] - rows[3:]) * 3)
    assert Guidance(1.0).mix(rows).shape == (6, 2, 5)
    assert not Guidance(1.0).active
    assert not Guidance(0.0).active  # published: guidance of 1 or less is off
    assert Guidance(2.0).mix(rows.bfloat16()).dtype == torch.float32
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="guidance"):
            Guidance(wrong)
