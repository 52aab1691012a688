"""The method that is used where none is named: one that repeats itself, on every path to a picture."""

import pytest

from vargen.core import registry
from vargen.core.preset import DEFAULT_METHODS
from vargen.demo import controls
from vargen.eval import plan
from vargen.server import options, orders, reading, schema


@pytest.mark.parametrize("name", registry.MODELS)
def test_no_default_hangs_on_the_clock(name):
    preset = registry.preset(name)
    for recipe in preset.recipes.values():
        sampler, settings = registry.method(preset.method, recipe.settings)
        assert sampler.block_width(settings) is not None  # None: a width is chosen by measured seconds
        assert (sampler.kind, sampler.plan) in ((preset.kind, preset.plan), (preset.kind, None))


def test_all_doors_lead_to_it():
    usual = DEFAULT_METHODS["raster"]
    name = "pocket-llamagen"
    assert registry.preset(name).method == usual
    assert plan.make(registry.preset(name), None, 1, recipe=None, law={}).method == usual
    assert controls.first(name, controls.usual_method(name)) == usual
    card = orders.Card(name, ((64, 64),), drafts=True)
    body = schema.ImageRequest.model_validate({"model": name, "class": "beach"})
    assert reading.read(body, {name: card}, options.Options()).method == usual
