"""Weights that are joined, or lie in another order, than in published files; a module's state has them as published.

A step has fewer operations where one projection stands for two or three. `state_dict` splits what is joined, and
loading joins it again, so that files keep their names whoever writes them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def published(module: nn.Module, name: str, rows: Mapping[str, int]) -> None:
    """The parameter `name` of `module` is called `rows` in its state: so many rows each, one below the other."""

    def split(value: Tensor) -> dict[str, Tensor]:
        return dict(zip(rows, value.split(list(rows.values())), strict=True))

    _hook(module, name, split, lambda parts: torch.cat([parts[key] for key in rows]), tuple(rows))


def paired(module: nn.Module, name: str, heads: int) -> None:
    """The rows of queries and keys in the parameter `name` of `module`, (3 H D, d), pair neighbours in its state.

    Here channels i and i + D / 2 of a head are turned together, there 2 i and 2 i + 1.
    """

    def turned(value: Tensor, *, out: bool) -> Tensor:
        turning, values = value.tensor_split([2 * len(value) // 3])
        pairs = turning.unflatten(0, (2 * heads, *((2, -1) if out else (-1, 2)))).transpose(1, 2)
        return torch.cat([pairs.flatten(0, 2), values])

    _hook(
        module,
        name,
        lambda value: {name: turned(value, out=True)},
        lambda parts: turned(parts[name], out=False),
        (name,),
    )


def _hook(
    module: nn.Module,
    name: str,
    split: Callable[[Tensor], dict[str, Tensor]],
    join: Callable[[dict[str, Tensor]], Tensor],
    theirs: tuple[str, ...],
) -> None:
    def told(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        ours = list(state)  # the order stays
        for key in ours:
            value = state.pop(key)
            if key == prefix + name and type(value) in (Tensor, nn.Parameter):  # quantised weights stay as they are
                state |= {prefix + each: part for each, part in split(value).items()}
            else:
                state[key] = value

    def taken(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        keys = [prefix + each for each in theirs]
        if all(key in state for key in keys):
            parts = {each: state.pop(key) for each, key in zip(theirs, keys, strict=True)}
            state[prefix + name] = join(parts)

    module.register_state_dict_post_hook(told)
    module.register_load_state_dict_pre_hook(taken)
