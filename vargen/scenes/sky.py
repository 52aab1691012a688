"""Skies of the pocket scenes (hour, sun or moon, clouds, stars) and the water that mirrors them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vargen.scenes.paint import Array, Canvas, mix, rgb

# Per hour: skies as (zenith, middle, horizon), then the tint that its light gives to the land.
_SKIES = {
    "dawn": [("6f7fc0", "e8a9b8", "ffe0b0"), ("6fa0d8", "f3c4c0", "ffe9b8"), ("9a80c8", "f0a0a8", "ffd890")],
    "day": [("3478d0", "74b0ec", "d0e8f5"), ("2a98d4", "80cfea", "eef5dc"), ("4a80c8", "98c4ea", "f8ecd6")],
    "dusk": [("3a2a6e", "c8507a", "ffa858"), ("53307a", "e8663f", "ffc95c"), ("24406e", "b0608c", "ff9468")],
    "night": [("0a1030", "1c2c5c", "42588c"), ("120a30", "2c1f5e", "604484"), ("04141f", "0f3a4c", "34707a")],
}
_TINTS = {"dawn": "fff0e8", "day": "ffffff", "dusk": "f4b49c", "night": "8494cc"}
_LIGHTS = {"dawn": "fff2c8", "day": "fffbe0", "dusk": "ffe08c", "night": "f2f2e0"}
_COUNTS = ("no clouds", "one cloud", "two clouds", "three clouds", "four clouds")


@dataclass(frozen=True)
class Light:
    """The light of a scene: its hour, where the sun or moon stands (units), and the colours it gives."""

    time: str
    x: float
    y: float
    side: float  # +1: light comes from the right, -1: from the left
    colour: Array
    tint: Array
    zenith: Array
    horizon: Array
    clouds: str

    def on(self, code: str) -> Array:
        """The paint colour "rrggbb" as seen in this light."""
        return rgb(code) * self.tint

    def paint(self, code: str) -> Array:
        """Bright paint in this light: tinted less than the land, so that its colour can still be named."""
        return rgb(code) * mix(self.tint, rgb("ffffff"), 0.45)


def any_time(c: Canvas) -> str:
    """An hour of the day; nights are rarer, since much is hard to see in them."""
    return ("dawn", "dawn", "day", "day", "day", "dusk", "dusk", "night")[int(c.rng.integers(8))]


def sky(c: Canvas, time: str, horizon: float, stops: tuple[str, str, str] | None = None) -> Light:
    """Paint the sky down to ``horizon`` (and behind everything else), with sun or moon and clouds."""
    zenith, middle, low = (mix(rgb(s), c.rng.random(3, np.float32), 0.05) for s in stops or c.pick(_SKIES[time]))
    strokes = c.noise(16, 7, 3)
    t = np.clip(c.y / np.float32(horizon) + 0.13 * strokes, 0, 1)[..., None]
    upper = zenith + (middle - zenith) * (t / 0.55)
    lower = middle + (low - middle) * (t - 0.55) / 0.45
    c.pixels[:] = np.where(t < 0.55, upper, lower)
    c.pixels *= (1 + 0.1 * c.noise(9, 5, 2))[..., None]
    if time == "night":
        stars(c, horizon, int(c.rng.integers(14, 40)))
    side = 1.0 if c.rng.random() < 0.5 else -1.0
    x = c.w * (0.5 + side * c.uniform(0.08, 0.4))
    y = horizon * (c.uniform(0.2, 0.5) if time in ("day", "night") else c.uniform(0.5, 0.88))
    colour = rgb(_LIGHTS[time])
    _disc(c, x, y, time, colour)
    count = int(c.rng.integers(5))
    if count:
        _clouds(c, count, horizon, time, zenith, low, colour)
    return Light(time, x, y, side, colour, rgb(_TINTS[time]), zenith, low, _COUNTS[count])


def _disc(c: Canvas, x: float, y: float, time: str, colour: Array) -> None:
    """The sun, or a full or crescent moon, with its glow."""
    radius = c.uniform(3.0, 5.5)
    halo = 0.45 if time == "night" else 0.7
    c.glow(x, y, radius * 3.2, mix(colour, c.pixels[0, 0], 0.25 if time == "night" else 0), halo * 0.6)
    c.glow(x, y, radius * 1.7, colour, halo)
    if time == "night" and c.rng.random() < 0.4:
        _crescent(c, x, y, radius, colour)
        return
    c.ellipse(x, y, radius, radius, colour)
    if time == "night":
        c.ellipse(x - 1, y - 0.6, radius * 0.35, radius * 0.3, colour * np.float32(0.85))
        c.ellipse(x + 1.2, y + 1.1, radius * 0.25, radius * 0.25, colour * np.float32(0.87))


def _crescent(c: Canvas, x: float, y: float, radius: float, colour: Array) -> None:
    """A moon of which only a sickle is lit."""
    part = c.window(x - radius, y - radius, x + radius, y + radius)
    if part is not None:
        full = np.hypot(part.x - x, part.y - y) - radius
        dark = np.hypot(part.x - x - radius * 0.5, part.y - y + radius * 0.25) - radius * 0.85
        part.flat(part.cover(np.maximum(full, -dark)), colour)


def stars(c: Canvas, horizon: float, count: int) -> None:
    """Scatter stars of different brightness over the sky."""
    height, width = c.pixels.shape[:2]
    rows = (c.rng.random(count) ** 1.3 * min(horizon * c.unit, height - 1)).astype(int)
    columns = (c.rng.random(count) * width).astype(int)
    bright = (0.3 + 0.6 * c.rng.random((count, 1), np.float32)).astype(np.float32)
    c.pixels[rows, columns] += bright * (rgb("fff8e6") - c.pixels[rows, columns])


def _clouds(c: Canvas, count: int, horizon: float, time: str, zenith: Array, low: Array, sun: Array) -> None:
    """Soft billowing clouds, one to a column of the sky so that they can be counted, lit from above."""
    billow = c.noise(7, 4.5, 2)
    mask = np.full(billow.shape, -1, np.float32)
    body = np.zeros_like(billow)
    slot = c.w / count
    for k in range(count):
        x, y = slot * (k + c.uniform(0.3, 0.7)), horizon * c.uniform(0.14, 0.66)
        rx, ry = min(slot * 0.42, c.uniform(7, 14)), c.uniform(2.6, 4.6)
        round_ = 1 - ((c.x - x) / np.float32(rx)) ** 2 - ((c.y - y) / np.float32(ry)) ** 2
        body = np.where(round_ > mask, (np.float32(y) - c.y) / np.float32(ry), body)
        mask = np.maximum(mask, round_)
    cover = np.clip((mask + 0.45 * billow) * 1.6, 0, 1) * np.float32(0.88)
    if time == "night":
        shade, lit = mix(zenith, low, 0.5), mix(low, sun, 0.3)
    elif time == "day":
        shade, lit = mix(zenith, rgb("e8ecf2"), 0.72), rgb("ffffff")
    else:
        shade, lit = mix(zenith, low, 0.45), mix(low, rgb("fff4ea"), 0.6)
    c.fill(cover, shade, lit, 0.5 + 0.5 * body + 0.4 * billow)


def water(
    c: Canvas, light: Light, level: float, deep: str, crest: str, mirror: float = 0.4, glitter: float = 0.9
) -> None:
    """Paint water from ``level`` down to the bottom edge: mirrored sky, bands of waves, glitter."""
    mask = c.cover(level - c.y) * np.ones_like(c.x)
    depth = np.clip((c.y - level) / np.float32(max(c.h - level, 1)), 0, 1)
    bands = c.noise(11, 3.2, 2)
    # Water keeps more of its own colour at dusk than land does, or it would look like sand.
    tint = mix(light.tint, rgb("ffffff"), 0.0 if light.time == "night" else 0.55)
    dark, lit = rgb(deep) * tint, mix(rgb(crest) * tint, light.horizon, 0.22)
    c.fill(mask, dark, lit, 0.75 - 0.6 * depth + 0.3 * bands)
    c.mirror(level, mask, mirror)
    c.pixels += (mask * bands * np.float32(0.09))[..., None] * lit
    crests = np.clip(c.noise(7, 2.6, 1) * 2.2 - 1.1, 0, 1)
    c.flat(mask * crests * np.float32(0.5), mix(lit, rgb("ffffff"), 0.35 if light.time != "night" else 0.1))
    path = np.exp(-(((c.x - light.x) / (2.5 + 6 * depth)) ** 2))
    c.flat(mask * path * np.clip(0.35 + 0.7 * c.noise(5, 2.4, 1), 0, glitter), light.colour)
