"""Pocket scenes where things grow or would in summer: forest, meadow and snow.

Each painter fills the canvas and returns the attributes that the caption names.
"""

from __future__ import annotations

import numpy as np

from vargen.scenes import props
from vargen.scenes.ground import Attributes, attributes, far_hills, land, relief
from vargen.scenes.paint import Array, Canvas, mix, rgb
from vargen.scenes.sky import Light, any_time, sky

# Dark and lit colours by the word that the caption uses, or to pick from.
LEAVES = {
    "green": ("24502a", "7eb440"),
    "golden": ("8a4a18", "f4c03c"),
    "red": ("701c20", "e8603a"),
    "emerald": ("0c463e", "3ca888"),
}
_GRASS = (("2c6a2c", "a4d048"), ("1e6644", "86cc60"), ("58741e", "d0d850"))
_SNOW = (("90acdf", "ffffff"), ("a4a0dc", "fff8fc"), ("88bcdc", "f8ffff"))
PETALS = {"red": "ec3430", "yellow": "ffdc30", "pink": "ff80b8", "white": "ffffff", "violet": "9858e0"}
CABINS = {"red": "b8382c", "blue": "3a68b0", "green": "3c7a50", "orange": "c8742c"}


def forest(c: Canvas) -> Attributes:
    """Rows of trees fading into mist, tall ones in front."""
    time = any_time(c)
    light = sky(c, time, c.h * 0.6)
    colour = c.pick(tuple(LEAVES))
    dark, lit = (light.on(s) for s in LEAVES[colour])
    kind = c.pick(("fir trees", "round trees"))
    for row, far in enumerate((0.72, 0.42, 0.15)):
        _tree_row(c, row, far, kind == "fir trees", dark, lit, light)
    ground = c.ridge(c.h * c.uniform(0.72, 0.8), 2, 30, 2)
    soil = mix(dark, light.on("3a3020"), 0.5), mix(lit, light.on("8a7a40"), 0.35)
    land(c, ground, *soil, c.noise(8, 3, 2) - 0.1)
    if c.rng.random() < 0.5:
        _trail(c, ground, light)
    for k in range(int(c.rng.integers(4, 7))):
        x, y = c.w * c.uniform(0.02, 0.98), c.h * (0.78 + 0.04 * k + c.uniform(-0.02, 0.02))
        tone = c.uniform(-0.15, 0.2)
        shade = mix(dark, rgb("000000"), 0.25 + tone * 0.5)
        sunny = mix(lit, light.colour, 0.08 + max(tone, 0) * 0.5)
        tree = props.fir if kind == "fir trees" else props.round_tree
        tree(c, x, y, c.uniform(22, 34), shade, sunny, light)
    return attributes(light, kind, colour, f"{colour} leaves")


def _tree_row(c: Canvas, row: int, far: float, pointed: bool, dark: Array, lit: Array, light: Light) -> None:
    """The silhouette of many trees side by side, the share ``far`` of it lost in mist."""
    base = c.h * (0.36 + 0.13 * row) + c.uniform(-3, 3)
    centres = (c.rng.random(16 - 2 * row) * (c.w + 8) - 4).astype(np.float32)[:, None]
    sizes = ((0.5 + 0.5 * c.rng.random((len(centres), 1))) * (7 + 4 * row)).astype(np.float32)
    away = np.abs(c.x - centres)
    domes = np.sqrt(np.clip(sizes**2 * 0.5 - away**2, 0, None)) * 1.3
    tops = sizes - away * 2.6 if pointed else domes
    line = base - np.maximum(tops.max(0), 0)[None, :] + c.ridge(0, 0.9, 3, 1)
    mist = mix(light.horizon, light.zenith, 0.15)
    leaves = 1.1 * c.noise(4.5, 5, 2) + 0.02 * (base - c.y)
    land(c, line, mix(dark, mist, far), mix(lit, mist, far * 0.8), leaves)


def _trail(c: Canvas, ground: Array, light: Light) -> None:
    """A path that winds from the trees to the viewer."""
    bend, centre = c.uniform(-12, 12), c.w * c.uniform(0.35, 0.65)
    down = np.clip((c.y - ground) / (c.h * 0.25), 0, 1)
    trail = np.abs(c.x - centre - bend * down * down) - (0.8 + 6 * down)
    mask = c.cover(trail) * c.cover(ground - c.y)
    c.fill(mask, light.on("8a6a44"), light.on("d8b884"), 0.5 + 0.5 * c.noise(6, 3, 1))


def meadow(c: Canvas) -> Attributes:
    """Rolling green hills with drifts of flowers, and a barn, a tree or a windmill."""
    time = any_time(c)
    light = sky(c, time, c.h * 0.5)
    kind = c.pick(("barn", "tree", "windmill"))
    colour = c.pick(tuple(PETALS))
    petal = light.paint(PETALS[colour])
    dark, lit = (light.on(s) for s in c.pick(_GRASS))
    horizon = c.h * c.uniform(0.4, 0.5)
    far_hills(c, c.ridge(horizon, 4, 30, 2), dark, lit, light, (0.45, 0.35), (7, 4))
    hill = c.ridge(horizon + c.h * 0.1, 4, 34, 2)
    land(c, hill, dark, lit, 0.9 * c.noise(9, 4, 3) + 0.1)
    x = c.w * c.uniform(0.2, 0.8)
    y = float(hill[0, min(int(x * c.unit), hill.shape[1] - 1)]) + 3
    if kind == "barn":
        wide, high = c.uniform(13, 18), c.uniform(8, 10)
        props.house(c, x, y, wide, high, light.on("c83c2c"), light.on("6c4840"), light)
    elif kind == "tree":
        props.round_tree(c, x, y + 1, c.uniform(18, 26), dark * 0.7, lit, light)
    else:
        props.windmill(c, x, y, c.uniform(16, 21), light)
    front = c.ridge(c.h * 0.68, 4, 40, 2)
    grass = c.noise(6, 4, 3) + 0.6 * relief(c, c.noise(16, 12, 1), light)
    mask = land(c, front, mix(dark, rgb("000000"), 0.1), lit, grass)
    drift = np.clip(c.noise(9, 5, 1) * 1.3 + 0.8, 0, 1)
    blooms = np.clip(c.noise(3.2, 2.8, 1) * 3 - 0.9, 0, 1)
    c.fill(mask * drift * blooms, petal * 0.8, petal, 0.6 + 0.5 * c.noise(5, 4, 1))
    return attributes(light, kind, colour, f"{colour} flowers")


def snow(c: Canvas) -> Attributes:
    """Snowed-in hills with firs, a cabin or a snowman, and often falling flakes."""
    time = any_time(c)
    light = sky(c, time, c.h * 0.5)
    kind = c.pick(("cabin", "snowman"))
    colour = c.pick(tuple(CABINS))
    dark, lit = (light.paint(s) for s in c.pick(_SNOW))
    horizon = c.h * c.uniform(0.42, 0.52)
    far_hills(c, c.ridge(horizon - 2, 4, 24, 2), dark, lit, light, (0.4, 0.35), (7, 5))
    needles = light.on("2c4c5c"), light.on("6c94a0")
    for _ in range(int(c.rng.integers(7, 12))):
        x, y = c.w * c.uniform(0, 1), horizon + c.uniform(1, 5)
        props.fir(c, x, y, c.uniform(9, 15), *needles, light, 0.75)
    hill = c.ridge(horizon + c.h * 0.1, 3, 34, 2)
    land(c, hill, dark, lit, 0.15 + c.noise(14, 6, 3))
    x = c.w * c.uniform(0.25, 0.75)
    if kind == "cabin":
        y, w = horizon + c.h * 0.2, c.uniform(15, 20)
        props.house(c, x, y, w, w * 0.5, light.paint(CABINS[colour]), light.on("f4f8ff"), light)
        c.rect(x + w * 0.2, y - w * 0.98, x + w * 0.34, y - w * 0.75, light.on("6a5048"))
    front = c.ridge(c.h * 0.76, 4, 40, 2)
    land(c, front, dark, lit, 0.1 + 0.8 * c.noise(16, 5, 3) + 0.5 * relief(c, c.noise(14, 14, 1), light))
    if kind == "snowman":
        props.snowman(c, x, c.h * 0.86, c.uniform(20, 26), light.paint(props.PAINTS[colour]), light)
    needles = light.on("143c40"), light.on("4c8470")
    for side in (0.04, 0.96, c.uniform(0.0, 0.15))[: int(c.rng.integers(1, 4))]:
        y, size = c.h * c.uniform(0.86, 0.96), c.uniform(26, 36)
        props.fir(c, c.w * side, y, size, *needles, light, 0.9)
    if c.rng.random() < 0.6:
        for _ in range(int(c.rng.integers(12, 26))):
            r = c.uniform(0.5, 1.0)
            c.ellipse(c.w * c.uniform(0, 1), c.h * c.uniform(0, 0.95), r, r, rgb("ffffff"), 0.85)
    return attributes(light, kind, colour, "snow")
