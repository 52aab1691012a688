"""Drawing with raster models that read prompts themselves (`models/prompted.py`): many sizes, pictures in prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vargen.core import image_processor
from vargen.core.generation import Generation
from vargen.core.preset import Preset
from vargen.core.trace import Trace
from vargen.models.prompted import Prompted
from vargen.pipelines import sized, values
from vargen.pipelines.base import Pipeline
from vargen.pipelines.raster import RasterPipeline
from vargen.pipelines.request import Request


class PromptedPipeline(RasterPipeline):
    """Draws what prompts say with a `Prompted` model; the same weights draw every size."""

    def __init__(
        self,
        transformer: Any,
        tokenizer: Any,
        text_encoder: Any = None,
        text_tokenizer: Any = None,
        *,
        preset: Preset | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(transformer, tokenizer, text_encoder, text_tokenizer, preset=preset)
        if not isinstance(self.transformer, Prompted):
            raise ValueError(f"{type(self.transformer).__name__} reads no prompts itself: use a RasterPipeline")

    def at(self, height: int | None = None, width: int | None = None) -> "PromptedPipeline":
        """This pipeline, with the same weights, for images of another size in pixels: one of the model's own.

        ValueError names those nearest to a size that is none.
        """
        size = self._size(height, width, self.transformer.sizes)
        if size == self.transformer.size:
            return self

        def make() -> PromptedPipeline:
            parts = (self.tokenizer, None, self.text_tokenizer)
            return PromptedPipeline(self.transformer.at(size), *parts, preset=self.preset)

        def fit(drafter: Any) -> Any:
            return drafter.at(size) if isinstance(drafter, Prompted) and size in drafter.sizes else None

        return sized.at(self, size, make, fit)

    def encode_prompt(self, prompt: Sequence[str] | str, image: Any = None) -> tuple[Tensor, Tensor]:
        """Token ids (B, 2, T), of prompts and of what guidance is against, and their mask, for images of this size.

        `image` is one PIL image for each prompt, or a list of them, where the model reads pictures.
        """
        if self.text_tokenizer is None:
            raise ValueError(f"{self.preset.name} has no text tokenizer here: it was never loaded")
        texts = values.prompts(prompt)
        if not all(text.strip() for text in texts):
            raise ValueError("got an empty prompt: say what to draw")
        if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
            raise ValueError("got a prompt that is no text: it holds half of a character")
        if image is None:
            return self.transformer.tokenize(texts, self.text_tokenizer)
        if not self.transformer.reads_pictures:
            raise ValueError(f"{self.preset.name} reads no pictures")
        if self.tokenizer is None:
            raise ValueError(f"{self.preset.name} has no image tokenizer here, which an image is read with")
        shown = image_processor.encoded(image, len(texts), self.tokenizer, self.transformer.sizes)
        read = self.transformer.tokenize(texts, self.text_tokenizer, shown)
        longest, room = int(read[1].sum(-1).max()), self.transformer.room
        if longest > room:
            most = max(sum(codes.numel() for codes in some) for some in shown)
            raise ValueError(
                f"got a prompt of {longest} tokens, {most} of them its pictures, expected at most {room} beside an "
                "image of this size: give fewer pictures"
            )
        return read

    def release_text_encoder(self) -> None:
        """Nothing to give back: the transformer itself reads prompts, and a tokenizer is small."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes that it can draw, its own first."""
        return (self.size, *(size for size in self.transformer.sizes if size != self.size))

    @property
    def edits(self) -> Literal["read"] | None:
        """It reads pictures where its model does, an image tokenizer is there, and a picture fits beside an image."""
        model, images = self.transformer, self.tokenizer
        if not model.reads_pictures or images is None:
            return None
        least = min(high * wide for high, wide in model.sizes) // images.factor**2
        return "read" if least < model.room else None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.transformer.size

    def _against(self, read: tuple[Tensor, Tensor], others: dict[int, str]) -> tuple[Tensor, Tensor]:
        if not self.transformer.guides:
            raise ValueError(f"{self.preset.name} takes no negative_prompt: its tokens are drawn without guidance")
        return Pipeline._against(self, read, others)

    def _checked(self, states: Any, mask: Any) -> tuple[Tensor, Tensor]:
        """Encoded prompts that somebody hands in. ValueError also where they ask for an image of another size."""
        ids, words = self.transformer.checked(states, mask)
        for row, there in zip(ids[:, 0], words[:, 0], strict=True):
            said = None if self.text_tokenizer is None else self.transformer.said_size(row[there], self.text_tokenizer)
            if said not in (None, self.size):
                (high, wide), (height, width) = said, self.size
                raise ValueError(
                    f"got prompt_embeds that ask for an image of {wide}x{high} pixels, and {width}x{height} is drawn: "
                    "encode prompts at the size that is drawn, by pipe.at(height, width).encode_prompt"
                )
        return ids, words

    def _draw_freely(self, asked: Request) -> Generation:
        """Draw images whose sizes the model chooses, those of one size together; they come in the order asked for."""
        model, step, seeds = self.transformer, asked.batch_size, asked.seeds
        if not model.chooses_size or asked.output_type != "pil" or asked.image_size is not None:
            raise ValueError("free_size is for models that choose a size, and gives PIL images as they are decoded")
        ids, sizes = torch.tensor(seeds, device=model.device), []
        for start in range(0, len(seeds), step):
            some = (part[start : start + step] for part in (*asked.inputs, ids))
            sizes += model.choose_sizes(*some, asked.method.warp.temperature)
        images, tokens, traces = {}, {}, []
        for size in dict.fromkeys(sizes):
            which = [i for i, one in enumerate(sizes) if one == size]
            inputs = tuple(part[which] for part in asked.inputs)
            each = replace(asked, inputs=inputs, seeds=[seeds[i] for i in which], free_size=False)
            out = self.at(*size)._draw(each)
            images |= dict(zip(which, out.images, strict=True))
            tokens |= dict(zip(which, out.tokens, strict=True))
            traces.append(out.trace)
        order = range(len(seeds))
        trace = replace(Trace.merge(traces), seeds=seeds, drawn=asked.method.drawn)
        return Generation([images[i] for i in order], [tokens[i] for i in order], trace)
