"""What a user touches: `vargen.load(name)` gives a diffusers pipeline that draws, or streams, images."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn
from tqdm import tqdm

from vargen import generate, registry, request
from vargen.core import Generation, Trace, peak_memory, reset_peak_memory, versions
from vargen.models import pocket
from vargen.request import Method, Recipe
from vargen.samplers.contract import RasterSampler, Task
from vargen.samplers.width import LADDER

DEFAULT_METHOD = "sjd-coupled"


@dataclass(frozen=True)
class Partial:
    """A batch in the making. `tokens` (B, slots) is a live view: row b is final up to `settled[b]`.

    `trace` is filled when the last image is done.
    """

    tokens: Tensor
    settled: list[int]
    forwards: int
    trace: Trace
    pipeline: "RasterPipeline"

    def images(self) -> list[Any]:
        """The pictures so far, as PIL images: unsettled tokens are shown as their drafts."""
        return self.pipeline.decode(self.tokens, "pil")


class RasterPipeline(DiffusionPipeline):
    """Draws images with a raster model; components `transformer` and `tokenizer` as in any diffusers pipeline."""

    def __init__(self, transformer: nn.Module, tokenizer: nn.Module) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, tokenizer=tokenizer)
        self.name, self.recipe = "custom", Recipe()
        self.class_names: tuple[str, ...] = ()
        self.nats_per_token: float | None = None  # cross-entropy on held-out images, where it is known
        self._costs: dict[Any, dict[int, float]] = {}
        self._processor = VaeImageProcessor()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The same as `vargen.load`; `torch_dtype` is another name of `dtype`, as in diffusers."""
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
        method: str = DEFAULT_METHOD,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 16,
        output_type: str = "pil",
        **settings: Any,
    ) -> Generation:
        """Draw `num_images_per_prompt` images of each class.

        `class_labels` are indices or names. Image i takes seed `seed + i`, or `seed[i]`; without a seed, or with
        `generator` (whose initial seed is used), the trace tells which seeds were taken. `method` is a name with
        settings, `sjd-coupled:window=16`; `settings` are the same by keyword. None takes the model's recipe.
        `output_type` is pil, np (B, H, W, 3) or pt (B, 3, H, W), both in [0, 1], or latent (tokens alone, (B, slots)).
        ValueError in one sentence for anything out of range.
        """
        law = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        chosen = request.method(method, self.recipe, law, settings)
        labels = self._labels(class_labels, prompt, num_images_per_prompt)
        seeds = request.seeds(len(labels), seed, generator)
        batch = request.whole(batch_size, "batch size", least=1)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"got output type {output_type!r}, expected pil, np, pt or latent")
        spec, parts = self.transformer.spec, []
        with tqdm(total=len(labels) * spec.slots, unit="token", **self._bar()) as bar:
            for start in range(0, len(labels), batch):
                final = None
                for final in self._decode(chosen, labels[start : start + batch], seeds[start : start + batch]):
                    bar.update(start * spec.slots + sum(final.settled) - bar.n)
                assert final is not None
                parts.append(self._finish(final, output_type))
        tokens = torch.cat([part.tokens for part in parts]).unflatten(1, (spec.rows, spec.columns))
        images = _join([part.images for part in parts], output_type)
        return Generation(images, tokens, Trace.merge([part.trace for part in parts]))

    def stream(
        self,
        class_labels: Any = None,
        *,
        prompt: Any = None,
        method: str = DEFAULT_METHOD,
        num_images_per_prompt: int = 1,
        seed: Any = None,
        generator: Any = None,
        **options: Any,
    ) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each forward; stop iterating to cancel.

        `options` are the law (guidance_scale, temperature, top_k, top_p) and the method's settings.
        """
        law = {name: options.pop(name, None) for name in asdict(self.recipe)}
        chosen = request.method(method, self.recipe, law, options)
        labels = self._labels(class_labels, prompt, num_images_per_prompt)
        return self._decode(chosen, labels, request.seeds(len(labels), seed, generator))

    @torch.inference_mode()
    def decode(self, tokens: Tensor, output_type: str) -> Any:
        """Images of tokens (B, slots)."""
        spec = self.transformer.spec
        images = self.tokenizer.decode(tokens.unflatten(1, (spec.rows, spec.columns)))
        return self._processor.postprocess(images.float(), output_type=output_type)

    def _bar(self) -> dict[str, Any]:
        return {"leave": False, "disable": None, **getattr(self, "_progress_bar_config", {})}

    def _labels(self, values: Any, prompt: Any, each: Any) -> list[int]:
        if prompt is not None:
            raise ValueError(f"{self.name} draws classes and takes no prompt: give a class")
        if values is None:
            raise ValueError(f"{self.name} draws classes: give at least one")
        return request.labels(values, each, self.class_names, self.transformer.spec.classes)

    @torch.inference_mode()
    def _decode(self, method: Method, labels: list[int], seeds: list[int]) -> Iterator[Partial]:
        model, device = self.transformer, self.transformer.device
        trace = Trace(self.name, method.name, len(labels), seeds=seeds, settings=method.described)
        reset_peak_memory(device)
        clock, counts = generate.Clock(device), generate.Counts()
        condition = model.class_condition(torch.tensor(labels, device=device), guided=method.guidance.active)
        task = Task(model.spec, torch.tensor(seeds, device=device), method.warp)
        if getattr(method.settings, "window", None) == "auto":
            task = replace(task, costs=self._step_costs(method, condition, task))
            clock.lap("calibration")
        sampler: RasterSampler = method.sampler(method.settings, task)
        for _ in generate.raster(model, condition, sampler, method.guidance, clock, counts):
            yield Partial(sampler.tokens, sampler.settled, counts.forwards, trace, self)
        slots = model.spec.slots
        trace.forwards, trace.windows = counts.forwards, counts.widths
        trace.forwards_per_image = sum(counts.per_image) / len(counts.per_image)
        trace.tokens_per_forward = sum(slots / n for n in counts.per_image) / len(counts.per_image)
        trace.seconds, trace.versions = clock.seconds(), versions(device)

    def _step_costs(self, method: Method, condition: Any, task: Task) -> dict[int, float]:
        """Seconds per step by width, measured once for this model, device, batch and method."""
        model, warp = self.transformer, method.warp
        law = (method.guidance.active, warp.top_k > 0, warp.top_p < 1)
        key = (method.sampler, method.settings, str(model.device), model.dtype, task.batch, law)
        if key not in self._costs:

            def fixed(width: int) -> RasterSampler:
                return method.sampler(replace(method.settings, window=width), task)

            self._costs[key] = generate.step_costs(model, condition, fixed, method.guidance, LADDER)
        return self._costs[key]

    def _finish(self, final: Partial, output_type: str) -> Generation:
        device, trace = self.transformer.device, final.trace
        clock = generate.Clock(device)
        images = final.tokens if output_type == "latent" else self.decode(final.tokens, output_type)
        clock.lap("decode")
        seconds = trace.seconds | clock.seconds()
        trace.seconds = {**seconds, "total": sum(seconds.values())}
        trace.peak_memory_bytes = peak_memory(device)
        return Generation(images, final.tokens, trace)


def _join(images: list[Any], output_type: str) -> Any:
    if output_type == "pil":
        return [image for part in images for image in part]
    tensors = [torch.as_tensor(part) for part in images]
    return torch.cat(tensors).numpy() if output_type == "np" else torch.cat(tensors)


def _device(name: str | torch.device | None) -> torch.device:
    """ValueError where there is no such device, or where it is neither CPU nor CUDA."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {str(name)!r}, expected cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name} was asked for, but torch finds {torch.cuda.device_count() or 'no'} CUDA device"
        )
    return device


def load(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
) -> RasterPipeline:
    """A pipeline by the model's name. ValueError lists the names, or names the file that does not load.

    `device` defaults to CUDA where there is one. `dtype` is the transformer's (default: float32 on a CPU, bfloat16 on
    CUDA); the image tokenizer stays in float32. `checkpoint` is a weights file to take instead of the published one.
    """
    where = _device(device)
    pipe = registry.find(registry.MODELS, name, "model")(Path(checkpoint) if checkpoint else None)
    pipe.transformer.to(where, dtype or (torch.float32 if where.type == "cpu" else torch.bfloat16))
    pipe.tokenizer.to(where)
    return pipe


def pocket_pipeline(name: str, checkpoint: Path | None = None) -> RasterPipeline:
    """The pipeline of a shipped model; `checkpoint` is another weights file, or a folder with all of them."""
    folder = checkpoint if checkpoint and checkpoint.is_dir() else None
    pipe = RasterPipeline(pocket.load(name, checkpoint), pocket.load("pocket-vq", folder))
    pipe.name, pipe.recipe, pipe.class_names = name, Recipe(guidance_scale=2.0), pocket.CLASSES
    pipe.nats_per_token = pocket.figures(name).get("nats_per_token") if checkpoint is None else None
    return pipe


def pocket_llamagen(checkpoint: Path | None) -> RasterPipeline:
    """LlamaGen at 3.9 M parameters on pocket scenes, 64x64."""
    return pocket_pipeline("pocket-llamagen", checkpoint)


def pocket_llamagen_small(checkpoint: Path | None) -> RasterPipeline:
    """LlamaGen at 0.8 M parameters on pocket scenes, 64x64: a drafter, less sure of its classes."""
    return pocket_pipeline("pocket-llamagen-small", checkpoint)
