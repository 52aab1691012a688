"""What the painters of the pocket scenes share: textured ground, light on slopes, the attributes."""

from __future__ import annotations

import numpy as np

from vargen.scenes.paint import Array, Canvas, mix
from vargen.scenes.sky import Light

Attributes = dict[str, str]


def attributes(light: Light, thing: str, colour: str, palette: str) -> Attributes:
    """The words that a caption may use, but for the name of the class."""
    return {"time": light.time, "clouds": light.clouds, "object": thing, "colour": colour, "palette": palette}


def relief(c: Canvas, texture: Array, light: Light) -> Array:
    """Slopes of a height field as light and shade, about -1..1: bright where they face the light."""
    slope = np.zeros_like(texture)
    slope[:, 1:] = texture[:, :-1] - texture[:, 1:]
    return np.clip(slope * np.float32(light.side * -2.4 * c.unit), -1, 1)


def land(c: Canvas, line: Array, dark: Array, lit: Array, texture: Array) -> Array:
    """Paint the ground below a skyline and return its mask.

    ``texture`` (about -1..1) runs from the dark colour to the lit one.
    """
    mask = c.cover(line - c.y)
    c.fill(mask, dark, lit, 0.5 + 0.5 * texture)
    return mask


def far_hills(
    c: Canvas,
    line: Array,
    dark: Array,
    lit: Array,
    light: Light,
    haze: tuple[float, float],
    cells: tuple[float, float],
) -> None:
    """Hills at the horizon, their dark and lit colours fading into it by the two shares of ``haze``."""
    land(c, line, mix(dark, light.horizon, haze[0]), mix(lit, light.horizon, haze[1]), c.noise(*cells, 2))
