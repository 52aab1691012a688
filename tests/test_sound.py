"""Numbers that are none end in a sentence and not in a picture: in weights, in logits, in pixels, from temperatures."""

import pytest
import torch
from small import latent_pipeline, llamagen, pipeline, scale_pipeline

from vargen.core import registry
from vargen.engine.sound import Sound

KINDS = {
    "raster": (pipeline, "raster"),
    "next-scale": (scale_pipeline, "next-scale"),
    "continuous": (latent_pipeline, "masked"),
}
FEWER = {"lantern": ":k=9", "lantern++": ":k=9", "code": ":scales=2"}  # than the small models have
CASES = [(kind, method) for kind, (_, plan) in KINDS.items() for method in registry.methods(kind, plan)]


def spoilt(model, bad):
    """`model` with one bad number in its last matrix."""
    weight = [value for value in model.parameters() if value.dim() > 1][-1]
    weight.view(-1)[0] = bad
    return model


@pytest.fixture(scope="module")
def pipes():
    return {kind: make() for kind, (make, _) in KINDS.items()}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_no_method_draws_from_a_law_that_is_none(pipes, kind, method, bad):
    pipe = KINDS[kind][0]()
    spoilt(pipe.transformer.output if kind == "raster" else pipe.transformer, bad)
    if registry.sampler(method).partner and kind == "raster":
        pipe.drafter = pipe.drafters["small"] = llamagen()
    with pytest.raises(ValueError, match=r"NaN or infinite|are no numbers"):
        pipe([1, 2], method=method + FEWER.get(method, ""), seed=0, output_type="latent")


@pytest.mark.parametrize("method", ["speculative", "speculative-tree", "speculative-dynamic"])
def test_a_drafter_s_laws_are_looked_at(method):
    pipe = pipeline()
    drafter = llamagen()
    spoilt(drafter.output, float("nan"))
    pipe.drafter = pipe.drafters["small"] = drafter
    with pytest.raises(ValueError, match="the drafter gave logits that are NaN or infinite in its forward 1"):
        pipe([1, 2], method=method, seed=0, output_type="latent")


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_looked_at(kind):
    pipe = KINDS[kind][0]()
    for value in pipe.tokenizer.parameters():
        value.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        pipe([1], seed=0)


def test_on_a_gpu_it_is_read_at_the_end():
    """What is noted there is the first forward that was wrong, and -inf alone is no fault."""
    sound = Sound("the model", torch.device("cpu"))
    sound._late = True
    good = torch.tensor([[[0.0, -float("inf")]]])
    for logits in (good, torch.full_like(good, float("nan")), good, torch.full_like(good, -float("inf"))):
        sound.note(logits)
    with pytest.raises(ValueError, match="in its forward 2"):
        sound.check()


@pytest.mark.parametrize("temperature", [1e-46, 1e-300, 1e39, 0, -1.0, float("nan")])
@pytest.mark.parametrize("kind", ["raster", "next-scale"])
def test_temperatures_that_no_score_can_bear(pipes, kind, temperature):
    with pytest.raises(ValueError, match="got temperature"):
        pipes[kind]([1], temperature=temperature)


@pytest.mark.parametrize("temperature", [1.5e-45, 3.4e38])
@pytest.mark.parametrize("kind", ["raster", "next-scale"])
def test_the_least_and_most_temperature_draw(pipes, kind, temperature):
    out = pipes[kind]([1, 2], temperature=temperature, seed=0, output_type="latent", method=None)
    assert out.tokens.min() >= 0
