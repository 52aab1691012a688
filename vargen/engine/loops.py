"""The decoding loops, one per kind of model: the only place where a model is called while an image is drawn.

A sampler proposes a block, the model gives its logits, guidance mixes them, the sampler takes them; of a continuous
model it takes the head and what the backbone told it. The loop alone counts forwards, keeps the clock, reports progress
and stops where the caller stops iterating.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from vargen.core.dispatch import Kernels
from vargen.core.types import Condition
from vargen.engine.guidance import Guidance, Ramp
from vargen.engine.sound import Sound, check_tokens
from vargen.engine.threads import ALL, Threads
from vargen.models.contract import ContinuousModel, NextScaleModel, RasterModel
from vargen.samplers.contract import ContinuousSampler, RasterSampler, ScaleSampler
from vargen.tokenizers.multiscale_vq import Pyramid


class Clock:
    """Seconds by name. On CUDA it records events and reads them once, at the end, so that it never waits."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]

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
        return {name: sum(laps) for name, laps in self.laps().items()}


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

    def note(self, width: int, unsettled: list[bool], *, by_other: bool = False) -> None:
        self.forwards += not by_other
        self.by_others += by_other
        self.widths[width] = self.widths.get(width, 0) + 1
        counted = self.per_image or [0] * len(unsettled)
        self.per_image = [count + busy for count, busy in zip(counted, unsettled, strict=True)]


def raster(
    model: RasterModel,
    condition: Condition,
    sampler: RasterSampler,
    guidance: Guidance,
    clock: Clock,
    counts: Counts,
    threads: Threads = ALL,
) -> Iterator[None]:
    """Decode a batch; yields after each forward, when `sampler` holds what is settled. Stop iterating to cancel."""
    spec, (rows, front, _) = model.spec, condition.embedding.shape
    cache, slots = model.make_cache(rows, sampler.extra, front), spec.slots
    counts.cache_bytes, cache.kernels = cache.bytes, counts.kernels
    sound, each = Sound("the model", model.device), cache.bytes / cache.keys.shape[:3].numel()
    size = (rows * front, 0.0)
    with threads.step(*size):
        logits = guidance.mix(model.prefill(condition, cache))
        sound.note(logits)
        logits = spec.given(logits, torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device))
    while True:
        counts.note(logits.shape[1], [n < slots for n in sampler.settled])
        clock.lap("model")
        with threads.step(*size):
            sampler.accept(logits)
        clock.lap("sampler")
        yield
        clock.skip()
        if min(sampler.settled) >= slots:
            return sound.check()
        with threads.step(*size):
            block = sampler.propose()
        clock.lap("sampler")
        spread = guidance.spread(block)
        assert len(spread.slots) <= rows, "rows that were dropped cannot come back: their cache has holes"
        rows = len(spread.slots)
        size = (spread.slots.numel(), rows * spread.stop * each)
        with threads.step(*size):
            logits = guidance.mix(model.decode(spread, cache), block)
            sound.note(logits)
            logits = spec.given(logits, block.slots, ahead=1)


def next_scale(
    models: Sequence[tuple[NextScaleModel, Condition]],
    sampler: ScaleSampler,
    pyramid: Pyramid,
    guidance: Ramp,
    clock: Clock,
    counts: Counts,
    threads: Threads = ALL,
) -> Iterator[None]:
    """Decode a batch scale by scale into `pyramid`; yields after each. Stop iterating to cancel.

    Models take turns where the sampler says so; each first runs, in one pass, the scales that the one before has drawn.
    The last scale that a model draws is never looked back at, and its keys and values are not kept.
    """
    batch, scale = len(pyramid.features), 0
    sound = Sound("the model", pyramid.features.device)
    counts.per_image = [0] * batch
    for turn, ((model, condition), reach) in enumerate(zip(models, sampler.reaches, strict=True)):
        ran, cache = 0, None  # the cache of the model before is freed here
        while scale < reach:
            rows = len(condition.embedding) if guidance.guided(scale) else batch
            if cache is None:
                cache = model.make_cache(rows, model.spec.start(reach - 1))
                cache.kernels = counts.kernels
                counts.cache_bytes = max(counts.cache_bytes, cache.bytes)
            inputs = pyramid.between(ran, scale + 1).repeat(rows // batch, 1, 1)
            block = range(ran, scale + 1)
            width = model.spec.start(scale + 1) - model.spec.start(ran)
            with threads.step(rows * width):
                logits = model.decode(Condition(condition.embedding[:rows]), inputs, block, cache)
                logits, ran = guidance.mix(logits, scale), scale + 1
                sound.note(logits)
                counts.note(width, [turn == 0] * batch, by_other=turn > 0)
                clock.lap("model")
                pyramid.add(sampler.draw(logits, scale))
                clock.lap("sampler")
            scale += 1
            yield
            clock.skip()
    sound.check()


def continuous(
    model: ContinuousModel,
    condition: Condition,
    sampler: ContinuousSampler,
    clock: Clock,
    counts: Counts,
    threads: Threads = ALL,
) -> Iterator[None]:
    """Decode a batch group by group; yields after each. Stop iterating to cancel."""
    images = len(sampler.settled)
    cache = model.make_cache(len(condition.embedding))
    while min(sampler.settled) < model.spec.slots:
        group = sampler.propose()
        clock.lap("sampler")
        rows = _repeated(condition, images, len(group.slots) // images)
        with threads.step(len(rows.embedding) * model.spec.slots):  # of a masked model, which runs all
            z = model.decode(rows, group, cache)
        counts.note(group.slots.shape[1], [True] * images)
        counts.cache_bytes = 0 if cache is None else cache.bytes
        clock.lap("model")
        with threads.step(len(rows.embedding) * group.slots.shape[1]):
            sampler.accept(model.head, z)
        clock.lap("head")
        yield
        clock.skip()
    check_tokens(sampler.values)


def _repeated(condition: Condition, images: int, copies: int) -> Condition:
    """The condition for several groups of every image, one below the other; unconditional rows stay behind."""
    if copies == 1:
        return condition
    return Condition(torch.cat([part.repeat(copies, 1, 1) for part in condition.embedding.split(images)]))


def step_costs(
    model: RasterModel,
    condition: Condition,
    make_sampler: Callable[[int], RasterSampler],
    guidance: Guidance,
    widths: Sequence[int],
    *,
    kernels: Kernels,
    threads: Threads = ALL,
    hopeless: float = 8.0,
    repeats: int = 9,
) -> dict[int, float]:
    """Seconds per step, model and sampler together, by width (ascending, 1 first): the median of `repeats`.

    A width that costs `hopeless` steps of width 1 ends the measurement: no window settles that many tokens a step.
    """
    costs: dict[int, float] = {}
    for width in widths:
        clock, counts = Clock(model.device), Counts(kernels=kernels)
        steps = raster(model, condition, make_sampler(width), guidance, clock, counts, threads)
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
