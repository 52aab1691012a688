"""Pictures on their way: what `stream` yields behind each forward."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vargen.core.machine import plainly
from vargen.core.trace import Trace
from vargen.engine.staying import Staying


@dataclass(frozen=True)
class Partial:
    """A batch in the making. `tokens` (B, slots) is a live view; in decoding order, row b is final up to `settled[b]`.

    `trace` is filled when the last image is done.
    """

    tokens: Tensor
    settled: list[int]
    forwards: int
    trace: Trace
    pipeline: Any
    image_size: int | None = None
    features: Tensor | None = None  # what the image is decoded from, where that is not the tokens
    committed: Any = None  # (B, slots) bool, where the tokens that are final are not the first ones
    inputs: tuple[Tensor, ...] = ()  # what is drawn, a row per image, where pictures hang on it
    seeds: tuple[int, ...] = ()  # likewise
    staying: Staying | None = None  # who of the batch is here, where images may leave it

    def keep(self, rows: Sequence[int]) -> None:
        """From the next step on, go on with these images of the batch alone, by their numbers when it began: whoever
        stays is drawn as before. Of next-scale and continuous models; ValueError of others, and of images that left.
        """
        if self.staying is None:
            name = self.pipeline.preset.name
            raise ValueError(f"images of {name} leave a batch that they may join as well: see pipelines/running.py")
        self.staying.keep(rows)

    def place(self, row: int) -> int:
        """Where an image is now, of the number that it had when the batch began."""
        return row if self.staying is None else self.staying.rows.index(row)

    def of(self, rows: list[int]) -> "Partial":
        """Some images of the batch alone, by their numbers when it began, as far as pictures are made of them."""
        rows = [self.place(row) for row in rows]
        features = None if self.features is None else self.features[rows]
        inputs, seeds = tuple(part[rows] for part in self.inputs), tuple(self.seeds[row] for row in rows if self.seeds)
        return replace(self, tokens=self.tokens[rows], features=features, inputs=inputs, seeds=seeds, staying=None)

    @torch.inference_mode()
    def images(self, output_type: str = "pil") -> Any:
        """The pictures so far: unsettled tokens are shown as their drafts."""
        with plainly(self.pipeline.transformer.device):
            return self.pipeline.shown(self, output_type)
