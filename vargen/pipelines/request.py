"""A call's arguments, checked: one clear sentence for anything that is out of range, before any work is done."""

import operator
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from vargen.core import registry
from vargen.core.preset import LAW, Recipe
from vargen.core.specs import ContinuousSpec, RasterSpec, ScaleSpec
from vargen.core.warp import Warp
from vargen.engine.guidance import Guidance, Ramp


@dataclass(frozen=True)
class Method:
    """A method with its settings, and the law that it is to draw from."""

    name: str  # as given, settings included
    sampler: type
    settings: Any
    warp: Warp
    guidance: Guidance

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
    sampler: type
    settings: Any
    warps: tuple[Warp, ...]
    guidance: Ramp

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
    sampler: type
    settings: Any
    guidance: float  # 1 is off
    temperature: float

    @property
    def described(self) -> dict[str, Any]:
        """Every setting by name."""
        return {"guidance_scale": self.guidance, "temperature": self.temperature, **asdict(self.settings)}


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
    return method(name, recipe, law, settings)


def _sampler(
    name: str, settings: dict[str, Any], kind: str, recipe: Recipe, plan: str | None = None
) -> tuple[type, Any]:
    """A sampler for models of a kind (and plan), and its settings."""
    if not isinstance(name, str):
        raise ValueError(f"got method {name!r}, expected a name such as sjd-coupled:window=16")
    sampler, chosen = registry.method(name, recipe.settings, **settings)
    if registry.kind(sampler) != kind or getattr(sampler, "plan", None) not in (None, plan):
        known, models = ", ".join(registry.methods(kind, plan)), f"{kind} models" + (f" ({plan})" if plan else "")
        raise ValueError(f"method {name} does not draw with {models}; those that do: {known}")
    return sampler, chosen


def latent_method(
    name: str, recipe: Recipe, law: dict[str, Any], settings: dict[str, Any], spec: ContinuousSpec
) -> LatentMethod:
    """As `method`, for a continuous model, of whose law only guidance and temperature are set from outside."""
    for key in LAW:
        if law.get(key) is not None and key not in ("guidance_scale", "temperature"):
            raise ValueError(f"got {key} {law[key]!r}: continuous tokens have none")
    sampler, chosen = _sampler(name, settings, spec.kind, recipe, spec.plan)
    for key in ("guidance_high",) if spec.plan == "masked" else ("iterations", "solver", "highest"):
        if getattr(chosen, key, None) != getattr(sampler.Settings, key, None):
            raise ValueError(f"got {key} {getattr(chosen, key)} for a model that draws {spec.plan} and has none")
    used = _used(recipe, law)
    guidance, temperature = number(used["guidance_scale"], "guidance scale"), number(used["temperature"], "temperature")
    if not 0 <= guidance <= 1000:
        raise ValueError(f"got guidance scale {guidance}, expected a number from 0 to 1000 (off up to 1)")
    if not getattr(sampler, "least_temperature", 0.0) <= temperature < float("inf"):
        raise ValueError(f"got temperature {temperature}, expected {getattr(sampler, 'least_temperature', 0)} or more")
    solver = getattr(chosen, "solver", "ddpm") if spec.plan == "masked" else "a flow"
    if temperature != 1 and solver != "ddpm":
        raise ValueError(f"got temperature {temperature}, but {solver} has none: expected 1")
    if spec.plan == "masked" and chosen.iterations > spec.slots:
        raise ValueError(f"got {chosen.iterations} iterations for an image of {spec.slots} tokens, expected no more")
    return LatentMethod(name, sampler, chosen, max(1.0, guidance), temperature)


def _used(recipe: Recipe, law: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(recipe, key) if law.get(key) is None else law[key] for key in LAW}


def scale_method(
    name: str, recipe: Recipe, law: dict[str, Any], settings: dict[str, Any], spec: ScaleSpec
) -> ScaleMethod:
    """As `method`, for a next-scale model. temperature, top_k and top_p may be lists, with a value for each scale."""
    sampler, chosen = _sampler(name, settings, spec.kind, recipe)
    used, scales = _used(recipe, law), len(spec.sides)
    temperatures = per_scale(used["temperature"], "temperature", number, scales)
    top_ks = per_scale(used["top_k"], "top-k", whole, scales)
    top_ps = per_scale(used["top_p"], "top-p", number, scales)
    warps = tuple(Warp(*each, temperature_last=True) for each in zip(temperatures, top_ks, top_ps, strict=True))
    interval = whole(used["cfg_interval"], "cfg interval")
    ramp = Ramp(number(used["guidance_scale"], "guidance scale"), scales, interval)
    if getattr(chosen, "scales", 0) > scales:
        raise ValueError(f"got scales {chosen.scales}, but an image has {scales}")
    return ScaleMethod(name, sampler, chosen, warps, ramp)


def per_scale(value: Any, name: str, convert: Callable[[Any, str], Any], scales: int) -> list[Any]:
    """A value for each of so many scales, from one for all or from a list. ValueError where it has another length."""
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [convert(value, name)] * scales
    if len(value) != scales:
        raise ValueError(f"got {len(value)} values of {name} for {scales} scales, expected one, or one each")
    return [convert(each, name) for each in value]


def method(name: str, recipe: Recipe, law: dict[str, Any], settings: dict[str, Any]) -> Method:
    """`name` with `settings`, under `recipe` where `law` (the fields `LAW` of a recipe) has None."""
    sampler, chosen = _sampler(name, settings, "raster", recipe)
    used = _used(recipe, law)
    temperature, top_p = number(used["temperature"], "temperature"), number(used["top_p"], "top-p")
    warp = Warp(temperature, whole(used["top_k"], "top-k"), top_p, top_n_sigma=recipe.top_n_sigma)
    interval = whole(used["cfg_interval"], "cfg interval")
    return Method(name, sampler, chosen, warp, Guidance(number(used["guidance_scale"], "guidance scale"), interval))


def whole(value: Any, name: str, *, least: int | None = None) -> int:
    """`value` as an int. ValueError where it is no whole number or below `least`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise ValueError(f"got {name} {value!r}, expected a whole number") from None
    if least is not None and found < least:
        raise ValueError(f"got {name} {found}, expected at least {least}")
    return found


def output(recipe: Recipe, batch_size: Any, size: Any, kind: Any) -> dict[str, Any]:
    """How images are drawn and given out: `batch_size`, `image_size` and `output_type`, checked."""
    if kind not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"got output type {kind!r}, expected pil, np, pt or latent")
    batch = whole(batch_size, "batch size", least=1)
    return {"batch_size": batch, "image_size": image_size(size, recipe), "output_type": kind}


def image_size(value: Any, recipe: Recipe, *, most: int = 8192) -> int | None:
    """Pixels a side to resize to, from the argument or else the recipe; None: as decoded."""
    if value is None:
        return recipe.image_size
    if whole(value, "image size", least=1) > most:
        raise ValueError(f"got image size {value}, expected at most {most}")
    return int(value)


def number(value: Any, name: str) -> float:
    """`value` as a float. ValueError where it is no number."""
    if isinstance(value, bool | str):
        raise ValueError(f"got {name} {value!r}, expected a number")
    try:
        return float(value)
    except (TypeError, OverflowError):
        raise ValueError(f"got {name} {value!r}, expected a number") from None


def seeds(count: int, seed: Any, generator: Any) -> list[int]:
    """One seed per image, as int64: from a first seed, a list of seeds, generators, or drawn afresh."""
    if generator is not None:
        if seed is not None:
            raise ValueError("got both seed and generator, expected one of them")
        many = [generator] if isinstance(generator, torch.Generator) else generator
        if not isinstance(many, Sequence) or not all(isinstance(g, torch.Generator) for g in many):
            raise ValueError(f"got generator {generator!r}, expected a torch.Generator or a list of them")
        seed = generator.initial_seed() if many is not generator else [g.initial_seed() for g in many]
    if seed is None:
        seed = secrets.randbits(32)
    if isinstance(seed, Sequence | np.ndarray | torch.Tensor) and not isinstance(seed, str):
        found = [whole(s, "seed") for s in seed]
    else:
        first = whole(seed, "seed")
        found = [first + i for i in range(count)]
    if len(found) != count:
        raise ValueError(f"got {len(found)} seeds for {count} images, expected one each")
    return [(s + (1 << 63)) % (1 << 64) - (1 << 63) for s in found]


def labels(values: Any, each: Any, names: Sequence[str], count: int, *, unconditional: bool = False) -> list[int]:
    """Class indices, `each` times over; `values` are indices or names, one or several.

    With `unconditional`, -1 is allowed and gives `count`, the row of the class table that stands for no class.
    """
    if isinstance(values, str | int | np.integer):
        values = [values]
    try:
        many = list(values)
    except TypeError:
        raise ValueError(f"got class labels {values!r}, expected indices or names") from None
    if not many:
        raise ValueError("got no class labels, expected at least one")
    each = whole(each, "number of images", least=1)
    least = -1 if unconditional else 0
    return [label(value, names, count, least) % (count + 1) for value in many for _ in range(each)]


def picture(value: Any, side: int, channels: int) -> Tensor:
    """A picture as (1, C, side, side) in [0, 1], from a PIL image or a tensor (C, H, W), or (H, W) where C is 1."""
    if isinstance(value, Image.Image):
        found = pil_to_tensor(value.convert("RGB" if channels == 3 else "L")) / 255
    elif isinstance(value, Tensor):
        found = value.float()[None] if value.dim() == 2 else value.float()
    else:
        raise ValueError(f"got a {type(value).__name__} for a picture, expected a PIL image or a tensor")
    if found.shape != (channels, side, side):
        raise ValueError(f"got a picture {tuple(found.shape)}, expected ({channels}, {side}, {side}): resize it first")
    if not (found.isfinite().all() and found.min() >= 0 and found.max() <= 1):
        raise ValueError("got a picture with values out of range, expected 0 to 1")
    return found[None]


def prompts(values: Any) -> list[str]:
    """One prompt or several, as a list."""
    found = [values] if isinstance(values, str) else list(values) if isinstance(values, Sequence) else []
    if not found or not all(isinstance(value, str) for value in found):
        raise ValueError(f"got prompt {values!r}, expected text or a list of texts")
    return found


def text_states(states: Any, mask: Any, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Encoded prompts (B, tokens, width) and the mask (B, tokens) of their words; one prompt may lack the B."""
    if not isinstance(states, Tensor) or not isinstance(mask, Tensor):
        raise ValueError("got prompt_embeds or prompt_attention_mask that is no tensor: pass both, from encode_prompt")
    if states.dim() == 2 and mask.dim() == 1:
        states, mask = states[None], mask[None]
    if states.shape[1:] != (tokens, width) or mask.shape != states.shape[:2] or not len(states):
        raise ValueError(
            f"got prompt_embeds {tuple(states.shape)} and mask {tuple(mask.shape)}, expected (B, {tokens}, {width}) "
            f"and (B, {tokens})"
        )
    if not states.is_floating_point() or not states.isfinite().all():
        raise ValueError("got prompt_embeds that are not all finite floating-point numbers")
    return states, mask


def label(value: Any, names: Sequence[str], count: int, least: int = 0) -> int:
    """The index of a class given by index or by name, in whatever case. ValueError lists the names most like it."""
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+", value):
        folded = [name.casefold() for name in names]
        if value.casefold() not in folded:
            raise ValueError(f"{registry.unknown('class', value, names)}, or an index from 0 to {count - 1}")
        return list(names).index(value) if value in names else folded.index(value.casefold())
    index = int(value) if isinstance(value, str) else whole(value, "class")
    if not least <= index < count:
        raise ValueError(f"got class {index}, expected {least} to {count - 1}")
    return index
