"""How many operations a step has: what is small is bound by their number, so that it must not creep back."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vargen


class Counting(TorchDispatchMode):
    """Counts what is called of torch."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def of_a_step(pipe, method):
    steps = pipe.stream([3], method=method, seed=0)
    for _ in range(20):
        next(steps)
    with Counting() as counting:
        next(steps)
    return counting.count


@pytest.mark.parametrize(("method", "most"), [("ar", 222), ("sjd-coupled:window=16", 290)])
def test_operations_of_a_step(method, most):
    pipe = vargen.load("pocket-llamagen", device="cpu")
    whole = of_a_step(pipe, method)
    layers = len(pipe.transformer.layers)
    pipe.transformer.layers = torch.nn.ModuleList(list(pipe.transformer.layers)[: layers // 2])
    half = of_a_step(pipe, method)
    assert (sum(whole.values()) - sum(half.values())) / (layers - layers // 2) <= 24, whole - half
    assert sum(whole.values()) <= most, whole
    assert not any("complex" in name or name.startswith("aten.type_as") for name in whole)
