"""Pocket scenes of stone and sand: mountains, desert and canyon.

Each painter fills the canvas and returns the attributes that the caption names.
"""

from __future__ import annotations

import numpy as np

from vargen.scenes import props
from vargen.scenes.ground import Attributes, attributes, far_hills, land, relief
from vargen.scenes.paint import Array, Canvas, mix, rgb
from vargen.scenes.sky import Light, any_time, sky, water

# Dark and lit colours by the word that the caption uses.
ROCK = {
    "blue": ("2c4878", "86a8d4"),
    "purple": ("46306c", "b08ac4"),
    "grey": ("424852", "b0b0b0"),
    "brown": ("583c34", "c09a78"),
}
SAND = {
    "golden": ("a87430", "fcd878"),
    "orange": ("a44c20", "fca850"),
    "pink": ("a0565c", "fcc0a4"),
    "pale": ("a08a68", "fcecc0"),
}
CLIFFS = {
    "red": ("742018", "e8704c"),
    "orange": ("90401c", "fca45c"),
    "purple": ("4c2450", "cc7c98"),
    "ochre": ("74501c", "ecc46c"),
}


def mountains(c: Canvas) -> Attributes:
    """Faceted peaks with snow caps over a lake or a valley."""
    time = any_time(c)
    light = sky(c, time, c.h * 0.55)
    colour = c.pick(tuple(ROCK))
    dark, lit = (light.on(s) for s in ROCK[colour])
    level = c.h * c.uniform(0.62, 0.72)
    line, _ = _peaks(c, level, 5, c.h * 0.36, 1.5)
    far_hills(c, line, dark, lit, light, (0.55, 0.5), (6, 5))
    line, slope = _peaks(c, level + 2, int(c.rng.integers(2, 4)), c.h * c.uniform(0.44, 0.56), 2.0)
    facets = c.noise(6, 10, 3)
    shade = 0.65 * light.side * slope + 0.5 * relief(c, facets, light) + 0.35 * facets
    mask = land(c, line, dark, lit, shade)
    # Snow reaches further down on higher peaks, and ends in a ragged edge.
    reach = np.clip(level - line - 9, 0, None) * np.float32(c.uniform(0.42, 0.6))
    foot = line + reach + 2.6 * c.noise(5, 12, 2)
    caps = np.clip((foot - c.y) * 0.7, 0, 1)
    c.fill(mask * caps, light.on("90a4d0"), light.on("fffdf8"), 0.55 + 0.6 * shade)
    kind = c.pick(("lake", "fir trees", "meadow"))
    _valley(c, kind, level, light)
    return attributes(light, kind, colour, f"{colour} rock")


def _peaks(c: Canvas, base: float, count: int, tall: float, jag: float) -> tuple[Array, Array]:
    """A skyline of pointed peaks (1, width), and -1 or +1 on their left and right slopes (height, width)."""
    centres = (np.arange(count) + 0.5 + c.rng.random(count) * 0.8 - 0.4) * c.w / count
    heights = tall * (0.6 + 0.4 * c.rng.random(count))
    steep = 0.75 + 0.5 * c.rng.random(count)
    away = c.x - centres[:, None].astype(np.float32)
    tops = heights[:, None].astype(np.float32) - np.abs(away) * steep[:, None].astype(np.float32)
    best = tops.argmax(0)
    line = base - tops.max(0)[None, :] + c.ridge(0, jag, 7, 3)
    slope = np.sign(away[best, np.arange(away.shape[1])])
    # Ribs wander sideways on their way down, so that slopes do not meet in upright lines.
    wander = (c.noise(12, 6, 2) * 4.5 + 1.5 * np.sign(c.noise(5, 5, 1))) * np.float32(c.unit)
    columns = np.clip(np.arange(away.shape[1])[None, :] + wander.astype(np.int32), 0, away.shape[1] - 1)
    return line, slope[columns]


def _valley(c: Canvas, kind: str, level: float, light: Light) -> None:
    """What lies before the mountains: a lake with a green bank, a wood, or grass."""
    floor = np.full_like(c.x, level)
    if kind == "lake":
        water(c, light, level, "1c4a6c", "5aa0b8", 0.6)
        bank = c.ridge(c.h * 0.93, 3, 24, 2)
        land(c, bank, light.on("22442c"), light.on("6a9a48"), c.noise(5, 4, 2))
    else:
        greens = ("1e4a30", "5c9048") if kind == "fir trees" else ("3c7034", "b0c858")
        land(c, floor + c.ridge(0, 1.5, 20, 2), light.on(greens[0]), light.on(greens[1]), c.noise(9, 4, 3))
    needles = light.on("12362c"), light.on("4c8450")
    for k in range({"lake": 3, "fir trees": 9, "meadow": 2}[kind]):
        y = c.h * (0.97 if kind == "lake" else 0.76 + 0.025 * k)
        # Lakes and meadows keep their middle free.
        at = c.uniform(0, 1) if kind == "fir trees" else c.pick((c.uniform(0, 0.2), c.uniform(0.8, 1.0)))
        props.fir(c, c.w * at, y, c.uniform(9, 15), *needles, light)


def desert(c: Canvas) -> Attributes:
    """Dunes with sharp crests and wind ripples, and cacti, pyramids or a rock arch."""
    time = any_time(c)
    light = sky(c, time, c.h * 0.55)
    colour = c.pick(tuple(SAND))
    dark, lit = (light.on(s) for s in SAND[colour])
    kind = c.pick(("cactus", "pyramid", "cactus", "pyramid", "rock arch"))
    horizon = c.h * c.uniform(0.46, 0.58)
    far_hills(c, c.ridge(horizon - 2, 2.5, 22, 2), dark, lit, light, (0.4, 0.4), (10, 4))
    if kind == "pyramid":
        for k in range(int(c.rng.integers(1, 4))):
            _pyramid(c, c.w * c.uniform(0.15, 0.85), horizon + k, c.uniform(13, 21), dark, lit, light)
    elif kind == "rock arch":
        _arch(c, c.w * c.uniform(0.25, 0.75), horizon + 3, c.uniform(13, 18), dark, light)
    for row in range(3):
        hazy = mix(dark, light.horizon, 0.2 - 0.1 * row)
        _dune(c, horizon + c.h * (0.06 + 0.14 * row), 3 + 1.5 * row, hazy, lit, light)
    for k in range(int(c.rng.integers(1, 4)) if kind == "cactus" else 0):
        x, y = c.w * c.uniform(0.1, 0.9), c.h * (0.74 + 0.08 * k)
        c.ellipse(x - light.side * 4, y, 5, 1.0, dark * 0.6, 0.6)
        props.cactus(c, x, y, c.uniform(14, 24), light)
    return attributes(light, kind, colour, f"{colour} sand")


def _dune(c: Canvas, base: float, rise: float, dark: Array, lit: Array, light: Light) -> None:
    """One dune with a bright crest, lit and shaded faces, and wind ripples."""
    line = c.ridge(base, rise, 26, 2)
    crest = c.ridge(0, 9, 18, 2) + c.w * c.uniform(0.2, 0.8)
    fall = c.x - crest - (c.y - base) * np.float32(c.uniform(-1.2, 1.2))
    face = np.clip(np.sin(fall * np.float32(0.16)) * 3 * light.side, -0.55, 0.55)
    warp = 2.4 * c.noise(14, 10, 2)
    edge = 0.8 * np.exp(-np.clip(c.y - line, 0, None) / np.float32(1.6)) + 0.1
    ripples = np.sin(c.y * 1.25 + warp * 1.4 + 0.25 * c.x * light.side)
    land(c, line, dark, lit, face + 0.33 * ripples + 0.35 * c.noise(8, 4, 2) + edge)


def _pyramid(c: Canvas, x: float, y: float, size: float, dark: Array, lit: Array, light: Light) -> None:
    """A stone pyramid with a lit and a shaded face."""
    edge, top = x + light.side * size * -0.2, (x, y - size * 1.05)
    shades = [mix(dark, rgb("3a2418"), 0.4), mix(lit, rgb("6a4428"), 0.15)]
    left, right = shades if light.side > 0 else shades[::-1]
    c.polygon([(x - size, y), (edge, y), top], left)
    c.polygon([(edge, y), (x + size, y), top], right)


def _arch(c: Canvas, x: float, y: float, size: float, dark: Array, light: Light) -> None:
    """A natural arch of red rock."""
    part = c.window(x - size, y - size * 1.3, x + size, y)
    if part is None:
        return
    dx, dy = (part.x - x) / size, (y - part.y) / size
    outer = np.maximum(np.abs(dx) ** 2.5 + np.abs(dy / 1.2) ** 2.5 - 0.8, -1) * size * 0.5
    hole = (np.sqrt((dx / 0.45) ** 2 + (dy / 0.72) ** 2) - 1) * size * 0.45
    mask = part.cover(np.maximum(np.maximum(outer, -hole), part.y - y))
    t = 0.5 + 0.4 * light.side * dx + 0.35 * np.sin(part.y * 1.3 + dx * 2)
    part.fill(mask, mix(dark, rgb("30100c"), 0.45), light.on("d87848"), t)


def canyon(c: Canvas) -> Attributes:
    """Layered canyon walls left and right, mesas beyond, often a river below."""
    time = any_time(c)
    light = sky(c, time, c.h * 0.5)
    colour = c.pick(tuple(CLIFFS))
    dark, lit = (light.on(s) for s in CLIFFS[colour])
    horizon = c.h * c.uniform(0.5, 0.6)
    kind = c.pick(("river", "mesa"))
    for far, count in ((0.5, 2), (0.25, int(c.rng.integers(1, 3)))):
        line = np.full_like(c.x, horizon)
        for _ in range(count):
            x, half, tall = c.w * c.uniform(0.2, 0.8), c.uniform(5, 12), c.uniform(9, 22)
            line = np.minimum(line, horizon - np.clip((half + 3 - np.abs(c.x - x)) * 4, 0, tall))
        hazy = mix(dark, light.horizon, far), mix(lit, light.horizon, far)
        _strata(c, line + c.ridge(0, 0.8, 6, 2), *hazy, light)
    floor = mix(dark, lit, 0.35), mix(lit, light.horizon, 0.2)
    land(c, c.ridge(horizon, 1, 20, 2), *floor, c.noise(8, 3, 2))
    if kind == "river":
        _river(c, horizon, light)
    for side in (-1, 1):
        edge = c.w * (0.5 + side * c.uniform(0.27, 0.4))
        ledges = c.ridge(0, 5, 9, 2)
        inside = side * (c.x - edge)
        top = c.h * c.uniform(0.12, 0.36)
        line = top + np.clip(-inside, 0, None) * 3.2 + np.round(ledges / 3) * 2.4
        _strata(c, line, dark, lit, light, side)
    return attributes(light, kind, colour, f"{colour} rock")


def _river(c: Canvas, horizon: float, light: Light) -> None:
    """A river that winds from the horizon to the viewer."""
    down = np.clip((c.y - horizon) / np.float32(c.h - horizon), 0, 1)
    bends, phase = np.float32(c.uniform(3, 6)), np.float32(c.uniform(0, 6))
    middle = c.w * 0.5 + np.sin(down * bends + phase) * (3 + 6 * down)
    mask = c.cover(np.abs(c.x - middle) - (1.2 + 9 * down)) * c.cover(horizon + 1 - c.y)
    bright = mix(light.on("8ce0e0"), light.horizon, 0.2)
    c.fill(mask, light.on("186078"), bright, 0.45 + 0.6 * c.noise(7, 3, 2))


def _strata(c: Canvas, line: Array, dark: Array, lit: Array, light: Light, side: int = 0) -> None:
    """Rock in wavy layers of different colour, cut by cracks; the wall facing the light is brighter."""
    warp = c.noise(18, 14, 2)
    bands = c.rng.random(40, np.float32) * 2 - 1
    layer = np.clip((c.y + 2.2 * warp) / np.float32(c.uniform(3.0, 4.2)), 0, 39).astype(np.int32)
    cracks = c.noise(4, 15, 2)
    land(c, line, dark, lit, 0.75 * bands[layer] + 0.55 * cracks - 0.35 * side * light.side)
