"""What a decode took: seconds by name, and forwards as the loop counts them."""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from vargen.core.dispatch import Kernels


class Clock:
    """Seconds by name. On CUDA it records events and reads them once, at the end, so that it never waits."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]
        self._folded: dict[str, float] = {}

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        self._marks.append((name, self._now()))

    def skip(self) -> None:
        """Book the time since the last lap under nothing: it was the caller's."""
        self.lap("")

    def laps(self) -> dict[str, list[float]]:
        """The seconds of each lap that was booked, by name."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        out: dict[str, list[float]] = {}
        for (_, start), (name, end) in pairwise(self._marks):
            if name:
                out.setdefault(name, []).append(_between(start, end))
        return out

    def seconds(self) -> dict[str, float]:
        """What was booked, by name."""
        out = dict(self._folded)
        for name, laps in self.laps().items():
            out[name] = out.get(name, 0.0) + sum(laps)
        return out

    def fold(self) -> None:
        """Add up what was booked, and keep no lap of it: for a clock that runs on and on."""
        self._folded, self._marks = self.seconds(), self._marks[-1:]


def _between(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000


@dataclass
class Counts:
    """What the loop counted: forwards of the model in all, by width of block (whoever ran it), and by image."""

    forwards: int = 0
    widths: dict[int, int] = field(default_factory=dict)
    per_image: list[int] = field(default_factory=list)
    by_others: int = 0  # forwards of models that go on where the first one stopped
    cache_bytes: int = 0  # the most that keys and values took at a time
    kernels: Kernels = field(default_factory=Kernels)  # which implementations ran

    def note(self, width: int, *, by_other: bool = False) -> None:
        """Count a forward of so many tokens in each row; of each image, the loop counts for itself."""
        self.forwards += not by_other
        self.by_others += by_other
        self.widths[width] = self.widths.get(width, 0) + 1
