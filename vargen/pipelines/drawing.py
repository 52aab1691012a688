"""An image of a running batch (`running.py`): what was asked for, and what became of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.engine.rows import Row
from vargen.pipelines.partial import Partial
from vargen.pipelines.request import Method


@dataclass(eq=False)
class Drawing:
    """An image that was asked for."""

    pipe: Any  # of its size, and with what else its call said
    method: Method
    inputs: tuple[Tensor, ...]  # a row of the call's
    seed: int
    image_size: int | None
    turn: tuple[int, int] = (0, 0)  # when it is to join: its priority, and then in turn
    placed: float = field(default_factory=time.perf_counter)
    row: Row | None = None  # in the batch, once it is drawn
    drafter: str | None = None  # the name of what drafts for it
    finished: Partial | None = None

    @property
    def partial(self) -> Partial:
        """Its tokens, its trace and its picture, as `stream` has them. ValueError where it is not done."""
        if self.finished is None:
            raise ValueError(f"image {self.seed} is not done")
        return self.finished

    @property
    def kind(self) -> tuple[Any, ...]:
        """Images of the same kind may be drawn together: of one size, by one method, of laws that differ in guidance,
        temperature and top-p at most.
        """
        shared = (self.method.warp.top_k, self.method.warp.top_n_sigma)
        return (self.pipe.transformer.spec, self.pipe.size, self.method.sampler, self.method.settings, *shared)


def stacked(read: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """What is read, of several calls: labels, or prompts and their masks, of which the shorter ones are padded; lists
    are put together.
    """
    parts: list[Any] = []
    for each in zip(*read, strict=True):
        if isinstance(each[0], list):
            parts.append([one for some in each for one in some])
            continue
        longest = max(part.shape[-1] for part in each)
        ragged = any(part.shape[-1] < longest for part in each)
        parts.append(torch.cat([F.pad(part, (0, longest - part.shape[-1])) if ragged else part for part in each]))
    return tuple(parts)
