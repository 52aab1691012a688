"""What one visitor of the demo may ask for at most. Light to import: the flags are made of it."""

from dataclasses import asdict, dataclass

MOST_SEED = 2**53 - 1  # whole numbers that a browser can tell apart
MOST_LETTERS = 2000  # of a method with its settings
# The most that a setting may be, beside the bounds that the library has: work and memory grow with them.
MOST = {
    "window": 256,
    "length": 64,
    "drafts": 256,
    "ahead": 256,
    "k": 4096,
    "group": 4096,
    "steps": 250,
    "upper": 250,
    "draft": 16,
    "tries": 100,
}


@dataclass(frozen=True)
class Limits:
    """The most of everything, and how many visitors may wait."""

    images: int = 4
    pixels: int = 1 << 22  # of all images together
    prompt: int = 300  # characters
    seconds: float = 60.0  # that a decode may take, pauses included
    queue: int = 24

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"got at most {value} {name}, expected more than 0")
