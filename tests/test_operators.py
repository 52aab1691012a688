"""How many operations a step has: what is small is bound by their number, so that it must not creep back."""

from collections import Counter

import every_kind
import pytest
import torch
from small import llamagen
from torch.utils._python_dispatch import TorchDispatchMode

import vargen
from vargen.core.types import Block


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
        ("pocket-llamagen", "ar", 24, 222),
        ("pocket-llamagen", "sjd-coupled:window=16", 24, 285),
        ("pocket-lumina", "ar", 36, 234),
        ("pocket-lumina", "sjd-coupled:window=16", 36, 300),
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
