"""Weights that are joined, or lie in another order, than in published files; a module's state has them as published.

A step has fewer operations where one projection stands for two or three. `state_dict` splits what is joined, and
loading joins it again, so that files keep their names whoever writes them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def published(module: nn.Module, name: str, rows: Mapping[str, int]) -> None:
    """The parameter `name` of `module` is called `rows` in its state: so many rows each, one below the other."""
    _hook(module, name, partial(_split, dict(rows)), partial(_joined, tuple(rows)), tuple(rows))


def paired(module: nn.Module, name: str, heads: int) -> None:
    """The rows of queries and keys in the parameter `name` of `module`, (3 H D, d), pair neighbours in its state.

    Here channels i and i + D / 2 of a head are turned together, there 2 i and 2 i + 1.
    """
    _hook(module, name, partial(_turned_out, name, heads), partial(_turned_in, name, heads), (name,))


# No function below is inside another: a module is pickled with its hooks.


def _split(rows: Mapping[str, int], value: Tensor) -> dict[str, Tensor]:
    return dict(zip(rows, value.split(list(rows.values())), strict=True))


def _joined(names: tuple[str, ...], parts: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([parts[key] for key in names])


def _turned_out(name: str, heads: int, value: Tensor) -> dict[str, Tensor]:
    return {name: _turned(value, (2 * heads, 2, -1))}


def _turned_in(name: str, heads: int, parts: Mapping[str, Tensor]) -> Tensor:
    return _turned(parts[name], (2 * heads, -1, 2))


def _turned(value: Tensor, pairs: tuple[int, int, int]) -> Tensor:
    turning, values = value.tensor_split([2 * len(value) // 3])
    return torch.cat([turning.unflatten(0, pairs).transpose(1, 2).flatten(0, 2), values])


def _hook(
    module: nn.Module,
    name: str,
    split: Callable[[Tensor], dict[str, Tensor]],
    join: Callable[[dict[str, Tensor]], Tensor],
    theirs: tuple[str, ...],
) -> None:
    module.register_state_dict_post_hook(partial(_told, name, split))
    module.register_load_state_dict_pre_hook(partial(_taken, name, join, theirs))


def _told(
    name: str,
    split: Callable[[Tensor], dict[str, Tensor]],
    _: nn.Module,
    state: dict[str, Any],
    prefix: str,
    __: Any,
) -> None:
    ours = list(state)  # the order stays
    for key in ours:
        value = state.pop(key)
        if key == prefix + name and type(value) in (Tensor, nn.Parameter):  # quantised weights stay as they are
            state |= {prefix + each: part for each, part in split(value).items()}
        else:
            state[key] = value


def _taken(
    name: str,
    join: Callable[[dict[str, Tensor]], Tensor],
    theirs: tuple[str, ...],
    _: nn.Module,
    state: dict[str, Any],
    prefix: str,
    *__: Any,
) -> None:
    keys = [prefix + each for each in theirs]
    if all(key in state for key in keys):
        parts = {each: state.pop(key) for each, key in zip(theirs, keys, strict=True)}
        state[prefix + name] = join(parts)
