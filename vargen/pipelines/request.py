"""A call's arguments, checked: one clear sentence for anything that is out of range, before any work is done."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vargen.core import registry
from vargen.core.messages import quoted
from vargen.core.preset import LAW, Preset, Recipe
from vargen.core.specs import ContinuousSpec, RasterSpec, ScaleSpec
from vargen.core.warp import Warp
from vargen.engine.clock import Clock
from vargen.engine.guidance import Guidance, Ramp
from vargen.pipelines import values
from vargen.samplers.contract import ContinuousSampler, RasterSampler, ScaleSampler

PICTURES = ("pil", "np", "pt")  # output types that show something


@dataclass(frozen=True)
class Method:
    """A method with its settings, and the law that it is to draw from."""

    name: str  # as given, settings included
    sampler: type[RasterSampler]
    settings: Any
    warp: Warp
    guidance: Guidance
    drawn: dict[str, Any] = field(default_factory=dict)  # for the trace, see `pipelines/drawn.py`

    @property
    def described(self) -> dict[str, Any]:
        """Every setting by name."""
        named = ("temperature", "top_k", "top_p", *(["top_n_sigma"] if self.warp.top_n_sigma else []))
        warp = {key: getattr(self.warp, key) for key in named}
        guidance = {"guidance_scale": self.guidance.scale, "cfg_interval": self.guidance.interval}
        return {**guidance, **warp, **asdict(self.settings)}


@dataclass(frozen=True)
class ScaleMethod:
    """The same for a next-scale model, whose law may differ from scale to scale."""

    name: str
    sampler: type[ScaleSampler]
    settings: Any
    warps: tuple[Warp, ...]
    guidance: Ramp
    drawn: dict[str, Any] = field(default_factory=dict)  # for the trace, see `pipelines/drawn.py`

    @property
    def described(self) -> dict[str, Any]:
        """Every setting by name; one value where it is the same for all scales."""
        warps = {key: [getattr(warp, key) for warp in self.warps] for key in ("temperature", "top_k", "top_p")}
        law = {key: values[0] if len(set(values)) == 1 else values for key, values in warps.items()}
        guidance = {"guidance_scale": self.guidance.scale, "cfg_interval": self.guidance.interval}
        return {**guidance, **law, **asdict(self.settings)}


@dataclass(frozen=True)
class LatentMethod:
    """The same for a continuous model, whose law is its head's."""

    name: str
    sampler: type[ContinuousSampler]
    settings: Any
    guidance: float  # 1 is off
    temperature: float
    drawn: dict[str, Any] = field(default_factory=dict)  # for the trace, see `pipelines/drawn.py`

    @property
    def described(self) -> dict[str, Any]:
        """Every setting by name."""
        return {"guidance_scale": self.guidance, "temperature": self.temperature, **asdict(self.settings)}


@dataclass(frozen=True)
class Request:
    """What a call asks for, checked and ready to be drawn."""

    method: Any  # one of the above
    inputs: tuple[Tensor, ...]  # a row per image: labels, or prompts as the model takes them, and what else it is given
    seeds: list[int]
    batch_size: int
    image_size: int | None  # pixels a side to resize to
    output_type: str
    clock: Clock  # what was spent so far
    tell: Callable[[Any, int, Any], None]  # called with the pipeline, a step's number and its `Partial`
    free_size: bool = False  # whether the model chooses each image's size


def teller(callback: Any, names: Any) -> Callable[[Any, int, Any], None]:
    """What calls diffusers' `callback_on_step_end` behind a step, with the tensors that it names."""
    known = ("tokens", "settled")
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(name in known for name in map(str, names)):
        raise ValueError(
            f"got callback_on_step_end_tensor_inputs {quoted(names)}, expected a list of {' and '.join(known)}"
        )
    if callback is not None and not callable(callback):
        raise ValueError(f"got callback_on_step_end {quoted(callback)}, expected a function")

    def tell(pipe: Any, step: int, partial: Any) -> None:
        if callback is not None:
            told = {"tokens": partial.tokens.clone(), "settled": torch.tensor(partial.settled)}
            callback(pipe, step, sum(partial.settled), {name: told[name] for name in names})

    return tell


def subjects(pipe: Any, wanted: Any) -> tuple[Tensor, ...]:
    """What is drawn, a row per image: labels (B,), or a prompt as the model takes it and its mask."""
    name, spec, device = pipe.preset.name, pipe.transformer.spec, pipe.transformer.device
    each = values.whole(wanted.num_images_per_prompt, "number of images", least=1, most=values.MOST_IMAGES)
    texts = [value is not None for value in (wanted.prompt, *wanted.encoded)]
    if spec.classes:
        if any(texts):
            raise ValueError(f"{name} draws classes and takes no prompt: give a class")
        if wanted.negative_prompt is not None:
            raise ValueError(f"{name} draws classes and takes no negative_prompt")
        if wanted.class_labels is None:
            raise ValueError(f"{name} draws classes: give at least one{', or -1 for any' * pipe.unconditional}")
        found = values.labels(
            wanted.class_labels, each, pipe.class_names, spec.classes, unconditional=pipe.unconditional
        )
        return (torch.tensor(found, device=device),)
    if wanted.class_labels is not None:
        raise ValueError(f"{name} draws what a prompt says and takes no class: give a prompt")
    if any(texts[1:]) == texts[0]:
        raise ValueError(f"{name} draws what a prompt says: give either a prompt or prompt_embeds with its mask")
    if wanted.negative_prompt is not None and not texts[0]:
        raise ValueError("got a negative_prompt and no prompt: prompt_embeds hold what guidance is against")
    read = pipe._read(wanted) if texts[0] else wanted.encoded
    parts = pipe._checked(*read)
    return tuple(part.to(device).repeat_interleave(each, dim=0) for part in parts)


def are_texts(given: Any) -> bool:
    """Whether it is a sequence of texts and of nothing else."""
    return isinstance(given, Sequence) and len(given) > 0 and all(isinstance(one, str) for one in given)


def negatives(given: Any, count: int) -> dict[int, str]:
    """Negative prompts for so many prompts, from one for all or one for each, by the number of the prompt.

    None and a text without a word say nothing: guidance is then against what the model learned it against.
    """
    texts = [""] if given is None else values.prompts(given, "negative_prompt")
    if len(texts) not in (1, count):
        raise ValueError(f"got {len(texts)} negative prompts for {count} prompts, expected one, or one each")
    return {i: text for i, text in enumerate(texts * (count // len(texts))) if text.strip()}


def asked(
    name: str,
    recipe: Recipe,
    law: dict[str, Any],
    settings: dict[str, Any],
    spec: RasterSpec | ScaleSpec | ContinuousSpec | None,
) -> Method | ScaleMethod | LatentMethod:
    """`name` with `settings` for a model of layout `spec`; None: any raster model."""
    if isinstance(spec, ContinuousSpec):
        return latent_method(name, recipe, law, settings, spec)
    if isinstance(spec, ScaleSpec):
        return scale_method(name, recipe, law, settings, spec)
    made = method(name, recipe, law, settings)
    if spec is not None:
        made.sampler.check(made.settings, spec)
    return made


def _sampler(
    name: str, settings: dict[str, Any], kind: str, recipe: Recipe, plan: str | None = None
) -> tuple[Any, Any]:
    """A sampler for models of a kind (and plan), and its settings."""
    sampler, chosen = registry.method(name, recipe.settings, **settings)
    if sampler.kind != kind or sampler.plan not in (None, plan):
        known, models = ", ".join(registry.methods(kind, plan)), f"{kind} models" + (f" ({plan})" if plan else "")
        raise ValueError(f"method {name} does not draw with {models}; those that do: {known}")
    return sampler, chosen


def latent_method(
    name: str, recipe: Recipe, law: dict[str, Any], settings: dict[str, Any], spec: ContinuousSpec
) -> LatentMethod:
    """As `method`, for a continuous model, of whose law only guidance and temperature are set from outside."""
    for key in LAW:
        if law.get(key) is not None and key not in ("guidance_scale", "temperature"):
            raise ValueError(f"got {key} {quoted(law[key])}: continuous tokens have none")
    sampler, chosen = _sampler(name, settings, spec.kind, recipe, spec.plan)
    used = _used(recipe, law)
    guidance = values.number(used["guidance_scale"], "guidance scale")
    temperature = values.number(used["temperature"], "temperature")
    if not 0 <= guidance <= 1000:
        raise ValueError(f"got guidance scale {guidance}, expected a number from 0 to 1000 (off up to 1)")
    sampler.check(chosen, spec, temperature)
    return LatentMethod(name, sampler, chosen, max(1.0, guidance), temperature)


def _used(recipe: Recipe, law: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(recipe, key) if law.get(key) is None else law[key] for key in LAW}


def scale_method(
    name: str, recipe: Recipe, law: dict[str, Any], settings: dict[str, Any], spec: ScaleSpec
) -> ScaleMethod:
    """As `method`, for a next-scale model. temperature, top_k and top_p may be lists, with a value for each scale."""
    sampler, chosen = _sampler(name, settings, spec.kind, recipe)
    used, scales = _used(recipe, law), len(spec.sides)
    temperatures = values.per_scale(used["temperature"], "temperature", values.number, scales)
    top_ks = values.per_scale(used["top_k"], "top-k", values.whole, scales)
    top_ps = values.per_scale(used["top_p"], "top-p", values.number, scales)
    warps = tuple(Warp(*each, temperature_last=True) for each in zip(temperatures, top_ks, top_ps, strict=True))
    interval = values.whole(used["cfg_interval"], "cfg interval")
    ramp = Ramp(values.number(used["guidance_scale"], "guidance scale"), scales, interval)
    sampler.check(chosen, spec)
    return ScaleMethod(name, sampler, chosen, warps, ramp)


def method(name: str, recipe: Recipe, law: dict[str, Any], settings: dict[str, Any]) -> Method:
    """`name` with `settings`, under `recipe` where `law` (the fields `LAW` of a recipe) has None."""
    sampler, chosen = _sampler(name, settings, "raster", recipe)
    used = _used(recipe, law)
    temperature, top_p = values.number(used["temperature"], "temperature"), values.number(used["top_p"], "top-p")
    warp = Warp(temperature, values.whole(used["top_k"], "top-k"), top_p, top_n_sigma=recipe.top_n_sigma)
    interval = values.whole(used["cfg_interval"], "cfg interval")
    return Method(
        name, sampler, chosen, warp, Guidance(values.number(used["guidance_scale"], "guidance scale"), interval)
    )


def named(method: Any, preset: Preset) -> str:
    """The method that is asked for, or else the preset's, with its settings. ValueError where it is no text."""
    if method is not None and not isinstance(method, str):
        raise ValueError(f"got method {quoted(method)}, expected a name such as sjd-coupled:window=16")
    return preset.method if method is None else method


def output(recipe: Recipe, batch_size: Any, size: Any, kind: Any) -> dict[str, Any]:
    """How images are drawn and given out: `batch_size`, `image_size` and `output_type`, checked."""
    batch = values.whole(batch_size, "batch size", least=1)
    output_type(kind, (*PICTURES, "latent"))
    return {"batch_size": batch, "image_size": image_size(size, recipe.image_size), "output_type": kind}


def output_type(kind: Any, known: Sequence[str]) -> None:
    """ValueError where it is none of the output types that are known."""
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"got output type {quoted(kind)}, expected {', '.join(known[:-1])} or {known[-1]}")


def image_size(value: Any, usual: int | None = None, *, most: int = 8192) -> int | None:
    """Pixels a side to resize to, from the argument or else as usual; None: as decoded."""
    return usual if value is None else values.whole(value, "image size", least=1, most=most)
