"""Single values of a call, checked: one clear sentence for anything that is out of range."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vargen.core import registry
from vargen.core.image_processor import as_mask, as_picture
from vargen.core.messages import quoted

Arrays = np.ndarray | Tensor
MOST_IMAGES = 1_000_000  # of a class or prompt in one call


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of transformers


def dtype(value: torch.dtype | str) -> torch.dtype:
    """A transformer's, or its name. ValueError where it is of no numbers that one is kept in."""
    found = DTYPES.get(value) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or found not in DTYPES.values():
        raise ValueError(f"got dtype {quoted(value)}, expected {', '.join(DTYPES)}, torch's or the name")
    return found


def per_scale(value: Any, name: str, convert: Callable[[Any, str], Any], scales: int) -> list[Any]:
    """A value for each of so many scales, from one for all or from a list. ValueError where it has another length."""
    if isinstance(value, Arrays):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [convert(value, name)] * scales
    if len(value) != scales:
        raise ValueError(f"got {len(value)} values of {name} for {scales} scales, expected one, or one each")
    return [convert(each, name) for each in value]


def whole(value: Any, name: str, *, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int. ValueError where it is no whole number, below `least` or above `most`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise ValueError(f"got {name} {quoted(value)}, expected a whole number") from None
    if least is not None and found < least:
        raise ValueError(f"got {name} {quoted(found)}, expected at least {least}")
    if most is not None and found > most:
        raise ValueError(f"got {name} {quoted(found)}, expected at most {most}")
    return found


def flag(value: Any, name: str) -> bool:
    """`value` where it is True or False. ValueError where it is neither."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"got {name} {quoted(value)}, expected True or False")
    return bool(value)


def number(value: Any, name: str) -> float:
    """`value` as a float. ValueError where it is no number."""
    if isinstance(value, bool | np.bool_ | str | bytes | bytearray):
        raise ValueError(f"got {name} {quoted(value)}, expected a number")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # an array of several numbers among them
        raise ValueError(f"got {name} {quoted(value)}, expected a number") from None


def seeds(count: int, seed: Any, generator: Any) -> list[int]:
    """One seed per image, as int64: from a first seed, a list of seeds, generators, or else torch's own."""
    if generator is not None:
        if seed is not None:
            raise ValueError("got both seed and generator, expected one of them")
        many = [generator] if isinstance(generator, torch.Generator) else generator
        if not isinstance(many, Sequence) or not all(isinstance(g, torch.Generator) for g in many):
            raise ValueError(f"got generator {quoted(generator)}, expected a torch.Generator or a list of them")
        if many is generator and len(many) != count:
            raise ValueError(f"got {len(many)} generators for {count} images, expected one for all, or one each")
        seed = [drawn for g in many for drawn in _drawn(g, count if many is not generator else 1)]
    if seed is None:
        seed = int(torch.randint(1 << 32, (), device="cpu"))  # repeats behind torch.manual_seed, as in diffusers
    if (isinstance(seed, Sequence) and not isinstance(seed, str | bytes | bytearray)) or (
        isinstance(seed, Arrays) and seed.ndim
    ):
        found = [whole(s, "seed") for s in seed]
    else:
        first = whole(seed, "seed")
        found = [first + i for i in range(count)]
    if len(found) != count:
        raise ValueError(f"got {len(found)} seeds for {count} images, expected one each")
    return [(s + (1 << 63)) % (1 << 64) - (1 << 63) for s in found]


def _drawn(generator: torch.Generator, count: int) -> list[int]:
    """Seeds from a generator's state, which moves on as it does in diffusers."""
    bound = 1 << 62
    return torch.randint(bound, (count,), generator=generator, device=generator.device).tolist()


def labels(values: Any, each: Any, names: Sequence[str], count: int, *, unconditional: bool = False) -> list[int]:
    """Class indices, `each` times over; `values` are indices or names, one or several.

    With `unconditional`, -1 is allowed and gives `count`, the row of the class table that stands for no class.
    """
    if isinstance(values, str | int | np.integer):
        values = [values]
    try:
        many = list(values)
    except TypeError:
        raise ValueError(f"got class labels {quoted(values)}, expected indices or names") from None
    if not many:
        raise ValueError("got no class labels, expected at least one")
    each = whole(each, "number of images", least=1)
    least = -1 if unconditional else 0
    return [label(value, names, count, least) % (count + 1) for value in many for _ in range(each)]


def picture(value: Any, side: int, channels: int) -> Tensor:
    """A picture as (1, C, side, side) in [0, 1], from a PIL image or a tensor (C, H, W), or (H, W) where C is 1.

    A PIL image is read as `core/image_processor.py` says; where C is 1, as a mask.
    """
    if isinstance(value, Image.Image):
        from torchvision.transforms.v2.functional import pil_to_tensor  # slow to import, and flags are checked here

        found = pil_to_tensor(as_picture(value) if channels == 3 else as_mask(value)) / 255
    elif isinstance(value, Tensor):
        found = value.float()[None] if value.dim() == 2 else value.float()
    else:
        raise ValueError(f"got a {type(value).__name__} for a picture, expected a PIL image or a tensor")
    if found.shape != (channels, side, side):
        raise ValueError(f"got a picture {tuple(found.shape)}, expected ({channels}, {side}, {side}): resize it first")
    if not (found.isfinite().all() and found.min() >= 0 and found.max() <= 1):
        raise ValueError("got a picture with values out of range, expected 0 to 1")
    return found[None]


def prompts(values: Any, name: str = "prompt") -> list[str]:
    """One prompt or several, as a list."""
    found = [values] if isinstance(values, str) else list(values) if isinstance(values, Sequence) else []
    if not found or not all(isinstance(value, str) for value in found):
        raise ValueError(f"got {name} {quoted(values)}, expected text or a list of texts")
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
