"""Pictures on their way: what `stream` yields behind each forward."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vargen.core.machine import plainly
from vargen.core.types import Trace


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

    @torch.inference_mode()
    def images(self, output_type: str = "pil") -> Any:
        """The pictures so far: unsettled tokens are shown as their drafts."""
        pipe = self.pipeline
        with plainly(pipe.transformer.device):
            if self.features is None:
                return pipe.decode(self.tokens, output_type, self.image_size)
            return pipe.finish(pipe.image_tokenizer.decode_latents(self.features), output_type, self.image_size)
