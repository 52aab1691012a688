"""Which implementation of an operation runs: Triton's kernel, or its plain PyTorch twin.

`auto` takes the kernel on CUDA where Triton is installed and the shapes fit, else the twin. `triton` and `torch` take
that one or raise. On a CPU the kernels run under Triton's interpreter (TRITON_INTERPRET=1, set before this is
imported), which is for tests: only `triton` asks for it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

try:
    import triton as found
    import triton.language as language
    from triton.language import constexpr
except ImportError:  # there is no Triton for this platform: the kernels are defined, and never run
    found = language = constexpr = None

triton: Any = found
tl: Any = language

Impl = Literal["auto", "triton", "torch"]


def jit(function: Callable, **options: Any) -> Any:
    """`triton.jit` where there is Triton; else the function, which nobody can run."""
    return function if triton is None else triton.jit(function, **options)


FAST: dict[str, Impl] = {"auto": "auto", "off": "torch", "triton": "triton"}  # what a user says -> what runs


@dataclass
class Kernels:
    """What was asked for, and which implementation of each operation ran."""

    impl: Impl = "auto"
    ran: dict[str, str] = field(default_factory=dict)
    captured: bool = False  # whether launches are being captured in a graph, where each costs the host nothing

    def __post_init__(self) -> None:
        if self.impl not in ("auto", "triton", "torch"):
            raise ValueError(f"got impl {self.impl!r}, expected auto, triton or torch")

    @classmethod
    def of(cls, fast: str) -> "Kernels":
        """As `fast` asks: auto, off or triton. ValueError for anything else."""
        if not isinstance(fast, str) or fast not in FAST:
            raise ValueError(f"got fast {fast!r}, expected {', '.join(FAST)}")
        return cls(FAST[fast])

    def triton(self, op: str, tensor: Tensor, *, unfit: str | None = None, pays: bool = True) -> bool:
        """Whether the kernel of `op` is to run on tensors such as this one; noted in `ran`.

        `unfit` says why it cannot, where it cannot. ValueError says why where the kernel was asked for. `auto` takes it
        where it `pays`: a small kernel that is launched by itself may cost more than what it spares.
        """
        if self.impl == "auto":
            chosen = tensor.is_cuda and triton is not None and unfit is None and pays
        else:
            chosen = self.impl == "triton"
            missing = chosen and (unfit or _missing(tensor))
            if missing:
                raise ValueError(f"the Triton kernel of {op} cannot run: {missing}")
        self.ran[op] = "triton" if chosen else "torch"
        return chosen


def _missing(tensor: Tensor) -> str | None:
    if triton is None:
        return "Triton is not installed"
    if not tensor.is_cuda and not triton.knobs.runtime.interpret:
        return f"the tensors are on the {tensor.device.type}, and TRITON_INTERPRET is not set"
    return None


def on(device: torch.device) -> AbstractContextManager[Any]:
    """`device` as the current one: where graphs are captured, and kernels launched."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def power(size: int, *, least: int = 16) -> int:
    """The least power of two that is not below `size`."""
    return max(least, 1 << (size - 1).bit_length())
