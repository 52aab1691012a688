"""How many kernels a layer launches on CUDA, counted without it: Triton's, and operations of torch that are no views.

As under a captured graph, where every kernel of a forward runs that can. What they would compute is not computed.
"""

from collections import Counter
from dataclasses import replace

import chameleon
import every_kind
import pytest
import torch
from small import CONFIG, llamagen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vargen.core.dispatch import Kernels, triton
from vargen.core.types import Block

pytestmark = pytest.mark.skipif(triton is None or torch.cuda.is_available(), reason="kernels are not interpreted here")


class Launching(TorchDispatchMode):
    """Counts what launches: what writes a tensor that is there, or makes one that is neither a view nor left empty.

    Outside of `inference_mode` operations come here in parts, as they reach a device.
    """

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        before = {place(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        made = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor) and place(value) not in before]
        if func._schema.is_mutable or (made and "empty" not in str(func)):
            self.count[str(func)] += 1
        return out


def place(value):
    return value.untyped_storage()._cdata


@pytest.fixture
def launched(monkeypatch):
    """Counts a run's launches. Triton's kernels are not run."""
    from triton.runtime.interpreter import GridExecutor

    kernels = Counter()

    def counted(run):
        with torch.no_grad():
            run()
            kernels.clear()
            with Launching() as launching:
                run()
        return launching.count + kernels

    def noted(executor, *_, **__):
        kernels[f"triton {executor.fn.__module__.split('.')[-1]}.{executor.fn.__name__}"] += 1

    monkeypatch.setattr(GridExecutor, "__call__", noted)
    return counted


def step(model, width):
    """A step of so many tokens, of one image with guidance."""
    cache = model.make_cache(2)
    cache.kernels = Kernels("triton", captured=True)
    slots = torch.arange(5, 5 + width).expand(2, -1)
    block = Block(torch.zeros(2, width, dtype=torch.int64), slots, 0, model.spec.slots)
    return lambda: model.decode(block, cache)


def a_layer(launched, made):
    return dict(launched(made(2)) - launched(made(1)))


@pytest.mark.parametrize("width", [1, 4])
def test_launches_of_llamagens_layer(launched, width):
    """Norm, projection, rotation and write, attention and its join, projection, norm, gate and up, SiLU, projection."""
    found = a_layer(launched, lambda layers: step(llamagen(replace(CONFIG, layers=layers)), width))
    assert found == {
        "aten.mm.default": 4,
        "triton norm._rows": 2,
        "triton rope._heads": 1,
        "triton attention._stretch": 1,
        "triton attention._join": 1,
        "triton silu_mul._channels": 1,
    }
    assert sum(found.values()) == 10


def test_launches_of_chameleons_layer(launched):
    """The norms of heads are with the rotation."""

    def made(layers):
        model = chameleon.lumina(config=replace(chameleon.CONFIG, layers=layers))
        cache = model.make_cache(2, front=4)
        cache.kernels = Kernels("triton", captured=True)
        block = Block(torch.full((2, 1), 3), torch.zeros(2, 1, dtype=torch.int64), 0, 1)
        return lambda: model.decode(block, cache)

    assert sum(a_layer(launched, made).values()) == 10


@pytest.mark.parametrize(("family", "most"), [("emu", 13), ("janus", 13), ("glm", 21)])
def test_launches_of_transformers_layers(launched, family, most):
    """Their projections are not joined; of GLM's heads a part is turned, and its norms stand behind as well."""

    def made(layers):
        model = vars(every_kind)[family]().transformer
        model.language.layers = model.language.layers[:layers]
        return step(model, 1)

    assert sum(a_layer(launched, made).values()) <= most
