"""Drawing with raster models: classes or prompts, every method of `samplers/` that decodes token by token."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels
from vargen.core.preset import LAW
from vargen.core.types import Generation
from vargen.engine import loops
from vargen.engine.replayed import Replayed
from vargen.models import t5
from vargen.models.contract import embed
from vargen.pipelines import request
from vargen.pipelines.base import Partial, Pipeline
from vargen.pipelines.choose_drafter import drafter_for
from vargen.pipelines.request import Method
from vargen.samplers.contract import RasterSampler, Task
from vargen.samplers.width import LADDER

Size = tuple[int, int]  # height and width in pixels


class RasterPipeline(Pipeline):
    """Draws images with a raster model."""

    kind: ClassVar[str] = "raster"

    @torch.inference_mode()
    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str | None = None,
        *,
        prompt: Sequence[str] | str | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        image: Any = None,
        method: str | None = None,
        preset: str | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        cfg_interval: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        height: int | None = None,
        width: int | None = None,
        free_size: bool = False,
        image_size: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 16,
        output_type: str = "pil",
        **settings: Any,
    ) -> Generation:
        """Draw `num_images_per_prompt` images of each class, or of each prompt where the model takes text.

        `class_labels` are indices or names. Text is `prompt`, or `prompt_embeds` (B, T, C) with
        `prompt_attention_mask` (B, T), both from `encode_prompt`. Image i takes seed `seed + i`, or `seed[i]`; without
        a seed, or with `generator` (whose initial seed is used), the trace tells which seeds were taken. `method` is a
        name with settings, `sjd-coupled:window=16`; `settings` are the same by keyword. None takes the value of
        `preset`, one of the model's published recipes, by default the first. `height` and `width` in pixels are one of
        the model's own sizes; `image_size` in pixels resizes (bicubic, before rounding). `output_type` is pil, np
        (B, H, W, 3) or pt (B, 3, H, W), both in [0, 1], or latent (tokens alone, (B, rows, columns)). Models that read
        prompts themselves take token ids (B, 2, T), of the prompt and of what guidance is against, for
        `prompt_embeds`; some also read an `image`, one or several PIL images for each prompt, and choose each image's
        size by themselves where it is `free_size` (tokens are then a list). ValueError in one sentence for anything out
        of range.
        """
        pipe, given = self.at(height, width), (guidance_scale, cfg_interval, temperature, top_k, top_p)
        law: dict[str, Any] = dict(zip(LAW, given, strict=True))
        recipe = self.preset.choose(preset)
        chosen = request.method(method or self.preset.method, recipe, law, settings)
        how = request.output(recipe, batch_size, pipe._square(image_size), output_type)
        clock = loops.Clock(self.transformer.device)
        encoded = (prompt_embeds, prompt_attention_mask)
        inputs = pipe._inputs(class_labels, prompt, encoded, num_images_per_prompt, image)
        clock.lap("text")
        seeds = request.seeds(len(inputs[0]), seed, generator)
        if free_size:
            return pipe._draw_freely(chosen, inputs, seeds, how)
        out = pipe._draw(chosen, inputs, seeds, **how)
        if prompt is not None:
            out.trace.seconds |= clock.seconds()
            out.trace.seconds["total"] += out.trace.seconds["text"]
        return replace(out, tokens=pipe._codes(out.tokens))

    def stream(
        self,
        class_labels: Any = None,
        *,
        prompt: Any = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        method: str | None = None,
        preset: str | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        image: Any = None,
        image_size: int | None = None,
        seed: Any = None,
        generator: Any = None,
        **options: Any,
    ) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each forward; stop iterating to cancel.

        `options` are the law (guidance_scale, cfg_interval, temperature, top_k, top_p) and the method's settings.
        """
        law = {name: options.pop(name, None) for name in LAW}
        pipe, recipe = self.at(height, width), self.preset.choose(preset)
        chosen = request.method(method or self.preset.method, recipe, law, options)
        size = request.image_size(pipe._square(image_size), recipe)
        encoded = (prompt_embeds, prompt_attention_mask)
        inputs = pipe._inputs(class_labels, prompt, encoded, num_images_per_prompt, image)
        return pipe._decode(chosen, inputs, request.seeds(len(inputs[0]), seed, generator), size)

    def at(self, height: int | None = None, width: int | None = None) -> "RasterPipeline":
        """This pipeline: it draws one size in pixels. ValueError where another is asked for."""
        spec, factor = self.transformer.spec, getattr(getattr(self.tokenizer, "config", None), "factor", 1)
        own = (spec.rows * factor, spec.columns * factor)
        self._size(height, width, own, (own,))
        return self

    def _size(self, height: Any, width: Any, own: Size, known: Sequence[Size]) -> Size:
        """The size asked for. ValueError names those nearest to one that is not known."""
        high = own[0] if height is None else request.whole(height, "height", least=1)
        wide = own[1] if width is None else request.whole(width, "width", least=1)
        if (high, wide) not in known:
            near = sorted(known, key=lambda one: abs(one[0] - high) + abs(one[1] - wide))[:5]
            names = ", ".join(f"{w}x{h}" for h, w in near)
            raise ValueError(f"{self.preset.name} draws no {wide}x{high} pixels; the sizes nearest to it: {names}")
        return high, wide

    def _draw_freely(
        self, method: Method, inputs: tuple[Tensor, ...], seeds: list[int], how: dict[str, Any]
    ) -> Generation:
        raise ValueError(f"{self.preset.name} draws one size: free_size is for models that choose one")

    def _square(self, image_size: Any) -> Any:
        """`image_size` as it was given. ValueError where it would distort."""
        rows, columns = self._grid()
        if image_size is not None and rows != columns:
            raise ValueError(f"got image size {image_size}, a square, for images that are none")
        return image_size

    def encode_prompt(self, prompt: Sequence[str] | str, image: Any = None) -> tuple[Tensor, Tensor]:
        """Text states (B, T, C) and the mask (B, T) of the words in them, for `prompt_embeds` and its mask."""
        if image is not None:
            raise ValueError(f"{self.preset.name} reads no pictures")
        if self.text_encoder is None:
            raise ValueError(f"{self.preset.name} has no text encoder here: it was released or never loaded")
        tokens = self.transformer.config.condition_tokens
        return t5.encode(request.prompts(prompt), self.text_encoder, self.text_tokenizer, tokens)

    def _checked(self, states: Any, mask: Any) -> tuple[Tensor, Tensor]:
        """Encoded prompts that somebody hands in."""
        shapes = self.transformer.config
        return request.text_states(states, mask, shapes.condition_tokens, shapes.caption_width)

    def release_text_encoder(self) -> None:
        """Give the text encoder's memory back; from now on the pipeline takes `prompt_embeds` only."""
        self.register_modules(text_encoder=None, text_tokenizer=None)
        gc.collect()
        if self.transformer.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def pixels(self) -> int:
        """Of an image along one side, as decoded."""
        return self._grid()[1] * self.tokenizer.config.factor

    def decode(self, tokens: Tensor, output_type: str, image_size: int | None = None) -> Any:
        """Images of tokens (B, slots), resized to `image_size` pixels a side if it is given."""
        return super().decode(self._codes(tokens), output_type, image_size)

    def finish(self, images: Tensor, output_type: str, image_size: int | None = None) -> Any:
        """Images (B, 3, H, W) in [-1, 1] as they are given out, in bytes as their tokenizer was published."""
        if output_type == "pil" and image_size is None and getattr(self.tokenizer.config, "truncates", False):
            images = (images.float().clamp(-1, 1) * 127.5 + 127.5).floor() / 127.5 - 1
        return super().finish(images, output_type, image_size)

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of the image, newlines not counted."""
        spec = self.transformer.spec
        return spec.rows, spec.columns - (spec.newline is not None)

    def _codes(self, tokens: Tensor) -> Tensor:
        """Tokens (B, slots) as a grid, without newlines."""
        rows, columns = self._grid()
        return tokens.unflatten(1, (rows, -1))[..., :columns]

    def _inputs(
        self, classes: Any, prompt: Any, encoded: tuple[Any, Any], each: Any, image: Any = None
    ) -> tuple[Tensor, ...]:
        """What is drawn, a row per image: labels (B,), or text states (B, T, C) and their mask (B, T)."""
        name, spec = self.preset.name, self.transformer.spec
        each = request.whole(each, "number of images", least=1)
        texts = [value is not None for value in (prompt, *encoded)]
        if spec.classes:
            if any(texts) or image is not None:
                raise ValueError(f"{name} draws classes and takes no prompt and no image: give a class")
            if classes is None:
                raise ValueError(f"{name} draws classes: give at least one")
            labels = request.labels(classes, each, self.class_names, spec.classes)
            return (torch.tensor(labels, device=self.transformer.device),)
        if classes is not None:
            raise ValueError(f"{name} draws what a prompt says and takes no class: give a prompt")
        if any(texts[1:]) == texts[0]:
            raise ValueError(f"{name} draws what a prompt says: give either a prompt or prompt_embeds with its mask")
        if image is not None and not texts[0]:
            raise ValueError("got an image and no prompt: an image is read with a prompt")
        states, mask = self._checked(*(self.encode_prompt(prompt, image) if texts[0] else encoded))
        return tuple(part.to(self.transformer.device).repeat_interleave(each, dim=0) for part in (states, mask))

    @torch.inference_mode()
    def _decode(
        self, method: Method, inputs: tuple[Tensor, ...], seeds: list[int], image_size: int | None
    ) -> Iterator[Partial]:
        model, device = self.transformer, self.transformer.device
        trace, runner = self._begin(method, seeds), self._runners.of("model", model, self.fast)
        clock, counts = loops.Clock(device), loops.Counts(kernels=Kernels.of(self.fast))
        condition = embed(model, inputs, guided=method.guidance.active)
        seeded, parts = torch.tensor(seeds, device=device), {"codebook": self._codebook(), "kernels": counts.kernels}
        task = Task(model.spec, seeded, method.warp, **parts)
        if drafting := drafter_for(self, method, inputs):
            trace.settings["drafter"], drafter = drafting
            drafter.kernels = counts.kernels
            task, watched = replace(task, drafter=drafter), drafter.watch(model)
            runner = runner if watched is model else watched  # who shows states is not replayed
        task = replace(task, late=isinstance(runner, Replayed))
        if getattr(method.settings, "window", None) == "auto":
            task = replace(task, costs=self._step_costs(runner, method, condition, task))
            clock.lap("calibration")
        sampler: RasterSampler = method.sampler(method.settings, task)
        for _ in loops.raster(runner, condition, sampler, method.guidance, clock, counts):
            final = getattr(sampler, "committed", None)
            yield Partial(sampler.tokens, sampler.settled, counts.forwards, trace, self, image_size, committed=final)
        if task.drafter is not None:
            trace.drafter_forwards = task.drafter.forwards
            trace.drafts, trace.drafts_kept = getattr(sampler, "drafts", 0), getattr(sampler, "drafts_kept", 0)
        self._fill(trace, clock, counts)

    def _codebook(self) -> Tensor | None:
        """The image tokenizer's codes (V, D), as it uses them."""
        quantizer = getattr(self.tokenizer, "quantize", None)
        if quantizer is None:
            return None
        codes = quantizer.codebook().to(self.transformer.device)
        # A newline is far from every code, and never a neighbour of one while there are others.
        return codes if self.transformer.spec.newline is None else F.pad(codes, (0, 0, 0, 1), value=1e3)

    def _step_costs(self, model: Any, method: Method, condition: Any, task: Task) -> dict[int, float]:
        """Seconds per step by width, measured once for this model, device, batch and method."""
        warp, dtype = method.warp, self.transformer.dtype
        law = (method.guidance.active, method.guidance.interval, warp.top_k > 0, warp.top_p < 1, warp.top_n_sigma > 0)
        key = (method.sampler, method.settings, str(model.device), dtype, task.batch, law, self.fast)
        if key not in self._costs:

            def fixed(width: int) -> RasterSampler:
                return method.sampler(replace(method.settings, window=width), task)

            asked = (model, condition, fixed, method.guidance, LADDER)
            self._costs[key] = loops.step_costs(*asked, kernels=task.kernels)
        return self._costs[key]
