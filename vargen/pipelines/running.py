"""Images that are asked for one by one and drawn together: continuous batching over a raster pipeline.

    batch = RunningImages(vargen.load("pocket-llamagen"), capacity=16)
    batch.admit("beach", seed=3, method="sjd-exact:window=16")
    while batch.drawing:
        for image in batch.step():
            image.partial.images()[0].save(f"{image.seed}.png")

Whoever asks joins at the next step, and an image that is done makes room for the next one. An image is the same, beyond
rounding, whoever it is drawn beside.
"""

import time
import weakref
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vargen.core import warp as warps
from vargen.core.dispatch import Kernels
from vargen.core.machine import plainly
from vargen.engine import guidance, seats
from vargen.engine.clock import Clock, Counts
from vargen.engine.packed import watched
from vargen.engine.prefixes import Prefixes
from vargen.engine.replayed import Replayed
from vargen.engine.rows import Law, Opening, Row
from vargen.engine.running import RunningBatch
from vargen.engine.threads import Threads
from vargen.pipelines import drawn, values
from vargen.pipelines.choose_drafter import drafter_for
from vargen.pipelines.drawing import Drawing, stacked
from vargen.pipelines.partial import Partial
from vargen.samplers.contract import RasterSampler, Task

PREFIX_BYTES = 1 << 28
FOLD = 512  # forwards after which the clock's marks are added up


class RunningImages:
    """A batch of at most `capacity` images that others join, in turn as `admit` says."""

    def __init__(
        self, pipe: Any, capacity: int = 16, *, prefix_bytes: int = PREFIX_BYTES, adaptive_window: bool = True
    ) -> None:
        """Of at most `capacity` images at a time, or as many as there is memory for the keys and values of.

        In `prefix_bytes` it keeps what was read of prompts and classes, so that none is read twice: those asked for
        last. With `adaptive_window`, blocks are as wide as pays for the images that run, where a method draws the same
        image at any width (sjd-exact); its window is the most. ValueError where the model draws no tokens one by one.
        """
        if pipe.kind != "raster":
            raise ValueError(f"{pipe.preset.name} is no raster model: its images begin together")
        if capacity < 1:
            raise ValueError(f"got capacity {capacity}, expected 1 or more")
        self.pipe, self.capacity = pipe, capacity
        self.waiting: deque[Drawing] = deque()
        self.running: list[Drawing] = []
        self._adapts = adaptive_window
        self.prefixes = Prefixes(values.whole(prefix_bytes, "prefix_bytes", least=0))
        self._batch: RunningBatch | None = None
        self._opening: Opening | None = None
        self.joining: list[Drawing] = []  # those whose prompts are read
        self._gone: list[Drawing] = []  # of these, who has left
        self._read = False  # whether the forward before was one of the opening
        self._counts, self._clock = Counts(), Clock(pipe.transformer.device)
        self._guided, self._runner = False, pipe.transformer
        self._turn = 0  # of the image that joined last
        self._under: Hashable = None  # of the weights of those that run
        self._told: tuple[Hashable, dict[str, str]] = (None, {})  # what traces say of these
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()  # models
        self._begun_for: Any = None  # what the batch is for: another one of that kind goes on in its cache

    @property
    def drawing(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.waiting or self.joining or self.running)

    @property
    def forwards(self) -> int:
        """Forwards of the model so far."""
        return self._counts.forwards

    @torch.inference_mode()
    def admit(self, class_labels: Any = None, *, priority: int = 0, **given: Any) -> list[Drawing]:
        """Ask for images, by the options of `pipe.stream`; they join at a next step. ValueError as for a call.

        Those of a lower `priority` come first, and else the images of each call in turn with those of others.
        """
        priority = values.whole(priority, "priority")
        pipe, asked, _ = self.pipe._asked(class_labels, given, stream=True)
        new: list[Drawing] = []
        for row, seed in enumerate(asked.seeds):
            some, told = slice(row, row + 1), asked.method.drawn
            own = {key: value[some] if isinstance(value, list) else value for key, value in told.items()}
            method = replace(asked.method, drawn=own | {"batch_size": 1})
            new.append(Drawing(pipe, method, tuple(part[some] for part in asked.inputs), seed, asked.image_size))
            new[-1].turn = (priority, self._turn + row)
        self.waiting = deque(sorted([*self.waiting, *new], key=lambda image: image.turn))
        return new

    @torch.inference_mode()
    def step(self) -> list[Drawing]:
        """A forward: of prompts that are to join, or a block of all that run, in turns. Those that are done have left.

        Where it raises, all that ran or were to join wait again, to be drawn anew; `leave` gives them up.
        """
        try:
            with plainly(self.pipe.transformer.device):
                before = self._counts.forwards
                if not (self._read and self.running):
                    self._let_in()
                self._read = self._counts.forwards > before
                if self.running and not self._read:
                    assert self._batch is not None
                    self._batch.step()
                if self._counts.forwards % FOLD == 0:
                    self._clock.fold()
                return self._done()
        except BaseException:
            self._begin_anew()
            raise

    def _let_in(self) -> None:
        """Those that can join do so, or what they ask for is read, a piece of it."""
        fresh = self._opening is None
        if fresh and (images := self._joining()):
            self._open(images)
        if self._opening is None:
            return
        assert self._batch is not None
        if self._opening.reading.left:
            self._batch.read(self._opening)
        if not self._opening.reading.left:
            rows, images = self._batch.join(self._opening), self.joining
            if not fresh and drawn.stamp(images[0].pipe, images[0].method) != self._under:
                self.prefixes.clear()  # it was read under both
            self._opening, self.joining = None, []
            self._seat(images, rows)

    def _seat(self, images: list[Drawing], rows: list[Row]) -> None:
        """These run; those that have left meanwhile do so now."""
        for image, row in zip(images, rows, strict=True):
            image.row = row
        self.running += images
        gone, self._gone = self._gone, []
        self.leave(gone)

    def _begin_anew(self) -> None:
        """Nobody knows what a forward that broke has left: all wait, and the next one is the first of a new batch."""
        again = [image for image in dict.fromkeys([*self.running, *self.joining]) if image not in self._gone]
        for image in again:
            image.row = None
        self.waiting = deque(sorted(dict.fromkeys([*again, *self.waiting]), key=lambda image: image.turn))
        self.running, self.joining, self._gone = [], [], []
        self._batch, self._begun_for, self._opening = None, None, None
        self.prefixes.clear()

    @torch.inference_mode()
    def leave(self, images: Sequence[Drawing]) -> None:
        """Nobody waits for these any more. Their seats are free for the next step."""
        self.waiting = deque(image for image in self.waiting if image not in images)
        self._gone += [image for image in self.joining if image in images]
        gone = [image for image in self.running if image in images]
        if gone:
            assert self._batch is not None
            self._batch.leave([image.row for image in gone if image.row is not None])
            self.running = [image for image in self.running if image not in gone]

    def settled(self, image: Drawing) -> int:
        """Tokens of an image that are final."""
        if image in self.running and self._batch is not None and image.row is not None:
            return self._batch.settled[self._batch.rows.index(image.row)]
        return 0 if image.row is None else image.row.settled

    def shown(self, image: Drawing) -> Partial:
        """An image on its way, as `stream` would have it. ValueError where it is not drawn now."""
        if image not in self.running:
            raise ValueError(f"got image {image.seed}, expected one that is drawn now: it waits, is done, or has left")
        assert self._batch is not None
        assert image.row is not None
        at, committed = self._batch.rows.index(image.row), self._batch.committed
        some = slice(at, at + 1)
        settled, final = self._batch.settled[at], None if committed is None else committed[some]
        return self._partial(image, self._batch.tokens[some], settled, final)

    def _joining(self) -> list[Drawing]:
        """Those that can join now: the first that waits, and all of its kind behind it for which there are seats."""
        if not self.waiting:
            return []
        first, free = self.waiting[0], self.capacity
        if self.running:
            assert self._batch is not None
            free = self._batch.capacity - len(self.running)
            if not free or self.running[0].kind != first.kind or (first.method.guidance.active and not self._guided):
                return []
        kin, now = [one for one in self.waiting if one.kind == first.kind], drawn.stamp(first.pipe, first.method)
        if not self.running:
            self._guided, self._under = any(one.method.guidance.active for one in kin), now
            self._begin(first, max(one.length for one in kin))
            assert self._batch is not None
            free = self._batch.capacity
        elif now != self._under:
            return []  # those that run do so under weights that are no more
        return [one for one in kin if self._guided or not one.method.guidance.active][:free]

    def _open(self, images: list[Drawing]) -> None:
        """Begin with what images ask for that are to join; where something drafts for them, they join at once."""
        for image in images:
            self.waiting.remove(image)
            self._turn = max(self._turn, image.turn[1])
        self.joining = images
        assert self._batch is not None
        pipe, read = images[0].pipe, stacked([image.pipe.read(image.inputs) for image in images])
        laws = [Law(image.method.guidance, image.method.warp) for image in images]
        device = pipe.transformer.device
        mixed = guidance.together([law.guidance for law in laws], device, guided=self._guided)
        method: Any = replace(images[0].method, warp=warps.together([law.warp for law in laws], device))
        drafting = drafter_for(pipe, replace(method, guidance=mixed), read)
        condition = pipe.condition(read, self._runner, guided=self._guided)
        if self._told[0] != self._under:
            self._told = self._under, drawn.with_weights(pipe, method)
        seeds = [image.seed for image in images]
        for image in images:
            image.method.drawn.update(self._told[1])  # they may have changed since it was asked for
        if drafting is None:
            self._opening = self._batch.open(condition, seeds, laws, self._reads_as(images[0]))
            return
        for image in images:
            image.drafter = drafting[0]
        rows, self.joining = self._batch.admit(condition, seeds, laws, drafting[1]), []
        self._seat(images, rows)

    def _reads_as(self, image: Drawing) -> Hashable:
        """What was read is of use where this is the same: nowhere, where somebody wants to see every forward."""
        model = image.pipe.transformer
        return object() if watched(model) else (self._under, model.spec, image.pipe.fast)

    def _begin(self, image: Drawing, front: int) -> None:
        """An empty batch for images of a kind, of prompts of `front` tokens: the one before, if it was of that kind and
        the model is as it was.
        """
        pipe, method, counts = image.pipe, image.method, self._counts
        model = pipe.transformer
        runner = pipe._runners.of("model", model, pipe.fast)
        if model not in self._known:  # numbers of tensors that are gone may be those of others
            self._known.add(model)
            weakref.finalize(model, self.prefixes.clear)
        wanted = (image.kind, self._guided, model, model.dtype, model.device, pipe.fast, pipe.tokenizer)
        if self._begun_for == wanted and (self._runner is runner or not isinstance(runner, Replayed)):
            assert self._batch is not None
            self._batch.run_by(runner, model if isinstance(runner, Replayed) else runner)
            return
        self._runner, self._begun_for = runner, wanted
        counts.kernels, replayed, codebook = Kernels.of(pipe.fast), isinstance(runner, Replayed), pipe._codebook()

        def make(seeds: Tensor, warp: Any, drafter: Any) -> RasterSampler:
            late = replayed and drafter is None
            task = Task(model.spec, seeds, warp, None, drafter, codebook, counts.kernels, late)
            return method.sampler(method.settings, task)

        self._batch = None  # whose cache makes room
        capacity = min(self.capacity, seats.fitting(model, 2 if self._guided else 1, front))
        how: Any = {"capacity": capacity, "guided": self._guided, "make": make}
        how |= {"opens": model if replayed else runner, "prefixes": self.prefixes}
        how["paces"] = self._adapts and not replayed  # each width is a graph of its own
        self._batch = RunningBatch(runner, self._clock, counts, Threads(model), **how)

    def _done(self) -> list[Drawing]:
        if self._batch is None or not self.running:
            return []
        slots = self.running[0].pipe.transformer.spec.slots
        rows = [row for row, n in zip(self._batch.rows, self._batch.settled, strict=True) if n >= slots]
        done = [image for image in self.running if image.row in rows]
        if done:
            self._batch.sound.check()
            self.leave(done)
        for image in done:
            assert image.row is not None
            assert image.row.tokens is not None
            image.finished = self._partial(image, image.row.tokens[None], slots)
        return done

    def _partial(self, image: Drawing, tokens: Tensor, settled: int, committed: Any = None) -> Partial:
        assert image.row is not None
        pipe, method, forwards = image.pipe, image.method, max(1, image.row.forwards)
        trace = pipe.trace(method, [image.seed])
        trace.settings |= {} if image.drafter is None else {"drafter": image.drafter}
        trace.forwards, trace.windows, trace.cached_tokens = forwards, dict(image.row.widths), image.row.cached
        trace.forwards_per_image, trace.tokens_per_forward = forwards, tokens.shape[1] / forwards
        trace.seconds, trace.versions = {"total": time.perf_counter() - image.placed}, pipe.versions
        trace.kernels = pipe._runners.notes | self._counts.kernels.ran
        rest: Any = {"committed": committed, "inputs": image.inputs, "seeds": (image.seed,)}
        return Partial(tokens, [settled], forwards, trace, pipe, image.image_size, **rest)
