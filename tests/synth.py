"""Weights by name, so that a checkpoint needs no file.

Every golden case in this folder was made from the official reference implementation, built at the size in
`<case>.json` and filled with the values below; `<case>.safetensors` holds the inputs and what the reference computed
from them, in float32 on a CPU. A port is right when the same values, loaded through its own checkpoint loader from
the official key names and nesting, give the same outputs.

    state_dict = synth.state_dict(case["parameters"])          # {official key: float32 tensor}

The stream is NumPy's legacy MT19937, which is frozen: the same name and shape give the same bytes everywhere.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal scaled by 1/sqrt(fan in); vectors are 1 + 0.1 n (weights) or 0.1 n (biases and the rest)."""
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    values = rng.standard_normal(int(np.prod(shape)) if shape else 1).reshape(shape).astype(np.float32)
    if len(shape) <= 1:
        values = (1.0 + 0.1 * values) if name.endswith("weight") else 0.1 * values
    else:
        values = values / np.float32(np.sqrt(float(np.prod(shape[1:]))))
    return torch.from_numpy(np.ascontiguousarray(values.astype(np.float32)))


def state_dict(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}


def case(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """The description and the recorded tensors of one golden case of this folder."""
    from safetensors.torch import load_file

    folder = Path(__file__).parent / "golden"
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")
