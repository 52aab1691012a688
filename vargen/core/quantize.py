"""Weights of a transformer's layers in 8 or 4 bits, by torchao: `vargen.load(name, quantize="int8")`.

The linear maps in the layers are stored so, and nothing else: embeddings, output heads, heads that denoise, drafters
and image tokenizers stay as they were, and arithmetic stays in the transformer's dtype. What comes of it is another
model with a law of its own, near the published one. Every method runs on it as on any model: one that is exact draws
from the law of the quantised model, and `sjd-exact` gives the tokens that `ar` draws from it.

int8: a row has one step, its largest weight over 127.5, and no weight moves by more than half of that. torchao casts a
whole matrix to the transformer's dtype for every product, so that memory is saved, and seconds are not unless
something compiles the cast into the product. int4: `GROUP` neighbours in a row have a step, a fifteenth of their range,
and an offset; the kernel is torch's for CUDA, and rows are padded to multiples of 1,024 weights for it.
"""

import importlib
import importlib.metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

KINDS = ("int8", "int4")
GROUP = 128  # weights in a row that share a step in int4
STACKS = ("layers", "encoder_blocks", "decoder_blocks")  # what our models and transformers' call their layers


def check(kind: str | None, device: torch.device, dtype: torch.dtype) -> None:
    """ValueError where a transformer of `dtype` on `device` cannot be quantised so, known before anything is loaded."""
    if kind is None:
        return
    if kind not in KINDS:
        raise ValueError(f"got quantize {kind!r}, expected {' or '.join(KINDS)}")
    _torchao()
    if kind == "int8":
        return
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if not able or dtype != torch.bfloat16:
        wanted = "a CUDA device of compute capability 8.0 or more and bfloat16"
        raise ValueError(f"quantize int4 needs {wanted}, got {device} and {str(dtype).removeprefix('torch.')}")


def apply(model: nn.Module, kind: str) -> None:
    """Quantise the layers of `model` in place, whose weights are there in full. ValueError where int4 does not fit."""
    found, torchao = linears(model), _torchao()
    if not found:
        raise ValueError(f"{type(model).__name__} cannot be quantised: no layers were found in it")
    if kind == "int8":
        config = torchao.Int8WeightOnlyConfig(set_inductor_config=False)  # torch.compile's settings are the user's
    else:
        for name, part in found.items():
            if part.in_features % GROUP:
                width = f"the width {part.in_features} of {name}"
                raise ValueError(f"quantize int4 has groups of {GROUP} weights, which do not divide {width}")
        packing = {"int4_packing_format": "tile_packed_to_4d", "set_inductor_config": False}
        config = torchao.Int4WeightOnlyConfig(group_size=GROUP, **packing)
    torchao.quantize_(model, config, filter_fn=lambda part, name: name in found)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps in the layers of a transformer, by name."""
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    within = tuple(f"{name}." for name in lists if name.split(".")[-1] in STACKS)
    named = model.named_modules()
    return {name: part for name, part in named if name.startswith(within) and isinstance(part, nn.Linear)}


def parts(value: Tensor) -> list[Tensor]:
    """The plain tensors that a weight is stored as: itself, or a quantised one's integers, steps and offsets."""
    if not is_traceable_wrapper_subclass(value):
        return [value]
    held: Any = value
    return [getattr(held, name) for name in held.__tensor_flatten__()[0]]


def stored(model: nn.Module) -> int:
    """Bytes of the weights of `model`."""
    return sum(part.nbytes for value in model.parameters() for part in parts(value))


def version() -> str:
    """torchao's, for traces."""
    return importlib.metadata.version("torchao")


def _torchao() -> Any:
    try:
        return importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise ValueError(f"quantize needs torchao, pip install 'vargen[quant]': {error}") from None
