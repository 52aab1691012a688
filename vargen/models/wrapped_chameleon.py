"""Chameleon (arXiv 2405.09818) through transformers' classes, drawing images: a square of codes, no newlines.

transformers forbids image tokens in the class's `forward`, and has no way of its own to draw with it. What was proposed
there for Anole (huggingface/transformers 31919, 32013; neither was merged) is what is done here: behind the token that
begins an image come as many codes as the image tokenizer has, drawn among the codes alone, and the token that ends it.
Anole's own files (`lumina_mgpt.py`) are read without transformers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vargen.core.specs import RasterSpec
from vargen.models.prompted import padded
from vargen.models.wrapped import Worded

BEGIN, END = "<racm3:break>", "<eoss>"


class Chameleon(Worded):
    """Chameleon's language model under the raster contract."""

    def __init__(self, model: Any) -> None:
        """`model` is transformers' ChameleonForConditionalGeneration. ValueError where its vocabulary has no images."""
        names, vq = model.config.vocabulary_map or {}, model.config.vq_config
        ids = sorted(id for name, id in names.items() if name.startswith("IMGIMG"))
        if not ids or BEGIN not in names or END not in names:
            raise ValueError(f"got a vocabulary_map without image codes, or without {BEGIN} and {END}")
        super().__init__(model.model, model.lm_head, torch.tensor(ids, device=model.lm_head.weight.device), len(ids))
        self.begin, self.end = names[BEGIN], names[END]
        side = vq.resolution // 2 ** (len(vq.channel_multiplier) - 1)
        self.spec = RasterSpec(side, side, len(ids), 0)
        self.size, self.sizes = (vq.resolution, vq.resolution), ((vq.resolution, vq.resolution),)

    def at(self, size: tuple[int, int]) -> "Chameleon":
        assert size == self.size
        return self

    def tokenize(self, prompts: Sequence[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
        """Of the prompt and the token that begins an image, and of that token alone."""
        return padded([[[*tokenizer.encode(prompt), self.begin], [self.begin]] for prompt in prompts])

    def opening(self) -> list[int]:
        return []  # `tokenize` has it
