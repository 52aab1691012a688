"""A call's arguments, checked: one clear sentence for anything that is out of range, before any work is done."""

import operator
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vargen import registry
from vargen.guidance import Guidance
from vargen.presets.contract import LAW, Recipe
from vargen.samplers.warp import Warp


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
        warp = {key: value for key, value in asdict(self.warp).items() if key != "allowed"}
        guidance = {"guidance_scale": self.guidance.scale, "cfg_interval": self.guidance.interval}
        return {**guidance, **warp, **asdict(self.settings)}


def method(name: str, recipe: Recipe, law: dict[str, Any], settings: dict[str, Any]) -> Method:
    """`name` with `settings`, under `recipe` where `law` (the fields `LAW` of a recipe) has None."""
    if not isinstance(name, str):
        raise ValueError(f"got method {name!r}, expected a name such as sjd-coupled:window=16")
    sampler, chosen = registry.method(name, **settings)
    used = {key: getattr(recipe, key) if law.get(key) is None else law[key] for key in LAW}
    temperature, top_p = number(used["temperature"], "temperature"), number(used["top_p"], "top-p")
    warp = Warp(temperature=temperature, top_k=whole(used["top_k"], "top-k"), top_p=top_p)
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


def labels(values: Any, each: Any, names: Sequence[str], count: int) -> list[int]:
    """Class indices, `each` times over; `values` are indices or names, one or several."""
    if isinstance(values, str | int | np.integer):
        values = [values]
    try:
        many = list(values)
    except TypeError:
        raise ValueError(f"got class labels {values!r}, expected indices or names") from None
    if not many:
        raise ValueError("got no class labels, expected at least one")
    each = whole(each, "number of images", least=1)
    return [label(value, names, count) for value in many for _ in range(each)]


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


def label(value: Any, names: Sequence[str], count: int) -> int:
    """The index of a class given by index or by name, in whatever case. ValueError lists the names most like it."""
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+", value):
        folded = [name.casefold() for name in names]
        if value.casefold() not in folded:
            raise ValueError(f"{registry.unknown('class', value, names)}, or an index from 0 to {count - 1}")
        return list(names).index(value) if value in names else folded.index(value.casefold())
    index = int(value) if isinstance(value, str) else whole(value, "class")
    if not 0 <= index < count:
        raise ValueError(f"got class {index}, expected 0 to {count - 1}")
    return index
