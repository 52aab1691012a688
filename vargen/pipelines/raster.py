"""Drawing with raster models: classes or prompts, every method of `samplers/` that decodes token by token."""

import gc
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels
from vargen.core.generation import Generation
from vargen.core.machine import processor
from vargen.core.types import Condition
from vargen.engine import loops, timed
from vargen.engine.replayed import Replayed
from vargen.engine.threads import Threads
from vargen.models import t5
from vargen.models.contract import embed
from vargen.models.prompted import Prompted
from vargen.pipelines import request, values
from vargen.pipelines.base import Pipeline
from vargen.pipelines.choose_drafter import drafter_for
from vargen.pipelines.options import Options, RasterOptions, takes
from vargen.pipelines.partial import Partial
from vargen.pipelines.request import Method, Request
from vargen.samplers.contract import RasterSampler, Task
from vargen.samplers.width import LADDER

Size = tuple[int, int]  # height and width in pixels
PROMPTS = 64  # tokens of a prompt, of which caches and graphs have a multiple


class RasterPipeline(Pipeline):
    """Draws images with a raster model."""

    kind: ClassVar[str] = "raster"
    options_type: ClassVar[type[Options]] = RasterOptions
    unconditional: ClassVar[bool] = False

    @takes(RasterOptions)
    @torch.inference_mode()
    def __call__(self, class_labels: Any = None, **given: Any) -> Any:
        """Draw `num_images_per_prompt` images of each class, or of each prompt where the model takes text.

        `class_labels` are indices or names. Text is `prompt`, or `prompt_embeds` (B, T, C) with
        `prompt_attention_mask` (B, T), both from `encode_prompt`. Image i takes seed `seed + i`, or `seed[i]`; without
        a seed, or with `generator` (whose state gives the seeds), the trace tells which seeds were taken. `method` is a
        name with settings, `sjd-coupled:window=16`. None takes the value of `preset`, one of the model's published
        recipes, by default the first. `height` and `width` in pixels are one of the model's own sizes; `image_size` in
        pixels resizes (bicubic, before rounding). `output_type` is pil, np (B, H, W, 3) or pt (B, 3, H, W), both in
        [0, 1], or latent (tokens alone, (B, rows, columns)). Models that read prompts themselves take token ids
        (B, 2, T), of the prompt and of what guidance is against, for `prompt_embeds`; some also read an `image`, one or
        several PIL images for each prompt, and choose each image's size by themselves where it is `free_size` (tokens
        are then a list). ValueError in one sentence for anything out of range.
        """
        pipe, asked, wanted = self._asked(class_labels, given)
        return pipe._answer(asked, wanted)

    @takes(RasterOptions, stream=True)
    def stream(self, class_labels: Any = None, **given: Any) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each forward; stop iterating to cancel."""
        pipe, asked, _ = self._asked(class_labels, given, stream=True)
        return pipe._steps(asked.method, asked.inputs, asked.seeds, asked.image_size)

    def at(self, height: int | None = None, width: int | None = None) -> "RasterPipeline":
        """This pipeline: it draws one size in pixels. ValueError where another is asked for."""
        self._size(height, width, (self.size,))
        return self

    def _at(self, wanted: RasterOptions) -> "RasterPipeline":
        return self.at(wanted.height, wanted.width)

    def _size(self, height: Any, width: Any, known: Sequence[Size]) -> Size:
        """The size asked for. ValueError names those nearest to one that is not known."""
        high = self.size[0] if height is None else values.whole(height, "height", least=1)
        wide = self.size[1] if width is None else values.whole(width, "width", least=1)
        if (high, wide) not in known:
            near = sorted(known, key=lambda one: abs(one[0] - high) + abs(one[1] - wide))[:5]
            names = ", ".join(f"{w}x{h}" for h, w in near)
            raise ValueError(f"{self.preset.name} draws no {wide}x{high} pixels; the sizes nearest to it: {names}")
        return high, wide

    def _draw(self, asked: Request) -> Generation:
        if asked.free_size:
            return self._draw_freely(asked)
        out = super()._draw(asked)
        tokens = out.tokens if self.transformer.spec.previews else self._codes(out.tokens)
        return replace(out, tokens=tokens, images=tokens if asked.output_type == "latent" else out.images)

    def _draw_freely(self, asked: Request) -> Generation:
        """Draw images whose sizes the model chooses."""
        raise ValueError(f"{self.preset.name} draws one size: free_size is for models that choose one")

    def encode_prompt(self, prompt: Sequence[str] | str, image: Any = None) -> tuple[Tensor, Tensor]:
        """Text states (B, T, C) and the mask (B, T) of the words in them, for `prompt_embeds` and its mask."""
        if image is not None:
            raise ValueError(f"{self.preset.name} reads no pictures")
        if self.text_encoder is None:
            raise ValueError(f"{self.preset.name} has no text encoder here: it was released or never loaded")
        tokens, _ = self.transformer.text_shape
        return t5.encode(values.prompts(prompt), self.text_encoder, self.text_tokenizer, tokens)

    def _checked(self, states: Any, mask: Any) -> tuple[Tensor, Tensor]:
        """Encoded prompts that somebody hands in."""
        return values.text_states(states, mask, *self.transformer.text_shape)

    def release_text_encoder(self) -> None:
        """Give the text encoder's memory back; from now on the pipeline takes `prompt_embeds` only."""
        self.register_modules(text_encoder=None, text_tokenizer=None)
        gc.collect()
        if self.transformer.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def size(self) -> Size:
        """Height and width of an image in pixels, as decoded; in tokens, where there is no image tokenizer."""
        (rows, columns), factor = self._grid(), 1 if self.tokenizer is None else self.tokenizer.factor
        return rows * factor, columns * factor

    def _pixels(self, tokens: Tensor) -> Tensor:
        """Of tokens (B, rows, columns), or (B, slots) with newlines."""
        grid = self._codes(tokens) if tokens.dim() == 2 and tokens.shape[1] == self.transformer.spec.slots else tokens
        if grid.shape[1:] != self._grid():
            raise ValueError(f"got tokens {tuple(tokens.shape)}, expected (B, {', '.join(map(str, self._grid()))})")
        return super()._pixels(grid)

    def finish(self, images: Tensor, output_type: str, image_size: int | None = None) -> Any:
        """Images (B, 3, H, W) in [-1, 1] as they are given out, in bytes as their tokenizer was published."""
        if isinstance(output_type, str) and output_type == "pil" and image_size is None and self.tokenizer.truncates:
            images = (images.float().clamp(-1, 1) * 127.5 + 127.5).floor() / 127.5 - 1
        return super().finish(images, output_type, image_size)

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of the image, newlines not counted."""
        spec = self.transformer.spec
        return spec.rows, spec.columns - (spec.newline is not None)

    def _codes(self, tokens: Tensor) -> Tensor:
        """Tokens (B, slots) as a grid, without newlines."""
        return self.transformer.spec.split(tokens)[-1][..., : self._grid()[1]]

    def _inputs(self, wanted: RasterOptions) -> tuple[Tensor, ...]:
        if wanted.image is not None and self.transformer.spec.classes:
            raise ValueError(f"{self.preset.name} draws classes and takes no image: give a class")
        if wanted.image is not None and wanted.prompt is None:
            raise ValueError("got an image and no prompt: an image is read with a prompt")
        return super()._inputs(wanted)

    def _read(self, wanted: RasterOptions) -> tuple[Tensor, Tensor]:
        assert wanted.prompt is not None
        if wanted.image is None:
            return super()._read(wanted)
        read = self.encode_prompt(wanted.prompt, wanted.image)
        if request.negatives(wanted.negative_prompt, len(read[0])):
            raise ValueError("got a negative_prompt beside an image, expected one of them")
        return read

    def _against(self, read: tuple[Tensor, Tensor], others: dict[int, str]) -> tuple[Tensor, Tensor]:
        raise ValueError(f"{self.preset.name} takes no negative_prompt: its guidance is against a learned vector")

    @torch.inference_mode()
    def _decode(
        self, method: Method, inputs: tuple[Tensor, ...], seeds: list[int], image_size: int | None
    ) -> Generator[Partial, None, None]:
        model, device = self.transformer, self.transformer.device
        trace, runner = self._begin(method, seeds), self._runners.of("model", model, self.fast)
        clock, counts = loops.Clock(device), loops.Counts(kernels=Kernels.of(self.fast))
        read = self.read(inputs)
        condition = self.condition(read, runner, guided=method.guidance.active)
        seeded, parts = torch.tensor(seeds, device=device), {"codebook": self._codebook(), "kernels": counts.kernels}
        task = Task(model.spec, seeded, method.warp, **parts)
        if drafting := drafter_for(self, method, read):
            trace.settings["drafter"], drafter = drafting
            drafter.kernels = counts.kernels
            task, plain = replace(task, drafter=drafter), model if isinstance(runner, Replayed) else runner
            watched = drafter.watch(plain)
            runner = runner if watched is plain else watched  # who shows states is not replayed
        task, threads = replace(task, late=isinstance(runner, Replayed)), Threads(model)
        if method.sampler.block_width(method.settings) is None:
            task = replace(task, costs=self._step_costs(runner, method, condition, task))
            clock.lap("calibration")
        sampler: RasterSampler = method.sampler(method.settings, task)
        for _ in loops.raster(runner, condition, sampler, method.guidance, clock, counts, threads):
            rest: Any = {"committed": sampler.committed, "inputs": inputs, "seeds": tuple(seeds)}
            yield Partial(sampler.tokens, sampler.settled, counts.forwards, trace, self, image_size, **rest)
        if drafting is not None:
            drafting[1].sound.check()
            trace.drafter_forwards = drafting[1].forwards
            trace.drafts, trace.drafts_kept = sampler.counted
        self._fill(trace, clock, counts)

    def read(self, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """What the model reads of `inputs`: parts with something for each row."""
        return inputs

    def condition(self, read: tuple[Any, ...], runner: Any, *, guided: bool) -> Condition:
        """The condition of what is `read`, as the model's `runner` takes it."""
        condition = embed(self.transformer, read, guided=guided)
        if isinstance(self.transformer, Prompted) and isinstance(runner, Replayed):
            return condition.rounded(PROMPTS)  # prompts of many lengths in the same graphs
        return condition

    def _codebook(self) -> Tensor | None:
        """The image tokenizer's codes (V, D), as it uses them."""
        codes = None if self.tokenizer is None else self.tokenizer.codebook()
        if codes is None:
            return None
        codes = codes.to(self.transformer.device)
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

            def measured() -> dict[int, float]:
                asked = (model, condition, fixed, method.guidance, LADDER)
                return loops.step_costs(*asked, kernels=task.kernels, threads=Threads(self.transformer))

            self._costs[key] = timed.costs(self._timed(method, task, law, len(condition.embedding[0])), measured)
        return self._costs[key]

    def _timed(self, method: Method, task: Task, law: tuple[Any, ...], front: int) -> dict[str, Any]:
        """All that the seconds of a step depend on, for whoever keeps them."""
        model, count = self.transformer, sum(value.numel() for value in self.transformer.parameters())
        return {
            "model": [type(model).__name__, repr(model.config), repr(model.spec), count],
            "dtype": str(model.dtype),
            "quantize": self.quantize,
            "method": [method.sampler.__name__, repr(method.settings)],
            "law": law,
            "batch": task.batch,
            "front": -(-front // PROMPTS),
            "fast": self.fast,
            "machine": [processor(), self.versions],
        }
