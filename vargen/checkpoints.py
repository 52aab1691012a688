"""Reading and writing weights: strict about keys and shapes, never unpickling code, atomic on disk."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vargen.files import write_atomically


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors."""
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, dict(metadata or {})))


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. ValueError, naming the file, where it is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"no weights file {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"the weights file {path} is damaged: {error}") from error


def metadata(path: Path) -> dict[str, str]:
    """The text that a safetensors file carries beside its tensors."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Load `tensors` strictly, in float32. ValueError names every missing, unexpected or misshapen key."""
    expected = module.state_dict()
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if problems:
        raise ValueError(f"the weights file {source} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict({key: value.to(torch.float32) for key, value in tensors.items()})
