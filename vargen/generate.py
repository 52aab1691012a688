"""The decoding loops, one per kind of model: the only place where a model is called while an image is drawn.

A sampler proposes a block, the model gives its logits, guidance mixes them, the sampler takes them. The loop alone
counts forwards, keeps the clock, reports progress and stops where the caller stops iterating.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from vargen.core import Condition
from vargen.guidance import Guidance
from vargen.models.contract import RasterModel
from vargen.samplers.contract import RasterSampler


class Clock:
    """Seconds by name. On CUDA it records events and reads them once, at the end, so that it never waits."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        self._marks.append((name, self._now()))

    def skip(self) -> None:
        """Book the time since the last lap under nothing: it was the caller's."""
        self.lap("")

    def seconds(self) -> dict[str, float]:
        """What was booked, by name."""
        if self._cuda:
            torch.cuda.synchronize()
        out: dict[str, float] = {}
        for (_, start), (name, end) in pairwise(self._marks):
            if name:
                out[name] = out.get(name, 0.0) + _between(start, end)
        return out


def _between(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000


@dataclass
class Counts:
    """What the loop counted: forwards of the model in all, by width of block, and by image."""

    forwards: int = 0
    widths: dict[int, int] = field(default_factory=dict)
    per_image: list[int] = field(default_factory=list)

    def note(self, width: int, unsettled: list[bool]) -> None:
        self.forwards += 1
        self.widths[width] = self.widths.get(width, 0) + 1
        counted = self.per_image or [0] * len(unsettled)
        self.per_image = [count + busy for count, busy in zip(counted, unsettled, strict=True)]


def raster(
    model: RasterModel, condition: Condition, sampler: RasterSampler, guidance: Guidance, clock: Clock, counts: Counts
) -> Iterator[None]:
    """Decode a batch; yields after each forward, when `sampler` holds what is settled. Stop iterating to cancel."""
    slots, rows = model.spec.slots, condition.embedding.shape[0]
    cache = model.make_cache(rows, getattr(sampler, "extra", 0))
    logits = guidance.mix(model.prefill(condition, cache))
    while True:
        counts.note(logits.shape[1], [n < slots for n in sampler.settled])
        clock.lap("model")
        sampler.accept(logits)
        clock.lap("sampler")
        yield
        clock.skip()
        if min(sampler.settled) >= slots:
            return
        block = sampler.propose()
        clock.lap("sampler")
        spread = guidance.spread(block)
        assert len(spread.slots) <= rows, "rows that were dropped cannot come back: their cache has holes"
        rows = len(spread.slots)
        logits = guidance.mix(model.decode(spread, cache), block)


def step_costs(
    model: RasterModel,
    condition: Condition,
    make_sampler: Callable[[int], RasterSampler],
    guidance: Guidance,
    widths: Sequence[int],
    *,
    hopeless: float = 8.0,
    repeats: int = 9,
) -> dict[int, float]:
    """Seconds per step, model and sampler together, by width (ascending, 1 first): the median of `repeats`.

    A width that costs `hopeless` steps of width 1 ends the measurement: no window settles that many tokens a step.
    """
    costs: dict[int, float] = {}
    for width in widths:
        steps = raster(model, condition, make_sampler(width), guidance, Clock(model.device), Counts())
        times = []
        for _ in range(2 + repeats):  # the prefill, and one step to warm up
            start = _now(model.device)
            if next(steps, _END) is _END:
                break
            times.append(_now(model.device) - start)
        if len(times) > 2:
            costs[width] = statistics.median(times[2:])
        if 1 in costs and costs.get(width, 0) > hopeless * costs[1]:
            break
    return costs


_END = object()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
