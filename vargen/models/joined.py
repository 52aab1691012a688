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


def paired(module: nn.Module, name: str, heads: int) -> None:
    """The rows of queries and keys in the parameter `name` of `module`, (3 H D, d), pair neighbours in its state.

    Here channels i and i + D / 2 of a head are turned together, there 2 i and 2 i + 1.
    """
    Pairs(name, (name,), heads).hook(module)


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

    def hook(self, module: nn.Module) -> None:
        module.register_state_dict_post_hook(Told(self))
        module.register_load_state_dict_pre_hook(self.taken)

    def taken(self, _: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        keys = [prefix + each for each in self.theirs]
        if all(key in state and not is_traceable_wrapper_subclass(state[key]) for key in keys):
            state[prefix + self.name] = self.join([state.pop(key) for key in keys])


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


@dataclass(frozen=True)
class Pairs(Hook):
    """Queries, keys and values, of which the first two are in another order."""

    heads: int

    def split(self, value: Tensor) -> dict[str, Tensor]:
        return {self.name: self._turned(value, 2, -1)}

    def join(self, parts: list[Tensor]) -> Tensor:
        return self._turned(parts[0], -1, 2)

    def _turned(self, value: Tensor, *shape: int) -> Tensor:
        turning, values = value.tensor_split([2 * len(value) // 3])
        pairs = turning.unflatten(0, (2 * self.heads, *shape)).transpose(1, 2)
        return torch.cat([pairs.flatten(0, 2), values])
