"""How many threads a step takes on a CPU: one where its products are short, all that the process has where they are
long.

OpenMP's threads wait for each other after every operation, and they wait by spinning. Where operations are short this
gains little alone, and beside another busy process most of the time is spent waiting for a thread that is not running.
Whether the process got the cores that its threads asked for shows in its CPU time: where it did not, it goes on with
one for a while.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Of a core, roughly: only orders of magnitude count.
PRODUCTS = 3e10  # multiplications a second
BYTES = 1e10  # read a second
LONG = 2.5e-4  # seconds that a product takes at least where threads share it

ENOUGH = 0.7  # of the CPU time that threads ask for; alone they get nearly all
BREAK = 2.0  # seconds for which a process that got less goes on with one


class Crowd:
    """How many threads others leave to the process."""

    def __init__(self) -> None:
        self._most, self._until = 1, 0.0

    def leaves(self, threads: int) -> int:
        """How many of `threads` are worth a try."""
        return threads if time.monotonic() > self._until else min(threads, self._most)

    def note(self, seconds: float, cpu: float, threads: int) -> None:
        """A step of so many seconds by `threads` took so much CPU time."""
        if threads > 1 and cpu < ENOUGH * threads * seconds:
            self._most, self._until = threads // 2, time.monotonic() + BREAK


class Threads:
    """How many threads the steps of a model take."""

    def __init__(self, model: Any, crowd: Crowd | None = None) -> None:
        """Of an `nn.Module`; for others, and on other devices, nothing is changed."""
        weights = list(model.parameters()) if isinstance(model, nn.Module) else []
        self._here = bool(weights) and weights[0].is_cpu
        flat = [each for each in weights if each.dim() == 2]
        self._numbers = sum(each.numel() for each in flat) / max(1, len(flat))
        self._bytes = sum(each.nbytes for each in flat) / max(1, len(flat))
        self._crowd = crowd or _crowd

    def of(self, tokens: int | None, most: int) -> int:
        """Threads, of `most`, for a step of so many tokens."""
        long = tokens is None or max(tokens * self._numbers / PRODUCTS, self._bytes / BYTES) >= LONG
        return self._crowd.leaves(most) if long else 1

    @contextmanager
    def step(self, tokens: int | None = None) -> Iterator[None]:
        """A step of so many tokens, rows of guidance counted, or of convolutions; afterwards there are as many threads
        as before.
        """
        if not self._here:
            yield
            return
        most = torch.get_num_threads()
        few = self.of(tokens, most)
        start, cpu = time.perf_counter(), time.process_time()
        torch.set_num_threads(few)
        try:
            yield
        finally:
            torch.set_num_threads(most)
        self._crowd.note(time.perf_counter() - start, time.process_time() - cpu, few)


_crowd = Crowd()
ALL = Threads(None)
