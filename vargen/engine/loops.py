"""The decoding loops, one per kind of model: the only place where a model is called while an image is drawn.

A sampler proposes a block, the model gives its logits, guidance mixes them, the sampler takes them; of a continuous
model it takes the head and what the backbone told it. The loop alone counts forwards, keeps the clock, reports progress
and stops where the caller stops iterating.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from vargen.core.dispatch import Kernels
from vargen.core.types import Condition
from vargen.engine.clock import Clock, Counts
from vargen.engine.guidance import Guidance, Ramp
from vargen.engine.running import RunningBatch
from vargen.engine.sound import Sound, check_tokens
from vargen.engine.staying import Staying, both, picked
from vargen.engine.threads import ALL, Threads
from vargen.models.contract import ContinuousModel, NextScaleModel, RasterModel
from vargen.samplers.contract import ContinuousSampler, RasterSampler, ScaleSampler
from vargen.tokenizers.multiscale_vq import Pyramid


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
    batch = RunningBatch(model, clock, counts, threads, capacity=len(sampler.settled), guided=guidance.active)
    batch.begin(condition, sampler, guidance)
    while True:
        counts.per_image = batch.forwards
        yield
        clock.skip()
        if not batch.busy:
            return batch.sound.check()
        batch.step()


def next_scale(
    models: Sequence[tuple[NextScaleModel, Condition]],
    sampler: ScaleSampler,
    pyramid: Pyramid,
    guidance: Ramp,
    clock: Clock,
    counts: Counts,
    threads: Threads = ALL,
    staying: Staying | None = None,
) -> Iterator[None]:
    """Decode a batch scale by scale into `pyramid`; yields after each, when images may leave. Stop iterating to cancel.

    Models take turns where the sampler says so; each first runs, in one pass, the scales that the one before has drawn.
    The last scale that a model draws is never looked back at, and its keys and values are not kept.
    """
    whole = batch = len(pyramid.features)
    scale, staying = 0, staying or Staying(batch)
    sound = Sound("the model", pyramid.features.device)
    counts.per_image = [0] * batch
    for turn, ((model, condition), reach) in enumerate(zip(models, sampler.reaches, strict=True)):
        ran, cache = 0, None  # the cache of the model before is freed here
        condition = picked(condition, staying.rows, whole)
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
                counts.note(width, by_other=turn > 0)
                for row in staying.rows if turn == 0 else ():
                    counts.per_image[row] += 1
                clock.lap("model")
                pyramid.add(sampler.draw(logits, scale))
                clock.lap("sampler")
            scale += 1
            yield
            clock.skip()
            if (places := staying.left()) is not None:
                pyramid.keep(index := torch.tensor(places, device=pyramid.features.device))
                sampler.keep(index)
                cache.keep(both(places, batch, rows))
                condition, batch = picked(condition, places, batch), len(places)
    sound.check()


def continuous(
    model: ContinuousModel,
    condition: Condition,
    sampler: ContinuousSampler,
    clock: Clock,
    counts: Counts,
    threads: Threads = ALL,
    staying: Staying | None = None,
) -> Iterator[None]:
    """Decode a batch group by group; yields after each, when images may leave. Stop iterating to cancel."""
    images = len(sampler.settled)
    staying, counts.per_image = staying or Staying(images), [0] * images
    cache = model.make_cache(len(condition.embedding))
    while min(sampler.settled) < model.spec.slots:
        group = sampler.propose()
        clock.lap("sampler")
        rows = _repeated(condition, images, len(group.slots) // images)
        with threads.step(len(rows.embedding) * model.spec.slots):  # of a masked model, which runs all
            z = model.decode(rows, group, cache)
        counts.note(group.slots.shape[1])
        for row in staying.rows:
            counts.per_image[row] = counts.forwards
        counts.cache_bytes = 0 if cache is None else cache.bytes
        clock.lap("model")
        with threads.step(len(rows.embedding) * group.slots.shape[1]):
            sampler.accept(model.head, z)
        clock.lap("head")
        yield
        clock.skip()
        if (places := staying.left()) is not None:
            sampler.keep(torch.tensor(places, device=sampler.values.device))
            if cache is not None:
                cache.keep(both(places, images, len(condition.embedding)))
            condition, images = picked(condition, places, images), len(places)
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
