"""What passes between the front and a worker: orders in batches one way, what became of them the other way."""

from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Order:
    """A request, checked: images of one subject, one for each seed."""

    model: str
    method: str  # with its settings
    preset: str | None
    law: tuple[tuple[str, float], ...]  # of the fields `LAW`, those that were given
    size: tuple[int, int] | None  # height and width in pixels, where the model has several
    image_size: int | None  # pixels a side to resize to; None: as the preset says
    subject: int | str  # a class by index, or a prompt
    seeds: tuple[int, ...]
    partials: int = 0  # pictures of each image on its way
    negative: str = ""  # what guidance is against, where it is not what the model learned
    kind: str = "PNG"  # of the files
    quality: int | None = None  # of JPEG and WebP, in percent
    priority: int = 0  # lower ones come first
    pictures: tuple[Image.Image, ...] = ()  # that are edited: repainted under the mask, or read with the prompt
    mask: Image.Image | None = None

    @property
    def bytes(self) -> int:
        """Bytes that its pictures take, about."""
        return sum(3 * one.width * one.height for one in (*self.pictures, *([] if self.mask is None else [self.mask])))

    @property
    def kin(self) -> tuple[Any, ...]:
        """Orders for which this is the same are drawn in one batch."""
        return (self.model, self.method, self.preset, self.law, self.size, self.image_size, self.pictures, self.mask)


@dataclass(frozen=True)
class Batch:
    """Orders that go to a worker together. Order i is wanted while `until[i]` stands on the board at `tickets[i]`."""

    orders: tuple[Order, ...]
    tickets: tuple[int, ...]
    until: tuple[float, ...] = ()  # in the time of `time.monotonic`
    alone: bool = False  # whether nobody may be drawn beside it


@dataclass(frozen=True)
class Card:
    """What a worker says of a model that it has loaded."""

    model: str
    sizes: tuple[tuple[int, int], ...]  # height and width in pixels; the first is drawn unless another is asked for
    drafts: bool  # whether a drafter is there for the methods that want one
    sketches: bool = True  # whether images on their way are shown
    joins: bool = False  # whether images join a batch that runs
    edits: str | None = None  # what it makes of pictures, see `Pipeline.edits`


@dataclass(frozen=True)
class Hello:
    """A worker is there, and ready to draw."""

    pid: int
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Begun:
    """The worker `pid` has taken the batch."""

    pid: int


@dataclass(frozen=True)
class Shown:
    """An image of an order on its way, as a file; `number` counts those of this image."""

    order: int
    image: int
    number: int
    picture: bytes


@dataclass(frozen=True)
class Done:
    """All images of an order, as files, and the tokens of words and pictures that were read for them, and drawn."""

    order: int
    pictures: tuple[bytes, ...]
    read: int = 0
    seen: int = 0
    drawn: int = 0
    cached: int = 0  # of all that is read, guidance's too: tokens that had been read before


@dataclass(frozen=True)
class Failed:
    """An order that cannot be drawn, the status that its client gets, and why, in a sentence."""

    order: int
    status: int
    message: str


@dataclass(frozen=True)
class Ended:
    """The batch is over: the forwards that it took, and the orders that nobody waited for."""

    forwards: int
    abandoned: int


Event = Begun | Shown | Done | Failed | Ended
