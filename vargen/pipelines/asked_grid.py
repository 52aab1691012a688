"""The grid that a `prefix_allowed_tokens_fn` describes, learned by asking it what it allows at every place.

Emu3's documentation draws images so: all image codes, a newline behind each row, and behind the last row the tokens
that end frame, image and text. What a function allows may hang on the tokens before; it is asked with codes that were
chosen for it, and, once an image is drawn, with those that were drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MANY = 64  # ids, from which on a list that comes again is not looked up again
ROOM = 4096  # tokens
STRIDE = 7919  # a prime: codes far from each other, to ask with
NO_GRID = "got a prefix_allowed_tokens_fn that allows no grid of image codes with a newline behind each row"


class Allowed:
    """What a function allows, as PrefixConstrainedLogitsProcessor reads it."""

    def __init__(self, function: Callable[[int, Tensor], Any], vocabulary: int) -> None:
        self._function, self._vocabulary = function, vocabulary
        self._last: tuple[Any, int, Tensor] | None = None

    def __call__(self, prompt: int, ids: Tensor) -> Tensor:
        """The ids (n,) that may follow `ids` (T,) of the prompt of such a number, rising, on the CPU."""
        found: Any = self._function(prompt, ids)
        if len(found) == 0:
            raise ValueError(f"got a prefix_allowed_tokens_fn that allows nothing for prompt {prompt}")
        if self._last is not None and _again(found, *self._last[:2]):
            return self._last[2]
        mask = torch.zeros(1, self._vocabulary, dtype=torch.bool, device=ids.device)
        mask[0, found] = True
        out = mask[0].nonzero()[:, 0].cpu()
        if len(out) >= MANY:
            self._last = (found, len(found), out)
        return out

    def along(self, prompt: int, ids: Tensor, most: int, ends: Sequence[int]) -> list[Tensor]:
        """What it allows at the places behind a prompt (T,), up to one that ends a text, or `most` of them."""
        said: list[Tensor] = []
        line = ids
        for place in range(len(ids), len(ids) + most):
            if place == len(line):  # room for many more, but not for as many as somebody may say
                line = torch.cat([line, line.new_zeros(ROOM)])
            said.append(self(prompt, line[:place]))
            line[place] = said[-1][(place * STRIDE) % len(said[-1])]
            if said[-1].numel() == 1 and int(said[-1]) in ends:
                break
        return said

    def check(self, prompt: int, line: Tensor, said: Sequence[Tensor]) -> None:
        """ValueError where it allows something else when it is asked with what was drawn, (T + n,)."""
        first = len(line) - len(said)
        if not all(_same(self(prompt, line[: first + i]), each) for i, each in enumerate(said)):
            raise ValueError(f"{NO_GRID}: what it allows hangs on the codes that are drawn")


@dataclass(frozen=True)
class Grid:
    """What stands behind a prompt."""

    codes: Tensor  # (V,) ids, rising
    newline: int
    rows: int
    columns: int  # newlines not counted
    tail: tuple[int, ...]  # ids behind the last row
    length: int  # of all together: the last row may be cut

    def sequence(self, codes: Tensor) -> Tensor:
        """Ids (B, length) from codes (B, rows, columns)."""
        ids = self.codes.to(codes.device)[codes]
        lines = torch.cat([ids, ids.new_full((*ids.shape[:2], 1), self.newline)], 2).flatten(1)
        tail = torch.tensor(self.tail, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)
        return torch.cat([lines, tail], 1)[:, : self.length]


def grid(said: Sequence[Tensor], ends: Sequence[int]) -> Grid:
    """The grid of what is allowed place by place. ValueError where it is none."""
    codes = said[0]
    if len(codes) < 2 or any(int(id) in ends for id in codes):
        raise ValueError(f"{NO_GRID}: an image begins with several codes to choose from, none of which ends a text")
    columns = next((i for i, each in enumerate(said) if len(each) == 1), len(said))
    newline = said[columns] if columns < len(said) else codes[:1]  # cut within the first row
    wanted = [*([codes] * columns), newline]
    stop = next((i for i, each in enumerate(said) if not _same(each, wanted[i % (columns + 1)])), len(said))
    tail = said[stop:]
    if any(len(each) != 1 for each in tail) or (tail and stop % (columns + 1)):
        raise ValueError(f"{NO_GRID}: place {stop} behind the prompt is of no row")
    rows = -(-stop // (columns + 1))
    return Grid(codes, int(newline), rows, columns, tuple(int(each) for each in tail), len(said))


def same(one: Grid, other: Grid) -> bool:
    """Whether two prompts have one grid."""
    return _same(one.codes, other.codes) and _rest(one) == _rest(other)


def _rest(grid: Grid) -> tuple[Any, ...]:
    return grid.newline, grid.rows, grid.columns, grid.tail, grid.length


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)


def _again(found: Any, last: Any, count: int) -> bool:
    """Whether a function gave what it gave before, of so many ids."""
    return len(found) == count and (found is last or (type(found) is type(last) is list and found == last))
