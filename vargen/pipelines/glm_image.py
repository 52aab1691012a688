"""GLM-Image from text to picture: our loop draws both grids of codes, diffusers' own pipeline paints from the full one.

What paints is a `GlmImagePipeline` of diffusers without its first stage: a diffusion transformer that is given codes
(`prior_token_ids`) and the words in quotes of the prompt. It paints images one by one, since its batches mix up prompts
with words of different lengths (huggingface/diffusers#13587).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vargen.core.image_processor import listed
from vargen.core.preset import Preset
from vargen.core.trace import Trace
from vargen.engine.runners import Runners
from vargen.models.glm_image import GlmImage, check_words
from vargen.pipelines import sized, values
from vargen.pipelines.glm_painting import FIRST, PAINTER, Painting, paint, read_painter
from vargen.pipelines.glm_sources import Reader, Source
from vargen.pipelines.options import GlmImageOptions, Options, takes
from vargen.pipelines.partial import Partial
from vargen.pipelines.prompted import PromptedPipeline
from vargen.pipelines.request import Request


class GlmImagePipeline(PromptedPipeline):
    """Draws what prompts say with GLM-Image. `painter` makes the pictures; without it there are codes alone."""

    options_type: ClassVar[type[Options]] = GlmImageOptions
    sketches: ClassVar[bool] = False
    reads_ahead: ClassVar[bool] = False

    def __init__(
        self,
        transformer: Any,
        tokenizer: Any = None,
        text_encoder: Any = None,
        text_tokenizer: Any = None,
        *,
        painter: Any = None,
        reader: Reader | None = None,
        preset: Preset | Mapping[str, Any] | None = None,
    ) -> None:
        """`painter` is diffusers' GlmImagePipeline, whose `vision_language_encoder` is not used; `reader`, where there
        is one, reads pictures.
        """
        super().__init__(transformer, tokenizer, text_encoder, text_tokenizer, preset=preset)
        if text_tokenizer is not None:
            check_words(text_tokenizer)
        self.painter, self.reader, self.painting, self._offloads = painter, reader, Painting(), False
        self.sources: list[list[Source]] = []  # of each prompt of a call

    @takes(GlmImageOptions)
    def __call__(self, class_labels: Any = None, **given: Any) -> Any:
        """Draw `num_images_per_prompt` images of each prompt, each from codes of its own; see `RasterPipeline`.

        `guidance_scale` and `num_inference_steps` are of the diffusion transformer: codes are drawn without guidance.
        With `output_type` latent the tokens (B, slots) of both grids are given, the preview's first;
        `pipe.transformer.spec.split(tokens)` has them apart.
        """
        return super().__call__(class_labels, **given)

    @property
    def components(self) -> dict[str, Any]:
        return {**super().components, "painter": self.painter, "reader": self.reader}

    def write_beside(self, folder: Path) -> None:
        """The painter's parts, without a first stage, which the transformer is."""
        if self.painter is not None:
            painter = type(self.painter)(**{**self.painter.components, **dict.fromkeys(FIRST)})
            painter.save_pretrained(folder / PAINTER)

    @classmethod
    def read_beside(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        return {"painter": read_painter(folder / PAINTER, dtype).to(device)} if (folder / PAINTER).is_dir() else {}

    def to(self, *arguments: Any, **options: Any) -> Any:
        """Move to a device, the painter as well; a dtype is the transformer's alone. See `Pipeline.to`."""
        super().to(*arguments, **options)
        places = [value for value in arguments if not isinstance(value, torch.dtype)]
        if self.painter is not None and (places or options.get("device") is not None):
            self.painter.to(*places, **options)
        return self

    def enable_model_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Keep on the device what works alone: the transformer while codes are drawn, the painter's parts in turn.

        ValueError where there is nothing that paints, or no device beside the CPU.
        """
        device = self.transformer.device
        if device.type == "cpu":
            raise ValueError("the transformer is on the CPU already: there is nothing to offload it from")
        self.image_tokenizer.enable_model_cpu_offload(device=device)
        self._offloads = True

    def at(self, height: int | None = None, width: int | None = None) -> "GlmImagePipeline":
        """This pipeline, with the same weights, for images of another size in pixels. ValueError names near ones."""
        size = self._size(height, width, self.transformer.sizes)
        if size == self.transformer.size:
            return self

        def make() -> GlmImagePipeline:
            parts = (self.tokenizer, None, self.text_tokenizer)
            return GlmImagePipeline(self.transformer.at(size), *parts, preset=self.preset)

        found = sized.at(self, size, make, lambda drafter: drafter.at(size) if isinstance(drafter, GlmImage) else None)
        found.painter, found.reader, found.painting = self.painter, self.reader, self.painting
        found._offloads = self._offloads
        return found

    def _edits(self, image: Any, prompts: int) -> "GlmImagePipeline":
        """This pipeline, with pictures in its prompts."""
        if self.reader is None:
            raise ValueError(f"{self.preset.name} has nothing here that reads pictures: load the whole repository")
        each = listed(image, prompts)
        if not all(each):
            raise ValueError("got a prompt without a picture beside an image, expected one or several for each")
        found = copy.copy(self)
        found.transformer, found._runners = self.transformer.editing(), Runners()
        found.sources = [[self.reader.read(one) for one in some] for some in each]
        return found

    def _at(self, wanted: Any) -> "GlmImagePipeline":
        given = {"num_inference_steps": wanted.num_inference_steps, "guidance_scale": wanted.guidance_scale}
        out = copy.copy(self.at(wanted.height, wanted.width))
        if wanted.image is not None and wanted.prompt is not None:
            out = out._edits(wanted.image, len(values.prompts(wanted.prompt)))
        out.painting = replace(self.painting, **{key: value for key, value in given.items() if value is not None})
        return out

    def _request(self, wanted: Any, settings: dict[str, Any]) -> Request:
        return super()._request(replace(wanted, guidance_scale=None), settings)

    def trace(self, method: Any, seeds: list[int]) -> Trace:
        trace = super().trace(method, seeds)
        trace.settings |= vars(self.painting)
        return trace

    @property
    def edits(self) -> Literal["read"] | None:
        """It reads pictures with the whole repository."""
        return None if self.reader is None else "read"

    @property
    def decodes(self) -> bool:
        return self.painter is not None

    @property
    def image_tokenizer(self) -> Any:
        """What makes pictures of codes. ValueError where there is nothing that does."""
        if not self.decodes:
            raise ValueError(
                f"{self.preset.name} has no diffusion transformer here, which paints from its codes: load the whole "
                "repository, or a saved folder, by vargen.load, or ask for output_type latent"
            )
        return self.painter

    @torch.inference_mode()
    def decode(
        self,
        tokens: Tensor,
        output_type: str = "pil",
        image_size: int | None = None,
        *,
        prompt: str | list[str] = "",
        seed: Any = 0,
    ) -> Any:
        """Images of the tokens (B, slots) of both grids, or (B, rows, columns) of the full one.

        Of a `prompt`, for all or for each, the painter reads words in quotes; `seed` is of its noise, as in a call.
        """
        full, texts = self._full(tokens), values.prompts(prompt)
        if len(texts) not in (1, len(full)):
            raise ValueError(f"got {len(texts)} prompts for {len(full)} images, expected one, or one each")
        seeds, sources = values.seeds(len(full), seed, None), [list[Source]()] * len(full)
        return self._painted(full, texts * (len(full) // len(texts)), seeds, sources, output_type, image_size)

    def shown(self, partial: Partial, output_type: str) -> Any:
        _, _, words, which = partial.inputs
        texts = [bytes(row[row > 0].tolist()).decode() for row in words]
        sources = [self.sources[prompt] if self.sources else [] for prompt in which.tolist()]
        how = (texts, list(partial.seeds), sources, output_type, partial.image_size)
        return self._painted(self._full(partial.tokens), *how)

    def _read(self, wanted: Any) -> tuple[Tensor, Tensor]:
        if not self.sources:  # nor is an image dropped in silence
            return super()._read(wanted)
        shown = [[source.codes for source in some] for some in self.sources]
        self.encode_prompt(wanted.prompt)  # which says what is wrong with it
        return self.transformer.tokenize(values.prompts(wanted.prompt), self.text_tokenizer, shown)

    def encode_prompt(self, prompt: Sequence[str] | str, image: Any = None) -> tuple[Tensor, Tensor]:
        """As `PromptedPipeline` has it. ValueError for pictures, which a call alone reads."""
        if image is not None:
            raise ValueError(f"{self.preset.name} reads pictures in a call alone: pipe(prompt, image=...)")
        return super().encode_prompt(prompt)

    def _inputs(self, wanted: Any) -> tuple[Tensor, ...]:
        """Prompts as the model takes them, and as the painter does: UTF-8 (B, bytes), with zeros behind; and which one
        of the call each is (B,).
        """
        ids, mask = super()._inputs(wanted)
        if wanted.prompt is not None:
            given = values.prompts(wanted.prompt)
        else:
            given = [self._words(row[there]) for row, there in zip(ids[:, 0], mask[:, 0], strict=True)]
        read = [torch.tensor([*text.replace("\0", " ").encode()], dtype=torch.uint8) for text in given]
        words, each = torch.nn.utils.rnn.pad_sequence(read, batch_first=True), len(ids) // len(given)
        return ids, mask, words.repeat_interleave(each, 0), torch.arange(len(given)).repeat_interleave(each)

    def _words(self, ids: Tensor) -> str:
        """The words of a prompt that came as ids."""
        return "" if self.text_tokenizer is None else self.transformer.text_of(ids, self.text_tokenizer)

    def read(self, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """Prompts, and the grids of the pictures in each."""
        ids, mask, _, which = inputs
        shown = [self.sources[prompt] if self.sources else [] for prompt in which.tolist()]
        return ids, mask, [[tuple(source.codes.shape) for source in some] for some in shown]

    def _full(self, tokens: Any) -> Tensor:
        """The full grid (B, rows, columns) of tokens. ValueError where they are none."""
        spec = self.transformer.spec
        shapes = ((spec.slots,), (spec.rows, spec.columns))
        if not isinstance(tokens, Tensor) or tuple(tokens.shape[1:]) not in shapes or not len(tokens):
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"got tokens {found}, expected (B, {spec.slots}) or (B, {spec.rows}, {spec.columns})")
        if tokens.dtype != torch.int64 or int(tokens.min()) < 0 or int(tokens.max()) >= spec.vocabulary:
            raise ValueError(f"got tokens that are no ids, expected whole numbers from 0 to {spec.vocabulary - 1}")
        return spec.split(tokens)[-1] if tokens.dim() == 2 else tokens

    def _painted(
        self,
        full: Tensor,
        texts: list[str],
        seeds: list[int],
        sources: list[list[Source]],
        output_type: str,
        image_size: int | None,
    ) -> Any:
        place = self.transformer.device
        self.image_tokenizer.set_progress_bar_config(**self._bar())
        if self._offloads:
            self._moved(torch.device("cpu"))
        try:
            with torch.inference_mode(False), torch.no_grad():  # what the painter keeps of a call is the user's as well
                images = [self._paint(*each) for each in zip(full, texts, seeds, sources, strict=True)]
        finally:
            if self._offloads:
                self._moved(place)
        return self._given(torch.cat(images), output_type, image_size, normalised=False)

    def _moved(self, device: torch.device) -> None:
        self._runners.clear()
        self.transformer.to(device)

    def _paint(self, codes: Tensor, text: str, seed: int, sources: list[Source]) -> Tensor:
        return paint(self.painter, self.painting, self.size, codes, text, seed, sources)
