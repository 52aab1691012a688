"""What a user touches: `vargen.load(name)` gives a diffusers pipeline that draws, or streams, images."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn
from tqdm import tqdm

from vargen import generate, registry
from vargen.core import Generation, Trace, peak_memory, versions
from vargen.guidance import Guidance
from vargen.models import pocket
from vargen.samplers.contract import RasterSampler, Task
from vargen.samplers.warp import Warp
from vargen.samplers.width import LADDER

DEFAULT_METHOD = "sjd-coupled"


@dataclass(frozen=True)
class Recipe:
    """How a model is sampled unless the caller says otherwise."""

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Partial:
    """A batch in the making: row b of `tokens` (B, slots) is final up to `settled[b]`."""

    tokens: Tensor
    settled: list[int]
    forwards: int
    pipeline: "RasterPipeline"

    def images(self) -> list[Any]:
        """The pictures so far, as PIL images: unsettled tokens are shown as their drafts."""
        return self.pipeline.decode(self.tokens, "pil")


@dataclass
class Run:
    """One call's inputs, checked."""

    labels: Tensor  # (B,)
    seeds: list[int]
    method: str
    sampler: type
    settings: Any
    warp: Warp
    guidance: Guidance
    trace: Trace = field(default_factory=Trace)


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
        """The same as `vargen.load`."""
        return load(pretrained_model_name_or_path, **kwargs)

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
        `output_type` is pil, np (B, H, W, 3) or pt (B, 3, H, W), both in [0, 1], or latent (tokens alone).
        ValueError in one sentence for anything out of range.
        """
        labels = self._labels(class_labels, prompt, num_images_per_prompt)
        seeds = _seeds(len(labels), seed, generator)
        if batch_size < 1:
            raise ValueError(f"got batch size {batch_size}, expected at least 1")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"got output type {output_type!r}, expected pil, np, pt or latent")
        law = {
            "guidance_scale": guidance_scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        parts = [slice(i, i + batch_size) for i in range(0, len(labels), batch_size)]
        runs = [self._run(labels[p], seeds[p], method, law, settings) for p in parts]
        spec, tokens, images = self.transformer.spec, [], []
        with tqdm(total=len(labels) * spec.slots, unit="token", **self._bar()) as bar:
            for run in runs:
                before, final = bar.n, None
                for final in self._decode(run):
                    bar.update(before + sum(final.settled) - bar.n)
                assert final is not None
                images.append(self._finish(run, final.tokens, output_type))
                tokens.append(final.tokens)
        ids = torch.cat(tokens).unflatten(1, (spec.rows, spec.columns))
        return Generation(_join(images, output_type), ids, Trace.merge([run.trace for run in runs]))

    @torch.inference_mode()
    def stream(self, class_labels: Any = None, **options: Any) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each forward; stop iterating to cancel."""
        count = options.pop("num_images_per_prompt", 1)
        labels = self._labels(class_labels, options.pop("prompt", None), count)
        seeds = _seeds(len(labels), options.pop("seed", None), options.pop("generator", None))
        law = {name: options.pop(name, None) for name in asdict(self.recipe)}
        yield from self._decode(self._run(labels, seeds, options.pop("method", DEFAULT_METHOD), law, options))

    def decode(self, tokens: Tensor, output_type: str) -> Any:
        """Images of tokens (B, slots)."""
        spec = self.transformer.spec
        images = self.tokenizer.decode(tokens.unflatten(1, (spec.rows, spec.columns)))
        return self._processor.postprocess(images.float(), output_type=output_type)

    def label(self, value: int | str) -> int:
        """The index of a class given by index or name. ValueError lists the names."""
        count = self.transformer.spec.classes
        if isinstance(value, str) and not value.lstrip("-").isdigit():
            if value not in self.class_names:
                raise ValueError(f"unknown class {value!r}; there are {', '.join(self.class_names) or 'no names'}")
            return self.class_names.index(value)
        index = int(value)
        if not 0 <= index < count:
            raise ValueError(f"got class {index}, expected 0 to {count - 1}")
        return index

    def _bar(self) -> dict[str, Any]:
        return {"leave": False, "disable": None, **getattr(self, "_progress_bar_config", {})}

    def _labels(self, values: Any, prompt: Any, each: int) -> list[int]:
        if prompt is not None:
            raise ValueError(f"{self.name} draws classes and takes no prompt: give a class")
        if values is None:
            raise ValueError(f"{self.name} draws classes: give at least one")
        if each < 1:
            raise ValueError(f"got {each} images, expected at least 1")
        many = [values] if isinstance(values, int | str) else list(values)
        if not many:
            raise ValueError("got no class labels, expected at least one")
        return [label for label in map(self.label, many) for _ in range(each)]

    def _run(
        self, labels: list[int], seeds: list[int], method: str, law: dict[str, Any], settings: dict[str, Any]
    ) -> Run:
        sampler, chosen = registry.method(method, **settings)
        law = asdict(self.recipe) | {key: value for key, value in law.items() if value is not None}
        scale = law.pop("guidance_scale")
        warp, guidance = Warp(**law), Guidance(scale)
        used = {"guidance_scale": scale, **law, **asdict(chosen)}
        trace = Trace(model=self.name, method=method, images=len(labels), seeds=seeds, settings=used)
        device = self.transformer.device
        return Run(torch.tensor(labels, device=device), seeds, method, sampler, chosen, warp, guidance, trace)

    def _decode(self, run: Run) -> Iterator[Partial]:
        model, device = self.transformer, self.transformer.device
        clock, counts = generate.Clock(device), generate.Counts()
        condition = model.class_condition(run.labels, guided=run.guidance.active)
        seeds = torch.tensor(run.seeds, device=device)
        costs = self._step_costs(run, seeds) if getattr(run.settings, "window", None) == "auto" else None
        clock.lap("calibration" if costs else "model")
        sampler: RasterSampler = run.sampler(run.settings, Task(model.spec, seeds, run.warp, costs))
        for _ in generate.raster(model, condition, sampler, run.guidance, clock, counts):
            yield Partial(sampler.tokens, sampler.settled, counts.forwards, self)
        trace, slots = run.trace, model.spec.slots
        trace.forwards, trace.windows = counts.forwards, counts.widths
        trace.forwards_per_image = sum(counts.per_image) / len(counts.per_image)
        trace.tokens_per_forward = sum(slots / n for n in counts.per_image) / len(counts.per_image)
        trace.seconds = clock.seconds()
        trace.versions = versions(device)

    def _step_costs(self, run: Run, seeds: Tensor) -> dict[int, float]:
        """Seconds per step by width, measured once for this model, device, batch and law."""
        model = self.transformer
        law = (run.guidance.active, run.warp.top_k > 0, run.warp.top_p < 1)
        key = (run.sampler, str(model.device), model.dtype, len(seeds), law, torch.get_num_threads())
        if key not in self._costs:
            task = Task(model.spec, seeds, run.warp)
            condition = model.class_condition(run.labels, guided=run.guidance.active)

            def fixed(width: int) -> RasterSampler:
                return run.sampler(type(run.settings)(**{**asdict(run.settings), "window": width}), task)

            widths = [w for w in LADDER if w == 1 or w <= model.spec.slots]
            self._costs[key] = generate.step_costs(model, condition, fixed, run.guidance, widths)
        return self._costs[key]

    def _finish(self, run: Run, tokens: Tensor, output_type: str) -> Any:
        clock = generate.Clock(self.transformer.device)
        images = tokens if output_type == "latent" else self.decode(tokens, output_type)
        clock.lap("decode")
        seconds = run.trace.seconds | clock.seconds()
        run.trace.seconds = {**seconds, "total": sum(seconds.values())}
        run.trace.peak_memory_bytes = peak_memory(self.transformer.device)
        return images


def _seeds(count: int, seed: Any, generator: Any) -> list[int]:
    """One seed per image, as int64."""
    if generator is not None:
        if seed is not None:
            raise ValueError("got both seed and generator, expected one of them")
        seed = (
            generator.initial_seed()
            if isinstance(generator, torch.Generator)
            else [g.initial_seed() for g in generator]
        )
    if seed is None:
        seed = secrets.randbits(32)
    seeds = [seed + i for i in range(count)] if isinstance(seed, int) else [int(s) for s in seed]
    if len(seeds) != count:
        raise ValueError(f"got {len(seeds)} seeds for {count} images, expected one each")
    return [(s + (1 << 63)) % (1 << 64) - (1 << 63) for s in seeds]


def _join(images: list[Any], output_type: str) -> Any:
    if output_type == "pil":
        return [image for part in images for image in part]
    tensors = [torch.as_tensor(part) for part in images]
    return torch.cat(tensors).numpy() if output_type == "np" else torch.cat(tensors)


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
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch finds no CUDA device")
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
    """LlamaGen at 0.8 M parameters on pocket scenes, 64x64; the drafter of pocket-llamagen."""
    return pocket_pipeline("pocket-llamagen-small", checkpoint)
