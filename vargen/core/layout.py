"""How a published file differs from our module: a table of names, kept beside the module that it describes."""

import re
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Layout:
    """How a published file names what our module holds."""

    rename: tuple[tuple[str, str], ...] = ()  # regular expressions on our key, applied in turn, give the file's
    pointwise: str | None = None  # the file's keys that are 1x1 convolutions there and linear layers here
    stacked: str | None = None  # the file's keys that hold several of ours, one below the other
    ignored: str | None = None  # the file's keys that hold no weights
    zeros: str | None = None  # of these, those that are taken to be all zeros
    under: str | None = None  # the name under which the file must have them; None: bare, or under one of NESTING

    def published(self, key: str) -> str:
        """The file's name of our `key`."""
        for pattern, replacement in self.rename:
            key = re.sub(pattern, replacement, key)
        return key

    def expected(self, module: nn.Module) -> dict[str, tuple[list[str], tuple[int, ...]]]:
        """The keys that a file must have, each with our keys in it and the shape in the file."""
        out: dict[str, tuple[list[str], tuple[int, ...]]] = {}
        for ours, value in module.state_dict().items():
            key, shape = self.published(ours), tuple(value.shape)
            shape = (*shape, 1, 1) if self.pointwise and re.search(self.pointwise, key) else shape
            before, above = out.get(key, ([], (0,)))
            assert not before or (self.stacked and re.search(self.stacked, key)), f"two of our keys are {key}"
            out[key] = ([*before, ours], (above[0] + shape[0], *shape[1:]) if before else shape)
        return out


PLAIN = Layout()
