"""How many threads a step takes on a CPU: one where its products are short, all that the process has where they are
long.

OpenMP's threads wait for each other after every operation, and they wait by spinning. Where operations are short this
gains little alone, and beside another busy process most of the time is spent waiting for a thread that is not running.
The shapes of a step alone decide, so that what is drawn never hangs on who else was busy: sums of more threads are
rounded in another order. Commands make long steps bear a busy machine as well (`commands/main.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Of a core, roughly: only orders of magnitude count.
PRODUCTS = 3e10  # multiplications a second
BYTES = 1e10  # read a second
LONG = 8e-5  # seconds that a product, or attention, takes at least where threads share it


class Threads:
    """How many threads the steps of a model take."""

    def __init__(self, model: Any) -> None:
        """Of an `nn.Module`; for others, and on other devices, nothing is changed."""
        weights = list(model.parameters()) if isinstance(model, nn.Module) else []
        flat = [each for each in weights if each.dim() == 2 and each.is_cpu]
        self._numbers = sum(each.numel() for each in flat) / max(1, len(flat))
        self._bytes = sum(each.nbytes for each in flat) / max(1, len(flat))

    def of(self, most: int, tokens: int, seen: float = 0.0) -> int:
        """Threads, of `most`; see `step`."""
        short = 0 < max(tokens * self._numbers / PRODUCTS, self._bytes / BYTES, seen / BYTES) < LONG
        return 1 if short and self._numbers else most

    @contextmanager
    def step(self, tokens: int, seen: float = 0.0) -> Iterator[None]:
        """A step of so many tokens, rows of guidance counted, that see so many bytes of keys and values in a layer;
        afterwards there are as many threads as before.
        """
        most = torch.get_num_threads()
        few = self.of(most, tokens, seen)
        if few == most:
            yield
            return
        torch.set_num_threads(few)
        try:
            yield
        finally:
            torch.set_num_threads(most)


ALL = Threads(None)
