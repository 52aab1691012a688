"""Rows abreast: several rows of the image are decoded at once, each a few columns behind the one above.

An image is drawn in reading order, yet what a token depends on lies mostly beside and above it. So a row may start once
the row above has a few tokens, and all rows that have started take theirs from one forward (`zipar.py`); within each
row there may be drafts (`jacobi2d.py`). Approximate, but where a row waits for all of the row above. Rows of a preview,
and the first one behind it, always do: what is drawn behind a preview sees it whole.

The law of a row's first token comes from the last token of the row above, which is not there yet. In its stead the
newest token of that row is run at that slot (or the newline, where rows end in one), at a place of its own that nobody
else sees. A token sees what is committed before it in reading order, and the earlier drafts of its own row.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vargen.core import noise
from vargen.core.noise import Purpose
from vargen.core.specs import Grid
from vargen.core.types import Block
from vargen.core.warp import Warp
from vargen.samplers.contract import RasterSampler, Task


@dataclass(frozen=True)
class Step:
    """What a block asks for: the laws of W columns of A rows in each image, all on the host but for `at`."""

    rows: np.ndarray  # (B, A)
    columns: np.ndarray  # (B, A, W)
    wanted: np.ndarray  # (B, A, W) bool: not past the end of a row, nor where an image has fewer rows under way
    at: Tensor  # (B, A, W), their slots; that behind the image where nothing is wanted


class Abreast(RasterSampler):
    """Rows that are decoded together, each with a pointer to its first token that is not committed.

    `start` is how many tokens the row above must have, `drafts` how many columns of a row are run. With `ahead`, a row
    is run as if the one above had so many tokens more than it has; what is drafted so is refined, and waits.
    """

    def __init__(self, task: Task, *, start: int, drafts: int = 1, ahead: int = 0) -> None:
        spec, newline = task.spec, task.spec.newline is not None
        self._task = task
        self._firsts, self._whole = (np.array(part) for part in _rows(spec.grids))  # of each row, slot and columns
        self._lengths = self._whole - newline  # columns that are drawn
        self._row = np.repeat(np.arange(len(self._firsts)), self._whole)  # of each slot
        self._column = np.arange(spec.slots) - self._firsts[self._row]
        last = np.arange(len(self._firsts)) > len(self._firsts) - spec.rows  # rows that need not wait for all above
        above = np.roll(self._lengths, 1)
        above[0] = 0
        start, ahead = (min(count, task.spec.slots) for count in (start, ahead))  # any number is allowed
        self._needs = np.where(last, np.minimum(start, above), above)  # tokens of the row above before a row starts
        self._ahead = np.where(last, np.minimum(ahead, above), 0)
        self._width = min(drafts, int(self._lengths.max()))
        self._done = np.zeros((task.batch, len(self._firsts)), dtype=np.int64)  # the pointers
        self._run = np.zeros_like(self._done)  # columns that were run with committed tokens
        self.extra = len(self._firsts) + 1  # for what stands in for the end of each row, and one nobody looks at
        self._skip = 0  # of a block's laws, those before the first that is asked for
        self._buffer = task.seeds.new_zeros(task.batch, spec.slots + 1)  # the last column is nobody's
        if spec.newline is not None:
            self._buffer[:, :-1].unflatten(1, (spec.rows, spec.columns))[..., -1] = spec.newline
        self._step = self._plan(np.zeros((task.batch, 1), dtype=np.int64), width=1)
        self._steps = task.seeds.new_zeros(task.batch, 1)  # of each image, those that have noise of their own

    def keep(self, rows: Tensor) -> None:
        index = rows.cpu().numpy()
        self._task, self._buffer, self._steps = self._task.kept(rows), self._buffer[rows], self._steps[rows]
        self._done, self._run = self._done[index], self._run[index]

    def join(self, other: Any) -> None:
        self._task = self._task.joined(other._task)
        self._buffer, self._steps = torch.cat([self._buffer, other._buffer]), torch.cat([self._steps, other._steps])
        self._done, self._run = np.concatenate([self._done, other._done]), np.concatenate([self._run, other._run])

    def under(self, warp: Warp) -> None:
        self._task = replace(self._task, warp=warp)

    @classmethod
    def block_width(cls, settings: Any) -> int | None:
        return settings.window

    @property
    def tokens(self) -> Tensor:
        """(B, slots); `committed` says which of them are final."""
        return self._buffer[:, :-1]

    @property
    def settled(self) -> list[int]:
        """Tokens committed so far in each image, newlines included. They are not the first ones."""
        return np.where(self._done == self._lengths, self._whole, self._done).sum(1).tolist()

    @property
    def committed(self) -> np.ndarray:
        """Which slots are final, (B, slots) bool."""
        return self._column < np.where(self._done == self._lengths, self._whole, self._done)[:, self._row]

    @abstractmethod
    def _decide(self, scores: Tensor, step: Step) -> tuple[Tensor, np.ndarray]:
        """Tokens (B, A, W) of the step's columns, and how many of each row are committed (B, A), from `scores`."""

    def _plan(self, rows: np.ndarray, *, width: int) -> Step:
        """`width` columns from the pointer on, of `rows` (B, A); nothing of those that are not under way."""
        first, stop, valid = (np.take_along_axis(x, rows, 1)[..., None] for x in (self._done, *self._limits()))
        columns = first + np.arange(width)
        wanted = valid & (columns < stop)
        slots = np.where(wanted, self._firsts[rows][..., None] + columns, self._task.spec.slots)
        return Step(rows, columns, wanted, self._tensor(slots))

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        """For each row (B, rows), the column before which it may be run, and whether it is run at all."""
        above, lengths = self._done[:, :-1], np.tile(self._lengths, (len(self._done), 1))
        limits, started = lengths.copy(), np.ones(self._done.shape, dtype=bool)
        started[:, 1:] = above >= np.maximum(1, self._needs - self._ahead)[1:]
        whole = above == lengths[:, :-1]
        limits[:, 1:] = np.where(whole, lengths[:, 1:], np.minimum(above + self._ahead[1:], lengths[:, 1:]))
        return limits, started & (self._done < limits)

    def _above_of(self, rows: np.ndarray) -> np.ndarray:
        """How many tokens the rows above `rows` (B, A) have; where they have all of theirs, or there is none, so many
        as a row of `rows` itself may have.
        """
        before = np.maximum(rows - 1, 0)
        above = np.take_along_axis(self._done, before, 1)
        return np.where((rows == 0) | (above == self._lengths[before]), self._lengths[rows], above)

    def _room(self, step: Step) -> np.ndarray:
        """How many tokens of each row of a step may be committed (B, A)."""
        above = np.take_along_axis(self._done, np.maximum(step.rows - 1, 0), 1)
        left = np.maximum(self._above_of(step.rows) - step.columns[..., 0], 0)
        return np.where(above >= self._needs[step.rows], left, 0)

    def propose(self) -> Block:
        active, slots = self._limits()[1], self._task.spec.slots
        rows = np.argsort(~active, axis=1, kind="stable")[:, : active.sum(1).max()]
        self._step = step = self._plan(rows, width=self._width)
        final = np.zeros((len(rows), slots + self.extra), dtype=bool)
        final[:, :slots] = self.committed
        seen = self._tensor(final)
        self._guess(step, seen[:, : slots + 1])
        fed = self._firsts[rows][..., None] + step.columns - 1  # the slot before each, which gives its law
        above = self._above_of(rows)
        early = step.wanted & (step.columns == 0) & (above < self._lengths[rows])[..., None]
        newest = fed if self._task.spec.newline is not None else (self._firsts[rows - 1] + above - 1)[..., None]
        known = step.wanted & ~early  # what is run at its own slot
        top = 1 + max(fed[known].max(initial=-1), np.flatnonzero(final.any(0))[-1])  # behind all slots in use
        places = top + np.arange(rows.shape[1])[:, None]  # for what stands in for the end of a row
        nothing = np.array([slots, 0, top + rows.shape[1]])  # source, slot and place of a token that nobody sees
        block = np.stack([np.where(early, newest, fed), fed, np.where(early, places, fed)])
        block = np.where(step.wanted, block, nothing[:, None, None, None]).reshape(3, len(rows), -1)
        block = np.concatenate([block, self._late(np.where(known, fed, -1), nothing)], axis=2)
        source, fed, place = block
        lowest, count, self._skip = int(fed[place != nothing[2]].min()), fed.shape[1], 0
        if self._width == rows.shape[1] == 1 and set(self.settled) == {lowest + count} and (place < top).all():
            self._skip = count - 1  # just as plain decoding has it, where a row's last token comes with a newline
            slot = np.sort(fed, axis=1)
            return Block(self._buffer.gather(1, self._tensor(slot)), self._tensor(slot), lowest, lowest + count)
        tokens, at = self._buffer.gather(1, self._tensor(source)), self._tensor(np.maximum(fed, lowest))
        sees = self._sees(fed, place, top, seen[:, : nothing[2] + 1])
        return Block(tokens, at, lowest, sees.shape[2], sees, self._tensor(place))

    def _guess(self, step: Step, final: Tensor) -> None:
        """Put drafts at the slots that a block is going to run; without drafts there is nothing to do.

        `final` (B, slots + 1) says which slots are committed; what lies behind the image is not.
        """
        return

    def _late(self, fed: np.ndarray, nothing: np.ndarray) -> np.ndarray:
        """Source, slot and place (3, B, n) of committed tokens that were not run yet, and are not among slots `fed`.

        A row's newest token is run for the law behind it. Where there is none, at its end or while it waits, others see
        it all the same; so is a newline. All of them count as run from here on.
        """
        stop = np.where(self._done == self._lengths, self._whole, self._done)
        late = (self._column >= self._run[:, self._row]) & (self._column < stop[:, self._row])
        late[:, self._firsts[-1] :] = False  # nobody comes behind the last row
        late = np.pad(late, ((0, 0), (0, 1)))  # -1 in `fed` is nobody's
        np.put_along_axis(late, np.where(fed < 0, late.shape[1] - 1, fed).reshape(len(late), -1), False, axis=1)
        self._run = stop
        out = np.tile(nothing[:, None, None], (1, len(late), late.sum(1).max()))
        for image, some in enumerate(late):
            found = np.flatnonzero(some)
            out[:, image, : len(found)] = found
        return out

    def _sees(self, fed: np.ndarray, place: np.ndarray, top: int, final: Tensor) -> Tensor:
        """Who sees which place (B, n, stop): what is `final` (B, stop) before it, and its own row's up to itself.

        From place `top` on there are only stand-ins.
        """
        query = self._tensor(fed)[..., None]
        key = torch.arange(final.shape[1], device=query.device)
        own = self._tensor(place < top)[..., None] & (key >= self._tensor(self._firsts[self._row[fed]])[..., None])
        return ((final[:, None] | own) & (key <= query)) | (key == self._tensor(place)[..., None])

    def accept(self, logits: Tensor) -> None:
        step = self._step
        batch, count, width = step.columns.shape
        asked = logits[:, self._skip : self._skip + count * width]
        scores = self._task.warp.scores(asked).unflatten(1, (count, width))
        tokens, moved = self._decide(scores, step)
        self._buffer.scatter_(1, step.at.flatten(1), tokens.flatten(1))
        np.add.at(self._done, (np.arange(batch)[:, None], step.rows), moved)
        # What a row has got was run as a draft, but for the newest.
        np.maximum.at(
            self._run, (np.arange(batch)[:, None], step.rows), np.take_along_axis(self._done, step.rows, 1) - 1
        )

    def _plain_draw(self, scores: Tensor, step: Step, purpose: Purpose = Purpose.TOKEN) -> Tensor:
        """argmax(log p + g) (B, A, W), by default with the noise of plain decoding."""
        g = noise.gumbel(self._task.seeds, step.at.flatten(1), purpose, scores.shape[-1])
        return (scores + g.view_as(scores)).argmax(-1)

    def _uniform(self, at: Tensor, size: int) -> tuple[Tensor, ...]:
        """`size` fresh uniforms (B, n) for slots (B, n), keyed by them and the number of steps so far."""
        return noise.uniform(self._task.seeds, at + self._steps * self._buffer.shape[1], Purpose.ACCEPT, size).unbind(
            -1
        )

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._task.device)


def _rows(grids: tuple[Grid, ...]) -> tuple[list[int], list[int]]:
    """The first slot and the columns of each row of all grids."""
    firsts = [grid.first + row * grid.columns for grid in grids for row in range(grid.rows)]
    return firsts, [grid.columns for grid in grids for _ in range(grid.rows)]
