"""What stands for CUDA graphs on a CPU: the operations of a run, done again over the same buffers. That fixes every
number that the host knew and reads tensors where they were.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
WAITS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)


class Steps(TorchDispatchMode):
    """Notes operations as they run. Tracing with `make_fx` does the same, and takes ten times as long."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITS:
            raise RuntimeError(f"{func} waits for the device, which nothing may do while a graph is captured")
        out = func(*args, **kwargs or {})
        self.noted.append((func, args, kwargs or {}, out))
        return out

    def again(self, wanted: Tensor) -> Tensor:
        """`wanted` as all operations make it now."""
        made = {}  # by the tensor of the first time, which lives on and keeps its id

        def now(x):
            return made.get(id(x), x)

        for func, args, kwargs, first in self.noted:
            found = func(*tree_map(now, args), **tree_map(now, kwargs))
            for old, new in zip(tree_leaves(first), tree_leaves(found), strict=True):
                made[id(old)] = new
        return now(wanted)


class Traced:
    """As graphs with one memory do, a replay spoils what the others have left."""

    def __init__(self):
        self.left = []

    def __call__(self, run, device):
        with Steps() as steps:
            wanted = run()
        out = steps.again(wanted).clone()
        self.left.append(out)

        def replay():
            for other in self.left:
                other.fill_(float("nan"))
            return out.copy_(steps.again(wanted))

        return replay
