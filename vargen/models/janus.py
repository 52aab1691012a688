"""Janus and Janus-Pro (arXiv 2410.13848, 2501.17811) through transformers' classes: text to image, 24 x 24 tokens.

Guidance is against the same prompt with every token but its first and its last one padded, and the padding is seen.
Image tokens have embeddings and a head of their own.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vargen.core.described import as_dataclass
from vargen.core.specs import RasterSpec
from vargen.models.prompted import padded
from vargen.models.wrapped import Wrapped, as_json, rebuilt

TEMPLATE = "<|User|>: {}\n\n<|Assistant|>:"  # where the tokenizer has no template of its own


@dataclass(frozen=True)
class Shapes:
    """What a model is made of beside its weights: transformers' config, and ids."""

    model: dict
    begin: int
    start: int
    nothing: int


class Janus(Wrapped):
    """Janus's language model, with what draws images around it, under the raster contract."""

    def __init__(self, model: Any, *, begin: int, start: int, nothing: int) -> None:
        """`model` is transformers' JanusModel, `begin` the id that begins an image, `start` a text; `nothing` pads."""
        super().__init__(model.language_model, model.config.text_config.max_position_embeddings)
        parts = (model.generation_embeddings, model.generation_aligner, model.generation_head)
        self.embeddings, self.aligner, self.head = parts
        self.begin, self.start, self.nothing, vq = begin, start, nothing, model.config.vq_config
        side, self.whole = vq.num_patches, model.config
        self.spec = RasterSpec(side, side, vq.num_embeddings, 0)
        pixels = side * 2 ** (len(vq.channel_multiplier) - 1)
        self.size, self.sizes = (pixels, pixels), ((pixels, pixels),)

    def described(self) -> dict[str, Any]:
        """What `rebuilt` makes it of, without weights."""
        return asdict(Shapes(as_json(self.whole), self.begin, self.start, self.nothing))

    @classmethod
    def rebuilt(cls, about: Any) -> "Janus":
        """The model without weights."""
        from transformers import JanusModel

        found = as_dataclass(Shapes, about)
        return cls(rebuilt(JanusModel, found.model), begin=found.begin, start=found.start, nothing=found.nothing)

    def at(self, size: tuple[int, int]) -> "Janus":
        assert size == self.size
        return self

    def tokenize(self, prompts: Sequence[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
        """Of the prompt as a turn of a chat, and of padding as long as that."""
        rows = []
        for prompt in prompts:
            ids = [*self._chat(prompt, tokenizer), self.begin]
            rows.append([ids, self.emptied(torch.tensor(ids)).tolist()])
        return padded(rows)

    def emptied(self, ids: Tensor) -> Tensor:
        """What guidance is against: ids with padding in the place of all words."""
        return torch.where((ids == self.start) | (ids == self.begin), ids, self.nothing)

    def _chat(self, prompt: str, tokenizer: Any) -> list[int]:
        if not tokenizer.chat_template:
            return tokenizer.encode(TEMPLATE.format(prompt))
        turn = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return tokenizer.encode(text)

    def opening(self) -> list[int]:
        return []  # `tokenize` has it

    def embed(self, tokens: Tensor) -> Tensor:
        return self.aligner(self.embeddings(tokens))

    def logits(self, states: Tensor) -> Tensor:
        return self.head(states).float()
