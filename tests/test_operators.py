"""How many operations a step has: what is small is bound by their number, so that it must not creep back."""

from collections import Counter
from dataclasses import replace
from typing import Any

import every_kind
import flow_loop
import pytest
import torch
from small import LATENTS, SCALES, llamagen, mar, randomised, var
from torch.utils._python_dispatch import TorchDispatchMode

import vargen
from vargen.core.types import Block, Denoising, Group
from vargen.models.diffusion import tables
from vargen.models.flowar import FlowAR, FlowARConfig
from vargen.models.xar import XAR, XARConfig


class Counting(TorchDispatchMode):
    """Counts what is called of torch."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def of_a_step(pipe, method, steps=20):
    asked = [3] if pipe.transformer.spec.classes else ["a red boat"]
    drawn = pipe.stream(asked, method=method, seed=0)
    for _ in range(steps):
        next(drawn)
    with Counting() as counting:
        next(drawn)
    return counting.count


@pytest.mark.parametrize(
    ("name", "method", "a_layer", "most"),
    [
        ("pocket-llamagen", "ar", 24, 221),
        ("pocket-llamagen", "sjd-coupled:window=16", 24, 284),
        ("pocket-lumina", "ar", 36, 233),
        ("pocket-lumina", "sjd-coupled:window=16", 36, 299),
    ],
)
def test_operations_of_a_step(name, method, a_layer, most):
    pipe = vargen.load(name, device="cpu")
    whole = of_a_step(pipe, method)
    held = pipe.transformer.decoder.model if name == "pocket-lumina" else pipe.transformer
    layers = len(held.layers)
    held.layers = torch.nn.ModuleList(list(held.layers)[: layers // 2])
    half = of_a_step(pipe, method)
    assert (sum(whole.values()) - sum(half.values())) / (layers - layers // 2) <= a_layer, whole - half
    assert sum(whole.values()) <= most, whole
    assert not any("complex" in name or name.startswith("aten.type_as") for name in whole)


def test_a_compiled_step_writes_the_cache():
    """A compiler takes one view of the cache; of several that overlap it makes none of them right."""
    model, out = llamagen().eval(), []
    tokens = torch.tensor([[3, 7, 1]])
    for decode in (model.decode, torch.compile(model.decode, backend="aot_eager")):
        with torch.inference_mode():
            cache = model.make_cache(1)
            model.prefill(model.class_condition(torch.tensor([1]), guided=False), cache)
            blocks = [Block(tokens, torch.arange(first, first + 3)[None], first, first + 3) for first in range(2)]
            out.append((*(decode(block, cache) for block in blocks), cache.keys, cache.values))
    for plain, compiled in zip(*out, strict=True):
        assert torch.allclose(plain, compiled, atol=1e-5)


@pytest.mark.parametrize(("family", "a_layer"), [("emu", 30), ("janus", 30), ("glm", 35)])
def test_operations_of_transformers_layers(family, a_layer):
    """Their own forward takes 62, 59 and 82."""
    pipe = vars(every_kind)[family]()
    pipe.set_progress_bar_config(disable=True)
    whole = of_a_step(pipe, "ar", steps=4)
    held = pipe.transformer.language
    layers = len(held.layers)
    held.layers = torch.nn.ModuleList(list(held.layers)[: layers // 2])
    half = of_a_step(pipe, "ar", steps=4)
    assert (sum(whole.values()) - sum(half.values())) / (layers - layers // 2) <= a_layer, whole - half


LABELS = torch.tensor([1, 2])


def counted(run):
    """Operations of `run`, when it is not the first."""
    with torch.inference_mode():
        run()
        with Counting() as counting:
            run()
    return counting.count


def scale(layers, *, shared=False):
    """VAR's third scale, guided."""
    model = var(replace(SCALES, layers=layers, shared=shared))
    condition, cache = model.class_condition(LABELS, guided=True), model.make_cache(4, 30)
    return lambda: model.decode(condition, torch.randn(4, 9, 4), range(2, 3), cache)


def second(model):
    """The second group of a model of flows: how it is decoded, and what its head is given."""
    values = torch.zeros(2, model.spec.slots, model.spec.channels)
    condition, cache = model.class_condition(LABELS, guided=True), model.make_cache(4)
    first, group = (flow_loop.group(model.spec, index, values) for index in range(2))
    model.decode(condition, first, cache)
    return lambda: model.decode(condition, group, cache)


def flowar(layers, depth=1, *, cross=False):
    config = FlowARConfig(layers, 2, 32, 3, 5, depth, 64, cross, (1, 2, 4), 4)
    return randomised(FlowAR(config), 0, 0.7)


def flow_head(depth, *, cross):
    """A step of FlowAR's head."""
    model: Any = flowar(1, depth, cross=cross)
    told = model.head.tell(second(model)(), (1.0, 0.5, 0.0))
    return lambda: model.head.velocity(told, 0, torch.randn(4, 4, 3))


def xar(layers):
    return randomised(XAR(XARConfig(layers, 2, 32, 3, 5, 4, 2)), 0, 0.7)


def cell(layers):
    """A step of xAR, which is the whole model."""
    model: Any = xar(layers)
    context, time = second(model)(), torch.zeros(32)
    return lambda: model.velocity(context, time, torch.randn(4, 4, 3))


def masked(layers):
    """MAR's first group but one."""
    model = mar(replace(LATENTS, layers=layers))
    condition, places = model.class_condition(LABELS, guided=True), torch.arange(16).expand(2, -1)
    group = Group(places[:, 3:6], places[:, :3], torch.zeros(2, 16, 3))
    return lambda: model.decode(condition, group, None)


def diffusion(depth):
    """A step of MAR's head, guided."""
    head, how = mar(replace(LATENTS, head_depth=depth)).head, Denoising(4, 2.0)
    x, law = torch.randn(2, 3, 3), tables(4, 999, torch.device("cpu")).laws(how)[1]
    time, condition = torch.randn(32), torch.randn(4, 3, 32)
    return lambda: head.step(x, time, condition, law, x)


A_LAYER = {  # how many layers one more is, what is run, and the most operations of a layer
    "VAR's scale": (1, scale, 27),
    "VAR's scale, shared": (1, lambda n: scale(n, shared=True), 27),
    "MAR's group": (2, masked, 15),
    "MAR's head": (1, diffusion, 6),
    "FlowAR's scale": (2, lambda n: second(flowar(n)), 25),
    "xAR's cell, cached": (2, lambda n: second(xar(n)), 26),
    "xAR's cell": (2, cell, 27),
    "FlowAR's head": (1, lambda n: flow_head(n, cross=False), 26),
    "FlowAR's head that attends": (1, lambda n: flow_head(n, cross=True), 39),
}


@pytest.mark.parametrize("name", A_LAYER)
def test_operations_of_a_layer(name):
    each, made, most = A_LAYER[name]
    with torch.inference_mode():
        one, two = made(1), made(2)
    few, many = counted(one), counted(two)
    assert 0 < (sum(many.values()) - sum(few.values())) / each <= most, many - few
    assert not any("complex" in name or name.startswith(("aten.type_as", "aten.to.")) for name in many - few)
