"""Weights of linear layers as oneDNN reads them on a CPU: put in order once, not anew in every product.

What runs is a copy of the model that shares all weights but has these layers replaced, so that the model itself is as
it was: whoever saves, moves or changes it sees nothing. It is made for a batch and then gone, so that it has whatever
was set on the model before. What is in order is held beside the weights, which takes their memory once more, and is
therefore done only where that is little of what the machine has; it is good while the weights are the same numbers.
"""

import copy
import zlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.core.joined import Projection
from vargen.core.machine import total_memory

SHARE = 0.25  # of the machine's memory that weights in order may take
ROWS = 32  # of a product, for which oneDNN chooses the order; others are right as well
LEAST, ALONE = 1 << 17, 1 << 20  # weights of a layer that gains, for several rows at once, and for one alone
OURS = ("vargen", "torch", "transformers")  # whose modules keep nothing for themselves that a copy would have alone
Stamp = tuple[torch.dtype, torch.Size, int]
_ordered: WeakKeyDictionary[nn.Linear, tuple[Stamp, Tensor]] = WeakKeyDictionary()  # models of many sizes share layers


class PackedLinear(nn.Linear):
    """A linear layer, (..., in) to (..., out), whose weights are in order. It has those of another one as well."""

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        stamp = _stamp(plain)
        if plain not in _ordered or _ordered[plain][0] != stamp:
            _ordered[plain] = (stamp, torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), ROWS))
        self._ordered = _ordered[plain][1]

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = self.bias if bias is None else bias
        if input.numel() == self.in_features and self.weight.numel() < ALONE:
            return F.linear(input, self.weight, bias)
        return torch.ops.mkldnn._linear_pointwise(input, self._ordered, bias, "none", [], "")


def packed(model: nn.Module) -> nn.Module:
    """A model that gives what `model` gives, but for rounding, from the same weights; itself where nothing is gained.

    For decoding alone: it knows no gradients.
    """
    layers = fitting(model)
    if not layers:
        return model
    shared: dict[int, Any] = {id(value): value for value in (*model.parameters(), *model.buffers())}
    ours: dict[int, Any] = {id(layer): PackedLinear(layer) for layer in layers}
    try:
        return copy.deepcopy(model, shared | ours)
    except Exception:  # it has something that cannot be copied, such as a lock
        return model


def fitting(model: nn.Module) -> list[nn.Linear]:
    """The layers of a model whose weights gain by being put in order; none where memory is short, or where somebody
    looks at what its modules do, or wrote one of them: a copy would tell a copy of whoever listens.
    """
    ours = all(type(part).__module__.split(".")[0] in OURS for part in model.modules())
    if not torch.backends.mkldnn.is_available() or not ours or watched(model):
        return []
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtypes = (torch.float32, torch.bfloat16) if half else (torch.float32,)
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    layers = [layer for layer in linear if type(layer) in (nn.Linear, Projection) and _plain(layer, dtypes)]
    held, memory = sum(layer.weight.nbytes for layer in layers), total_memory(torch.device("cpu"))
    return layers if memory is not None and held <= SHARE * memory else []


def forget() -> None:
    """Give up what is in order."""
    _ordered.clear()


def _plain(layer: nn.Linear, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether it is one of `dtypes` on a CPU, and not quantised."""
    weight = layer.weight
    return type(weight) is nn.Parameter and weight.is_cpu and weight.dtype in dtypes and weight.numel() >= LEAST


def watched(model: nn.Module) -> bool:
    """Whether a module of it has hooks, or a method of its own: somebody looks at what it does, or changes it."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or any(callable(getattr(type(part), name, None)) for name in own)
        for part, own in ((each, vars(each)) for each in model.modules())
    )


def _stamp(layer: nn.Linear) -> Stamp:
    """Of the numbers themselves: PyTorch does not tell what is written through `.data` or by NumPy."""
    weight = layer.weight.detach().contiguous()
    return weight.dtype, weight.shape, zlib.crc32(weight.view(torch.uint8).numpy().data)
