"""The files of an order: pictures that are done, and those on their way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vargen.core.png import encode, texts
from vargen.pipelines.partial import Partial
from vargen.server.orders import Done, Order, Shown


@dataclass
class Shares:
    """How far the images of an order are, and how many pictures of each were shown."""

    order: Order
    shares: list[int] = field(init=False)  # of an image, in parts of `partials + 1`
    numbers: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.shares, self.numbers = [0] * len(self.order.seeds), [0] * len(self.order.seeds)

    def due(self, settled: Sequence[int], slots: int) -> list[int]:
        """The images of which a picture is to be shown now, so many tokens of each being settled."""
        due = []
        for image, tokens in enumerate(settled):
            share = tokens * (self.order.partials + 1) // slots
            if self.shares[image] < share <= self.order.partials:
                self.shares[image] = share
                due.append(image)
        return due

    def shown(self, index: int, due: Sequence[int], images: Sequence[Any]) -> Iterator[Shown]:
        """The pictures of the images that are due, of order `index` of its batch."""
        for image, picture in zip(due, images, strict=True):
            yield Shown(index, image, self.numbers[image], encode(picture, {}, self.order.kind, self.order.quality))
            self.numbers[image] += 1


def done(index: int, images: Sequence[tuple[Partial, int]], order: Order) -> Done:
    """All images of an order: each is a row of a batch."""
    (partial, _), *_ = images
    files, slots = tuple(_final(*image, order) for image in images), partial.pipeline.transformer.spec.slots
    words, seen = _read(partial, order)
    cached = sum(one.trace.cached_tokens for one, _ in images)
    return Done(index, files, words * len(files), seen * len(files), slots * len(files), cached)


def _final(partial: Partial, row: int, order: Order) -> bytes:
    """An image that is done: decoded alone, so that its last bits do not hang on how many are decoded together."""
    image = partial.of([row]).images()[0]
    told = texts(partial.trace, row, alone=True)  # of its company, who asked for it learns nothing
    return encode(image, told, order.kind, order.quality)


def _read(partial: Partial, order: Order) -> tuple[int, int]:
    """The tokens of what an order asks for: of words, a class being one, and of pictures."""
    pipe = partial.pipeline
    words = 1 if isinstance(order.subject, int) else len(pipe.text_tokenizer(order.subject)["input_ids"])
    if not order.pictures:
        return words, 0
    if pipe.edits == "repaint":
        return words, pipe.transformer.spec.slots
    return words, int(partial.inputs[1][0, 0].sum()) - words
