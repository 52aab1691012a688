"""Numbers that a checkpoint may have other than the published one, as a caller may say them."""

from dataclasses import dataclass, fields
from typing import Any

MOST = 1 << 24
WIDEST = 256  # tokens along one side of an image


@dataclass(frozen=True)
class Numbers:
    """What a caller says of a checkpoint; None: as its shapes say, or as published where they say nothing."""

    classes: int | None = None
    codebook_size: int | None = None
    codebook_embed_dim: int | None = None  # numbers in a code
    downsample_size: int | None = None  # pixels per token along one side
    patch_nums: tuple[int, ...] | None = None  # tokens along one side of each scale; also text, as `sides` reads it
    depth: int | None = None  # layers

    def __post_init__(self) -> None:
        for each in fields(self):
            value = vars(self)[each.name]
            if each.name == "patch_nums":
                if value is not None:
                    object.__setattr__(self, "patch_nums", sides(value))
            elif value is not None and (type(value) is not int or not 0 < value < MOST):
                raise ValueError(f"got {each.name.replace('_', ' ')} {value!r}, expected a whole number above 0")


def sides(value: Any) -> tuple[int, ...]:
    """Sides of scales, from a sequence or from text as VAR's scripts have it, `1_2_3`.

    ValueError where they do not grow. 256, 512 and 1024 there stand for the scales of images of so many pixels.
    """
    known = {"256": "1_2_3_4_5_6_8_10_13_16", "512": "1_2_3_4_6_9_13_18_24_32"}
    known["1024"] = "1_2_3_4_5_7_9_12_16_21_27_36_48_64"
    if isinstance(value, str):
        parts: Any = known.get(value, value).replace("-", "_").replace(",", "_").split("_")
        value = [int(part) if part.isascii() and part.isdigit() else part for part in parts]
    found = tuple(value) if isinstance(value, list | tuple) else (value,)
    if any(type(side) is not int or not 0 < side <= WIDEST for side in found) or list(found) != sorted(set(found)):
        raise ValueError(f"got patch nums {found!r}, expected growing sides of scales such as 1_2_3_4_5_6_8_10_13_16")
    return found
