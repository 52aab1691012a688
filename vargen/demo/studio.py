"""What the demo draws with: models that are loaded on first use, orders that are checked, decodes that can be stopped.

A visitor chooses everything by text, here as on the command line; what an order may ask for is bounded by `Limits`, and
other models, which a method may name as drafters, by those on offer. The page lets one decode run at a time.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from vargen.core import registry
from vargen.core.messages import quoted
from vargen.core.png import encode, texts
from vargen.core.preset import LAW
from vargen.core.specs import RasterSpec, ScaleSpec
from vargen.demo import options
from vargen.demo.limits import MOST, MOST_LETTERS, MOST_SEED, Limits
from vargen.demo.record import Record, Spec
from vargen.pipelines import request, values
from vargen.pipelines.base import Pipeline
from vargen.pipelines.partial import Partial

GREY = (128, 128, 128)
POCKET = tuple(name for name in registry.MODELS if name.startswith("pocket-"))  # their weights ship


@dataclass(frozen=True)
class Order:
    """What is to be drawn; checked."""

    model: str
    subject: str  # a class or a prompt
    method: str  # with its settings
    images: int
    seed: int
    size: tuple[int, int] | None = None  # height and width in pixels, where a model has several
    options: Mapping[str, Any] = field(default_factory=dict)  # of a call, by name, that are not as the model has them
    repainted: tuple[Image.Image, Image.Image] | None = None  # a picture, and a mask: white where it is repainted


class Studio:
    """Models by name, each loaded when it is first drawn with, and kept."""

    def __init__(
        self, models: tuple[str, ...] = POCKET, limits: Limits | None = None, *, device: str | None = None
    ) -> None:
        for name in models:
            registry.preset(name)
        self.models, self.limits, self._device = models, limits or Limits(), device
        self._pipes: dict[str, Pipeline] = {}
        self.running: set[Run] = set()  # decodes that have begun and are neither done nor stopped
        self._warm: set[str] = set()  # what has been drawn with

    def loaded(self, name: str) -> bool:
        """Whether a model is there already."""
        return name in self._pipes

    def pipe(self, name: str) -> Pipeline:
        """A model on offer. ValueError where it is none."""
        if name not in self.models:
            raise ValueError(registry.unknown("model", name, self.models))
        if name not in self._pipes:
            from vargen.pipelines.loading import load

            pipe = load(name, device=self._device)
            pipe.set_progress_bar_config(disable=True)
            self._pipes[name] = pipe
        return self._pipes[name]

    def check(self, order: Order) -> Any:
        """The method that an order asks for. ValueError in one sentence where it may not be drawn. Loads nothing."""
        if order.model not in self.models:
            raise ValueError(registry.unknown("model", order.model, self.models))
        preset, limits = registry.preset(order.model), self.limits
        if not 1 <= values.whole(order.images, "number of images") <= limits.images:
            raise ValueError(f"got {quoted(order.images)} images, expected 1 to {limits.images}")
        if not 0 <= values.whole(order.seed, "seed") <= MOST_SEED:
            raise ValueError(f"got seed {quoted(order.seed)}, expected 0 to {MOST_SEED}")
        if preset.classes:
            values.label(order.subject[:100], preset.names(), preset.classes, -1 if order.repainted else 0)
        elif not order.subject.strip():
            raise ValueError("got an empty prompt: say what to draw")
        elif len(order.subject) > limits.prompt:
            raise ValueError(f"got a prompt of {len(order.subject)} characters, expected at most {limits.prompt}")
        if len(order.method) > MOST_LETTERS:
            raise ValueError(f"got a method of {len(order.method)} characters, expected at most {MOST_LETTERS}")
        if wrong := [name for name in order.options if name not in options.taken(order.model)]:
            raise ValueError(registry.unknown("option", wrong[0], options.taken(order.model)))
        for name, value in order.options.items():
            if isinstance(value, str) and len(value) > limits.prompt:
                raise ValueError(f"got {name} of {len(value)} characters, expected at most {limits.prompt}")
            many = value if isinstance(value, list) else [value]
            if wrong := [each for each in many if isinstance(each, int) and abs(each) > MOST_SEED]:
                raise ValueError(f"got {name} {quoted(wrong[0])}, expected at most {MOST_SEED} here")
        recipe = preset.choose(order.options.get("preset"))
        request.image_size(order.options.get("image_size"))
        law = {name: order.options.get(name) for name in LAW}
        return self._bounded(request.asked(order.method, recipe, law, {}, preset.spec))

    def _bounded(self, method: Any) -> Any:
        for name, most in MOST.items():
            value = asdict(method.settings).get(name, 0)
            if isinstance(value, int) and value > most:
                raise ValueError(f"got {name} {value}, expected at most {most} here")
        partner = method.sampler.partner
        named = getattr(method.settings, partner) if partner else ""
        if named not in ("", "eagle", *self.models):
            raise ValueError(registry.unknown(partner, named, ("eagle", *self.models)))
        return method

    def run(self, order: Order) -> "Run":
        """Begin to draw an order; to be entered as a context, whose end is the decode's."""
        return Run(self, order, self.check(order).settings)

    def warm(self, order: Order, most: float = 5.0) -> Iterator[None]:
        """Draw one image by an order's method, forward by forward, where that was not done yet: all is loaded then.

        After `most` seconds it is warm enough.
        """
        how = repr((order.model, order.method, order.size, order.options))
        if how in self._warm:
            return
        with self.run(replace(order, images=1)) as run:
            end = time.monotonic() + most
            while run.step() and time.monotonic() < end:
                yield
        self._warm.add(how)


class Run:
    """A decode, forward by forward. Where it is left, at its end or before, the model is free."""

    def __init__(self, studio: Studio, order: Order, settings: Any) -> None:
        self._studio, self.order = studio, order
        pipe = studio.pipe(order.model)
        high, wide = order.size or (pipe.pixels, pipe.pixels)
        size = {} if order.size is None else {"height": high, "width": wide}
        high, wide = (max(side, order.options.get("image_size", 0)) for side in (high, wide))
        if order.images * high * wide > studio.limits.pixels:
            raise ValueError(
                f"got {order.images} images of {wide}x{high} pixels, expected at most {studio.limits.pixels} in all"
            )
        what: dict[str, Any] = {"prompt": order.subject}
        if registry.preset(order.model).classes:
            what = {"class_labels": order.subject}
        how: dict[str, Any] = {"num_images_per_prompt": order.images, "seed": order.seed, **size, **order.options}
        if order.repainted:
            how |= dict(zip(("image", "mask_image"), order.repainted, strict=True))
        self.seconds, self._begun = 0.0, time.monotonic()  # of decoding alone
        self._stream: Any = self._timed(lambda: pipe.stream(**what, method=order.method, **how))
        self.expected = _expected(pipe.transformer.spec, settings)  # forwards; 0: nobody knows
        self.plainly = plainly(order.model, pipe.transformer.spec)
        self.record: Record | None = None
        self.partial: Partial | None = None
        self.done = False
        self._finished: list[Image.Image] | None = None  # the pictures at the end, which may cost much

    def __enter__(self) -> "Run":
        self._studio.running.add(self)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stream.close()
        self._studio.running.discard(self)

    def _timed(self, work: Any) -> Any:
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds += time.perf_counter() - start

    def step(self) -> bool:
        """Go on by a forward; False where there is nothing left. ValueError where it has taken too long."""
        partial = self._timed(lambda: next(self._stream, None))
        if partial is None:
            self.done = True
            return False
        if self.record is None:
            self.record = Record(partial.pipeline.transformer.spec, self.order.images)
        self.partial = partial
        self.record.note(partial)
        if time.monotonic() - self._begun > (most := self._studio.limits.seconds):
            raise ValueError(f"stopped: a decode may take {most:g} seconds here; ask for fewer images, tokens or steps")
        return True

    @property
    def forwards(self) -> int:
        """Of the model, and of what went on where it stopped."""
        return 0 if self.partial is None else self.partial.forwards

    def images(self) -> list[Image.Image]:
        """The pictures as they are now; grey, where the model shows none on their way."""
        assert self.partial is not None
        pipe = self.partial.pipeline
        if not self.done and not pipe.sketches:
            return [Image.new("RGB", pipe.size[::-1], GREY) for _ in range(self.order.images)]
        if not self.done:
            return self.partial.images()
        finished = self._finished = self._finished or self.partial.images()
        return [image.copy() for image in finished]

    def shown(self, most: int = 256) -> list[Image.Image]:
        """The pictures about so large; what is not settled shows faintly where it is a draft, and else not at all."""
        assert self.record is not None
        images = [enlarged(image, most) for image in self.images()]
        for image in images:
            image.thumbnail((most, most))
        grid = self.record.layout.grid
        if self.done or grid is None:
            return images
        steps, drafts = (part[:, self.record.layout.slots] for part in (self.record.steps, self.record.drafts))
        opaque = np.where(steps > 0, 255, np.where(drafts, 90, 0)).astype(np.uint8).reshape(-1, *grid)
        for image, alpha in zip(images, opaque, strict=True):
            image.putalpha(Image.fromarray(alpha).resize(image.size, Image.Resampling.NEAREST))
        return images

    def pngs(self) -> list[bytes]:
        """The finished images as files, each with its seed, model, method and settings."""
        assert self.partial is not None
        assert self.done
        trace = self.partial.trace
        return [encode(image, texts(trace, row)) for row, image in enumerate(self.images())]


def enlarged(image: Image.Image, side: int = 512) -> Image.Image:
    """A small image a whole number of times as large, smooth: at most `side` pixels along its longer side."""
    scale = max(1, side // max(image.size))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)


def plainly(model: str, spec: Spec) -> int:
    """How many forwards an image takes a model drawn plainly: one for each token, scale or round of its own method."""
    if isinstance(spec, RasterSpec):
        return spec.slots
    preset = registry.preset(model)
    return _expected(spec, request.asked(preset.method, preset.recipe, {}, {}, spec).settings)


def _expected(spec: Spec, settings: Any) -> int:
    """How many forwards a decode will take, where its plan says so; else 0."""
    if isinstance(spec, RasterSpec):
        return 0
    if isinstance(spec, ScaleSpec):
        return len(spec.sides)
    return len(spec.groups) or settings.iterations
