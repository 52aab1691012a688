"""What a user touches: `vargen.load(name)` gives a diffusers pipeline that draws, or streams, images."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn
from tqdm import tqdm

from vargen import generate, request
from vargen.cli import DEFAULT_METHOD
from vargen.core import Generation, Trace, peak_memory, reset_peak_memory, versions
from vargen.drafting import drafter_for
from vargen.models import t5
from vargen.models.contract import embed
from vargen.presets.contract import LAW, Preset, custom
from vargen.request import Method
from vargen.samplers.contract import RasterSampler, Task
from vargen.samplers.width import LADDER


@dataclass(frozen=True)
class Partial:
    """A batch in the making. `tokens` (B, slots) is a live view; in reading order, row b is final up to `settled[b]`.

    `trace` is filled when the last image is done.
    """

    tokens: Tensor
    settled: list[int]
    forwards: int
    trace: Trace
    pipeline: "RasterPipeline"
    image_size: int | None = None

    def images(self) -> list[Any]:
        """The pictures so far, as PIL images: unsettled tokens are shown as their drafts."""
        return self.pipeline.decode(self.tokens, "pil", self.image_size)


class RasterPipeline(DiffusionPipeline):
    """Draws images with a raster model; components `transformer` and `tokenizer` (of images) as in any diffusers
    pipeline, and `text_encoder` with `text_tokenizer` where the model takes prompts.
    """

    _optional_components: ClassVar = ["text_encoder", "text_tokenizer"]
    model_cpu_offload_seq = "text_encoder->transformer->tokenizer"

    def __init__(
        self,
        transformer: nn.Module,
        tokenizer: nn.Module,
        text_encoder: nn.Module | None = None,
        text_tokenizer: Any = None,
        *,
        preset: Preset | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, tokenizer=tokenizer, text_encoder=text_encoder, text_tokenizer=text_tokenizer
        )
        self.preset = preset or custom(transformer)
        self.nats_per_token: float | None = None  # cross-entropy on held-out images, where it is known
        self.drafter: nn.Module | None = None  # what drafts where a method wants a drafter and names none
        self.drafters: dict[str, nn.Module] = {}  # by name
        self._costs: dict[Any, dict[int, float]] = {}
        self._processor = VaeImageProcessor()

    @property
    def dtype(self) -> torch.dtype:
        """The transformer's."""
        return self.transformer.dtype

    def to(self, *arguments: Any, **options: Any) -> Any:
        """Move to a device, cast to a dtype. Only the transformer is cast: the image tokenizer works in float32."""
        kinds = [value for value in (*arguments, *options.values()) if isinstance(value, torch.dtype)]
        places = [value for value in arguments if not isinstance(value, torch.dtype)]
        options = {key: value for key, value in options.items() if not isinstance(value, torch.dtype)}
        if places or options:
            super().to(*places, **options)
        for kind in kinds:
            self.transformer.to(kind)
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called; empty where they have no names or the model takes prompts."""
        return tuple(self.preset.names())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The same as `vargen.load`; `torch_dtype` is another name of `dtype`, as in diffusers."""
        from vargen.loading import load

        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        return load(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """Not offered: weights are kept in the format in which they were published."""
        raise ValueError("a vargen pipeline is not saved as a folder: keep the checkpoint it was loaded from")

    @torch.inference_mode()
    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str | None = None,
        *,
        prompt: Sequence[str] | str | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        method: str = DEFAULT_METHOD,
        preset: str | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        cfg_interval: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
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
        `preset`, one of the model's published recipes, by default the first. `image_size` in pixels resizes (bicubic,
        before rounding). `output_type` is pil, np (B, H, W, 3) or pt (B, 3, H, W), both in [0, 1], or latent (tokens
        alone, (B, slots)). ValueError in one sentence for anything out of range.
        """
        given = (guidance_scale, cfg_interval, temperature, top_k, top_p)
        law: dict[str, Any] = dict(zip(LAW, given, strict=True))
        recipe = self.preset.choose(preset)
        chosen = request.method(method, recipe, law, settings)
        batch = request.whole(batch_size, "batch size", least=1)
        size = request.image_size(image_size, recipe)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"got output type {output_type!r}, expected pil, np, pt or latent")
        clock = generate.Clock(self.transformer.device)
        inputs = self._inputs(class_labels, prompt, (prompt_embeds, prompt_attention_mask), num_images_per_prompt)
        clock.lap("text")
        seeds = request.seeds(len(inputs[0]), seed, generator)
        spec, parts = self.transformer.spec, []
        with tqdm(total=len(seeds) * spec.slots, unit="token", **self._bar()) as bar:
            for start in range(0, len(seeds), batch):
                final, some = None, slice(start, start + batch)
                for final in self._decode(chosen, tuple(part[some] for part in inputs), seeds[some], size):
                    bar.update(start * spec.slots + sum(final.settled) - bar.n)
                assert final is not None
                parts.append(self._finish(final, output_type))
        tokens = torch.cat([part.tokens for part in parts]).unflatten(1, (spec.rows, spec.columns))
        trace = Trace.merge([part.trace for part in parts])
        if prompt is not None:
            trace.seconds |= clock.seconds()
            trace.seconds["total"] += trace.seconds["text"]
        return Generation(_join([part.images for part in parts], output_type), tokens, trace)

    def stream(
        self,
        class_labels: Any = None,
        *,
        prompt: Any = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        method: str = DEFAULT_METHOD,
        preset: str | None = None,
        num_images_per_prompt: int = 1,
        image_size: int | None = None,
        seed: Any = None,
        generator: Any = None,
        **options: Any,
    ) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each forward; stop iterating to cancel.

        `options` are the law (guidance_scale, cfg_interval, temperature, top_k, top_p) and the method's settings.
        """
        law = {name: options.pop(name, None) for name in LAW}
        recipe = self.preset.choose(preset)
        chosen, size = request.method(method, recipe, law, options), request.image_size(image_size, recipe)
        inputs = self._inputs(class_labels, prompt, (prompt_embeds, prompt_attention_mask), num_images_per_prompt)
        return self._decode(chosen, inputs, request.seeds(len(inputs[0]), seed, generator), size)

    def encode_prompt(self, prompt: Sequence[str] | str) -> tuple[Tensor, Tensor]:
        """Text states (B, T, C) and the mask (B, T) of the words in them, for `prompt_embeds` and its mask."""
        if self.text_encoder is None:
            raise ValueError(f"{self.preset.name} has no text encoder here: it was released or never loaded")
        tokens = self.transformer.config.condition_tokens
        return t5.encode(request.prompts(prompt), self.text_encoder, self.text_tokenizer, tokens)

    def release_text_encoder(self) -> None:
        """Give the text encoder's memory back; from now on the pipeline takes `prompt_embeds` only."""
        self.register_modules(text_encoder=None, text_tokenizer=None)
        gc.collect()
        if self.transformer.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def decode(self, tokens: Tensor, output_type: str, image_size: int | None = None) -> Any:
        """Images of tokens (B, slots), resized to `image_size` pixels a side if it is given."""
        spec = self.transformer.spec
        images = self.tokenizer.decode(tokens.unflatten(1, (spec.rows, spec.columns))).float()
        if image_size is not None and images.shape[-2:] != (image_size, image_size):
            images = F.interpolate(images, size=(image_size, image_size), mode="bicubic")  # before rounding: published
        return self._processor.postprocess(images, output_type=output_type)

    def _bar(self) -> dict[str, Any]:
        return {"leave": False, "disable": None, **getattr(self, "_progress_bar_config", {})}

    def _inputs(self, classes: Any, prompt: Any, encoded: tuple[Any, Any], each: Any) -> tuple[Tensor, ...]:
        """What is drawn, a row per image: labels (B,), or text states (B, T, C) and their mask (B, T)."""
        name, spec = self.preset.name, self.transformer.spec
        each = request.whole(each, "number of images", least=1)
        texts = [value is not None for value in (prompt, *encoded)]
        if spec.classes:
            if any(texts):
                raise ValueError(f"{name} draws classes and takes no prompt: give a class")
            if classes is None:
                raise ValueError(f"{name} draws classes: give at least one")
            labels = request.labels(classes, each, self.class_names, spec.classes)
            return (torch.tensor(labels, device=self.transformer.device),)
        if classes is not None:
            raise ValueError(f"{name} draws what a prompt says and takes no class: give a prompt")
        if any(texts[1:]) == texts[0]:
            raise ValueError(f"{name} draws what a prompt says: give either a prompt or prompt_embeds with its mask")
        shapes = self.transformer.config
        found = self.encode_prompt(prompt) if texts[0] else encoded
        states, mask = request.text_states(*found, shapes.condition_tokens, shapes.caption_width)
        return tuple(part.to(self.transformer.device).repeat_interleave(each, dim=0) for part in (states, mask))

    @torch.inference_mode()
    def _decode(
        self, method: Method, inputs: tuple[Tensor, ...], seeds: list[int], image_size: int | None
    ) -> Iterator[Partial]:
        model, device = self.transformer, self.transformer.device
        trace = Trace(self.preset.name, method.name, len(seeds), seeds=seeds, settings=method.described)
        reset_peak_memory(device)
        clock, counts = generate.Clock(device), generate.Counts()
        condition = embed(model, inputs, guided=method.guidance.active)
        task = Task(model.spec, torch.tensor(seeds, device=device), method.warp, codebook=self._codebook())
        if drafting := drafter_for(self, method, inputs):
            trace.settings["drafter"], drafter = drafting
            task, model = replace(task, drafter=drafter), drafter.watch(model)
        if getattr(method.settings, "window", None) == "auto":
            task = replace(task, costs=self._step_costs(method, condition, task))
            clock.lap("calibration")
        sampler: RasterSampler = method.sampler(method.settings, task)
        for _ in generate.raster(model, condition, sampler, method.guidance, clock, counts):
            yield Partial(sampler.tokens, sampler.settled, counts.forwards, trace, self, image_size)
        slots = model.spec.slots
        trace.forwards, trace.windows = counts.forwards, counts.widths
        if task.drafter is not None:
            trace.drafter_forwards = task.drafter.forwards
            trace.drafts, trace.drafts_kept = getattr(sampler, "drafts", 0), getattr(sampler, "drafts_kept", 0)
        trace.forwards_per_image = sum(counts.per_image) / len(counts.per_image)
        trace.tokens_per_forward = sum(slots / n for n in counts.per_image) / len(counts.per_image)
        trace.seconds, trace.versions = clock.seconds(), versions(device)

    def _codebook(self) -> Tensor | None:
        """The image tokenizer's codes (V, D), as it uses them."""
        quantizer = getattr(self.tokenizer, "quantize", None)
        return None if quantizer is None else quantizer.codebook().to(self.transformer.device)

    def _step_costs(self, method: Method, condition: Any, task: Task) -> dict[int, float]:
        """Seconds per step by width, measured once for this model, device, batch and method."""
        model, warp = self.transformer, method.warp
        law = (method.guidance.active, method.guidance.interval, warp.top_k > 0, warp.top_p < 1)
        key = (method.sampler, method.settings, str(model.device), model.dtype, task.batch, law)
        if key not in self._costs:

            def fixed(width: int) -> RasterSampler:
                return method.sampler(replace(method.settings, window=width), task)

            self._costs[key] = generate.step_costs(model, condition, fixed, method.guidance, LADDER)
        return self._costs[key]

    def _finish(self, final: Partial, output_type: str) -> Generation:
        trace, clock = final.trace, generate.Clock(self.transformer.device)
        images = final.tokens if output_type == "latent" else self.decode(final.tokens, output_type, final.image_size)
        clock.lap("decode")
        seconds = trace.seconds | clock.seconds()
        trace.seconds = {**seconds, "total": sum(seconds.values())}
        trace.peak_memory_bytes = peak_memory(self.transformer.device)
        return Generation(images, final.tokens, trace)


def _join(images: list[Any], output_type: str) -> Any:
    if output_type == "pil":
        return [image for part in images for image in part]
    tensors = [torch.as_tensor(part) for part in images]
    return torch.cat(tensors).numpy() if output_type == "np" else torch.cat(tensors)
