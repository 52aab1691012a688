"""Weights that are joined, or lie in another order, than in published files; a module's state has them as published.

A step has fewer operations where one projection stands for two or three. `state_dict` splits what is joined, and
loading joins it again, so that files keep their names whoever writes them. What is quantised stays as it is, both ways.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Projection(nn.Linear):
    """A linear layer without a bias of its own: that of every call is given, joined from several parameters."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(input, self.weight, bias)


def published(module: nn.Module, name: str, rows: Mapping[str, int]) -> None:
    """The parameter `name` of `module` is called `rows` in its state: so many rows each, one below the other."""
    Rows(name, tuple(rows), tuple(rows.values())).hook(module)


def paired(module: nn.Module, name: str, theirs: str, heads: int, dim: int) -> None:
    """The first rows of the parameter `name` of `module`, so many heads of `dim`, pair neighbours in its state.

    Here channels i and i + D / 2 of a head are turned together, there 2 i and 2 i + 1. The state has another name for
    it, `theirs`, so that nobody takes the one for the other.
    """
    Pairs(name, (theirs,), heads, dim).hook(module)


def owners(module: nn.Module) -> dict[str, str]:
    """The names in the state of `module` that are joined or turned when loaded, and by which module in it."""
    out = {}
    for place, part in module.named_modules():
        told = [each.hook for each in part._state_dict_hooks.values() if isinstance(each, Told)]
        out |= {f"{place}.{name}" if place else name: place for hook in told for name in hook.theirs}
    return out


@dataclass(frozen=True)
class Hook(ABC):
    """What a module's state calls the parameter `name`; it goes where a module is pickled to."""

    name: str
    theirs: tuple[str, ...]

    @abstractmethod
    def split(self, value: Tensor) -> dict[str, Tensor]:
        """The parameter as a state has it."""

    @abstractmethod
    def join(self, parts: list[Tensor]) -> Tensor:
        """The parameter, of what a state has of it."""

    @abstractmethod
    def shapes(self, own: torch.Size) -> list[tuple[int, ...]]:
        """Of what a state has of a parameter whose shape is `own`."""

    def hook(self, module: nn.Module) -> None:
        module.register_state_dict_post_hook(Told(self))
        module.register_load_state_dict_pre_hook(self.taken)

    def taken(
        self,
        module: nn.Module,
        state: dict[str, Any],
        prefix: str,
        _: dict[str, Any],
        __: bool,
        missing: list[str],
        ___: list[str],
        errors: list[str],
    ) -> None:
        """Join what is there with what the module has of the rest, and say what is missing or misshapen."""
        own, keys = module.get_parameter(self.name), [prefix + each for each in self.theirs]
        there = [key for key in keys if key in state]
        if not there or not all(_plain(state[key]) for key in there):
            return
        wrong = [
            f"size mismatch for {key}: got {tuple(state[key].shape)}, expected {shape}"
            for key, shape in zip(keys, self.shapes(own.shape), strict=True)
            if key in there and state[key].shape != shape
        ]
        if wrong:
            errors += wrong
            joined = own.detach()
        elif there == keys:
            joined = self.join([state[key] for key in keys])
        elif own.is_meta or not _plain(own):
            return  # there is no rest
        else:
            missing += [key for key in keys if key not in there]
            rest = dict(zip(keys, self.split(own.detach()).values(), strict=True))
            joined = self.join([state.get(key, part).to(part) for key, part in rest.items()])
        for key in there:
            del state[key]
        state[prefix + self.name] = joined


def _plain(value: Any) -> bool:
    """Whether it is a tensor, and no quantised one."""
    return isinstance(value, Tensor) and not is_traceable_wrapper_subclass(value)


class Told:
    """A hook of the state; torch marks it with an attribute, which a method cannot have."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def __call__(self, _: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        ours = list(state)  # the order stays
        for key in ours:
            value = state.pop(key)
            if key == prefix + self.hook.name and not is_traceable_wrapper_subclass(value):
                state |= {prefix + each: part for each, part in self.hook.split(value).items()}
            else:
                state[key] = value


@dataclass(frozen=True)
class Rows(Hook):
    """Several, one below the other."""

    counts: tuple[int, ...]

    def split(self, value: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.theirs, value.split(self.counts), strict=True))

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)

    def shapes(self, own: torch.Size) -> list[tuple[int, ...]]:
        return [(count, *own[1:]) for count in self.counts]


@dataclass(frozen=True)
class Pairs(Hook):
    """Heads of which the first are in another order."""

    heads: int  # that are turned
    dim: int  # of a head

    def split(self, value: Tensor) -> dict[str, Tensor]:
        return {self.theirs[0]: self._turned(value, 2, -1)}

    def join(self, parts: list[Tensor]) -> Tensor:
        return self._turned(parts[0], -1, 2)

    def shapes(self, own: torch.Size) -> list[tuple[int, ...]]:
        return [tuple(own)]

    def _turned(self, value: Tensor, *shape: int) -> Tensor:
        turning, rest = value.tensor_split([self.heads * self.dim])
        pairs = turning.unflatten(0, (self.heads, *shape)).transpose(1, 2)
        return torch.cat([pairs.flatten(0, 2), rest])
