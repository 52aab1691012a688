"""Pocket scenes by the water: beach, city at night, harbour, and an island under stars.

Each painter fills the canvas and returns the attributes that the caption names.
"""

from __future__ import annotations

import numpy as np

from vargen.scenes import props
from vargen.scenes.ground import Attributes, attributes
from vargen.scenes.paint import Array, Canvas, mix, rgb
from vargen.scenes.sky import Light, any_time, sky, stars, water

# Night skies by the word that the caption uses: zenith, middle, horizon, then deep sea and wave crests.
NIGHTS = {
    "blue": ("060c2c", "16306c", "4a74b8", "10306c", "5a90d0"),
    "violet": ("160830", "40206c", "a860a8", "301c60", "a070c8"),
    "teal": ("021620", "0c4450", "48a898", "0c4850", "60c4b8"),
    "crimson": ("1c0620", "5c1c40", "e07060", "441c40", "c87078"),
}


def beach(c: Canvas) -> Attributes:
    """Sand in front, surf and sea behind, an umbrella, palms or a sail boat."""
    time = any_time(c)
    horizon = c.h * c.uniform(0.36, 0.46)
    light = sky(c, time, horizon)
    kind = c.pick(("umbrella", "palm", "sail boat"))
    colour = "green" if kind == "palm" else c.pick(tuple(props.PAINTS))
    deep, crest = c.pick((("1470a0", "58c8d0"), ("1c58a8", "6cb0e0"), ("0c8088", "80dcc0")))
    water(c, light, horizon, deep, crest, 0.3)
    paint = light.paint(props.PAINTS[colour])
    if kind == "sail boat":
        x = c.w * c.uniform(0.15, 0.85)
        props.sail_boat(c, x, horizon + c.uniform(3, 7), c.uniform(12, 17), paint, light.on("5a3c30"))
    lean = c.uniform(-0.16, 0.16)
    shore = c.ridge(c.h * c.uniform(0.64, 0.7), 2.2, 22, 2) + (c.x - c.w / 2) * np.float32(lean)
    c.flat(c.cover(shore - 3.4 + 0.9 * c.noise(6, 6, 1) - c.y), light.on("f4fcfc"))
    dark, lit = (light.on(s) for s in c.pick((("b88c58", "fce8b4"), ("c08868", "fcdcc0"), ("a89468", "f8f0cc"))))
    c.flat(c.cover(shore - 1.2 - c.y), mix(dark, light.on("6a6a68"), 0.35))
    ripples = np.sin(c.y * 1.2 + 2.6 * c.noise(14, 9, 2) + 0.2 * c.x)
    sand = c.cover(shore + 0.8 - c.y)
    c.fill(sand, dark, lit, 0.55 + 0.17 * ripples + 0.35 * c.noise(8, 4, 3))
    if kind == "umbrella":
        props.umbrella(c, c.w * c.uniform(0.25, 0.75), c.h * c.uniform(0.84, 0.92), c.uniform(20, 26), paint, light)
    if kind == "palm":
        for side in (c.uniform(0.1, 0.35), c.uniform(0.65, 0.9))[: int(c.rng.integers(1, 3))]:
            y = c.h * c.uniform(0.82, 0.94)
            c.ellipse(c.w * side - light.side * 4, y, 6, 1.3, dark * 0.6, 0.6)
            props.palm(c, c.w * side, y, c.uniform(28, 40), light.on("1c5c30"), light.on("78b840"), light)
    return attributes(light, kind, colour, "sand and surf")


def city(c: Canvas) -> Attributes:
    """Rows of towers with lit windows over a river that mirrors them, sometimes a bridge."""
    colour = c.pick(tuple(NIGHTS))
    zenith, middle, low, deep, crest = NIGHTS[colour]
    level = c.h * c.uniform(0.7, 0.78)
    light = sky(c, "night", level, (zenith, middle, low))
    c.pixels *= 0.95
    base = mix(rgb(zenith), rgb(middle), 0.5)
    tall = c.uniform(0.8, 1.15)
    for far, n in ((0.5, 8), (0.0, 6)):
        x = -c.uniform(0, 5)
        while x < c.w:
            wide = c.uniform(0.75, 1.35) * 64 / n
            high = tall * (c.uniform(16, 36) if far else c.uniform(8, 30))
            _tower(c, x, level, wide, high, mix(base, rgb(low), 0.12 + far * 0.7), far)
            x += wide + c.uniform(0, 2.5) + (0 if far else c.uniform(0, 12))
    kind = c.pick(("bridge", "skyline"))
    water(c, light, level, deep, crest, 0.72, 0.45)
    if kind == "bridge":
        _bridge(c, level + c.uniform(-1, 4), mix(base, rgb(low), 0.4), light)
    return attributes(light, kind, colour, f"{colour} sky")


def _tower(c: Canvas, x: float, level: float, wide: float, high: float, wall: Array, far: float) -> None:
    """One tower with a grid of windows, some of them lit, all in one glow."""
    part = c.window(x, level - high, x + wide, level)
    if part is None:
        return
    across = part.cover(np.abs(part.x - x - wide / 2) - wide / 2)
    inside = across * part.cover(level - high - part.y) * part.cover(part.y - level - 1)
    part.fill(inside, wall * 0.7, wall * 1.15, 0.3 + 0.5 * (part.x - x) / wide + 0 * part.y)
    pitch_x, pitch_y = c.pick((2.6, 3.0, 3.4)), c.pick((2.8, 3.3, 3.9))
    u, v = (part.x - x - 0.9) / np.float32(pitch_x), (part.y - level + high - 1.6) / np.float32(pitch_y)
    room_x, room_y = np.floor(u).astype(int), np.floor(v).astype(int)
    lit = c.rng.random((int(high / pitch_y) + 4, int(wide / pitch_x) + 4), np.float32)
    lit = np.where(lit < c.uniform(0.4, 0.75), 0.45 + lit * 0.75, 0.0).astype(np.float32)
    pane = part.cover((np.abs(u - room_x - 0.32) - 0.33) * pitch_x) * part.cover(
        (np.abs(v - room_y - 0.3) - 0.3) * pitch_y
    )
    rows, columns = np.clip(room_y, 0, lit.shape[0] - 1), np.clip(room_x, 0, lit.shape[1] - 1)
    margin = (u > 0) & (u < (wide - 1.4) / pitch_x) & (v > 0)
    glow = rgb(c.pick(("ffd870", "ffe8b0", "ffb860", "a8e8ff", "ff9ac0")))
    part.flat(inside * pane * margin * lit[rows, columns] * np.float32(1 - 0.45 * far), glow)
    if high > 24 and not far:
        c.line((x + wide / 2, level - high), (x + wide / 2, level - high - 6), 0.8, wall)
        c.ellipse(x + wide / 2, level - high - 6, 0.9, 0.9, rgb("ff5040"))


def _bridge(c: Canvas, y: float, steel: Array, light: Light) -> None:
    """A suspension bridge across the whole picture, with lamps along its deck."""
    span = c.w * c.uniform(0.5, 0.65)
    first = c.w * c.uniform(0.1, 0.25)
    sag = np.abs(((c.x - first) / np.float32(span) + 1) % 1 - 0.5) * 2
    cable = y - 1.5 - 14 * sag * sag
    hangers = np.maximum(np.abs((c.x % 4) - 2) - 0.15, np.maximum(cable - c.y, c.y - y))
    c.flat(c.cover(hangers) * np.float32(0.6), steel)
    c.flat(c.cover(np.abs(c.y - cable) - 0.5), mix(steel, light.horizon, 0.5))
    c.flat(c.cover(np.abs(c.y - y) - 1.1 + 0 * c.x), steel * np.float32(0.75))
    for x in (first, first + span):
        c.rect(x - 1.3, y - 18, x + 1.3, y + 5, mix(steel, light.horizon, 0.35))
    lamps = c.cover(np.abs((c.x % 5) - 2.5) - 0.6) * c.cover(np.abs(c.y - y + 0.6) - 0.6)
    c.flat(lamps, rgb("ffe49a"))


def harbour(c: Canvas) -> Attributes:
    """A far quay with coloured houses, a pier, boats, often a lighthouse."""
    time = any_time(c)
    level = c.h * c.uniform(0.46, 0.54)
    light = sky(c, time, level)
    _hills(c, level, light)
    _quay(c, level, light)
    kind = c.pick(("boat", "boat", "lighthouse"))
    deep, crest = c.pick((("144c74", "5c9cb8"), ("1c5c6c", "74b8b0"), ("243c70", "7c98cc")))
    water(c, light, level + 2.2, deep, crest, 0.5)
    colour = c.pick(tuple(props.PAINTS)) if kind == "boat" else c.pick(("red", "blue", "green"))
    paint = light.paint(props.PAINTS[colour])
    side = 1 if c.rng.random() < 0.5 else -1
    if kind == "lighthouse":
        props.lighthouse(
            c, c.w * (0.5 + side * c.uniform(0.2, 0.34)), level + c.h * 0.16, c.uniform(32, 40), paint, light
        )
    _pier(c, side, level + c.uniform(18, 24), light)
    spots = [
        (0.5 - side * c.uniform(0.02, 0.1), 0.36, 18.0),
        (0.5 - side * 0.3, 0.13, 11.0),
        (0.5 + side * 0.12, 0.13, 9.0),
    ]
    for k, (at, down, size) in reversed(list(enumerate(spots[: int(c.rng.integers(1, 4))]))):
        other = light.paint(props.PAINTS[c.pick(tuple(props.PAINTS))])
        hull = paint if kind == "boat" and k == 0 else other
        props.fishing_boat(c, c.w * at, level + c.h * down, size * c.uniform(0.9, 1.15), hull, light)
    return attributes(light, kind, colour, "painted houses")


def _quay(c: Canvas, level: float, light: Light) -> None:
    """A row of gabled houses in different colours on a stone quay."""
    x = -c.uniform(0, 5)
    while x < c.w:
        wide = c.uniform(7, 11)
        if c.rng.random() < 0.88:
            wall = light.on(c.pick(("e8785c", "f4cc70", "f4ece0", "88b4c8", "d89cae", "a8c488", "e8a860")))
            roof = light.on(c.pick(("a84830", "80382c", "5a5468")))
            props.house(c, x + wide / 2, level + 0.5, wide, c.uniform(6, 11), wall, roof, light)
        x += wide * c.uniform(0.98, 1.2)
    c.rect(0, level, c.w, level + 2.2, light.on("7c6c62"))


def _hills(c: Canvas, level: float, light: Light) -> None:
    """Green hills behind the town."""
    line = c.ridge(level - 12, 5, 26, 3)
    greens = mix(light.on("38604c"), light.horizon, 0.3), mix(light.on("86a868"), light.horizon, 0.3)
    c.fill(c.cover(line - c.y), *greens, 0.5 + 0.6 * c.noise(5, 4, 2))


def _pier(c: Canvas, side: int, y: float, light: Light) -> None:
    """A wooden pier that comes in from one side, on posts."""
    end = c.w * (0.5 + side * c.uniform(0.12, 0.24))
    x0, x1 = (end, c.w + 1) if side > 0 else (-1, end)
    post = x0 + 1.5
    while post < x1:
        c.rect(post - 0.8, y, post + 0.8, y + 7, light.on("4a3428"))
        post += 6.5
    part = c.window(x0, y - 1.6, x1, y + 1.6)
    if part is not None:
        deck = part.cover(np.abs(part.y - y) - 1.6) * part.cover(np.maximum(x0 - part.x, part.x - x1))
        planks = 0.5 + 0.5 * np.sin(part.x * 1.9) + 0.25 * (y - part.y)
        part.fill(deck, light.on("6a4a34"), light.on("c8986c"), planks)


def island(c: Canvas) -> Attributes:
    """One small island with palms in a dark sea, under stars and often a milky way."""
    colour = c.pick(tuple(NIGHTS))
    zenith, middle, low, deep, crest = NIGHTS[colour]
    level = c.h * c.uniform(0.62, 0.7)
    light = sky(c, "night", level, (zenith, middle, low))
    kind = c.pick(("palm", "two palms", "hut", "camp fire"))
    if c.rng.random() < 0.7:
        _milky_way(c, level, mix(rgb(low), rgb("fff0e8"), 0.35))
    stars(c, level, int(c.rng.integers(24, 50)))
    for _ in range(int(c.rng.integers(4, 9))):
        x, y = c.w * c.uniform(0, 1), level * c.uniform(0.02, 0.8)
        c.glow(x, y, 1.3, rgb("fffaf0"), 0.9)
    water(c, light, level, deep, crest, 0.45)
    _islet(c, c.w * c.uniform(0.32, 0.68), level + c.uniform(3, 7), c.uniform(15, 21), kind, light)
    return attributes(light, kind, colour, f"{colour} sky")


def _milky_way(c: Canvas, level: float, glow: Array) -> None:
    """A slanting band of glowing dust."""
    slant = c.uniform(-1.3, 1.3)
    away = (c.x - c.w * c.uniform(0.25, 0.75)) * np.float32(slant) - (c.y - level * 0.45) * 1.0
    band = np.exp(-((away / 9) ** 2)) * np.clip(0.55 + 0.75 * c.noise(7, 6, 3), 0, 1) * c.cover(c.y - level)
    c.flat(band * np.float32(0.55), glow)


def _islet(c: Canvas, x: float, y: float, half: float, kind: str, light: Light) -> None:
    """A sandy mound in the sea with what stands on it."""
    mound = y - 6 * np.clip(1 - ((c.x - x) / half) ** 2, 0, 1) - 0.6 * c.ridge(0, 1, 6, 2)
    shape = c.cover(np.maximum(mound - c.y, c.y - y - 1.8 * np.clip(1 - ((c.x - x) / half) ** 2, -1, 1)))
    c.ellipse(x, y + 2, half * 1.15, 2.2, light.on("e8f4ff"), 0.5)
    c.fill(
        shape,
        light.on("6c5850"),
        light.on("fce4b0"),
        0.55 + 0.6 * c.noise(6, 3, 2) + 0.03 * light.side * (c.x - x),
    )
    grass = shape * np.clip((y - 3.4 + c.noise(5, 4, 1) - c.y), 0, 1)
    c.fill(grass, light.on("1c5434"), light.on("80b850"), 0.5 + 0.6 * c.noise(4, 3, 1))
    dark, lit = light.on("1c6440"), light.on("a0dc70")
    if kind == "hut":
        props.house(c, x + half * 0.25, y - 3.5, 9, 5, light.on("c89868"), light.on("8c6c3c"), light)
    if kind == "camp fire":
        fx, fy = x + half * 0.45, y - 3
        c.glow(fx, fy - 2, 7, rgb("ff9030"), 0.75)
        c.polygon([(fx - 1.8, fy), (fx + 1.8, fy), (fx, fy - 5.5)], rgb("ff8020"))
        c.polygon([(fx - 1, fy), (fx + 1, fy), (fx, fy - 3)], rgb("fff0a0"))
    for k in range(2 if kind == "two palms" else 1):
        at = x + half * (0.45 * k - (0.35 if kind == "two palms" else 0.15))
        props.palm(c, at, y - 4.5, c.uniform(20, 30) - 5 * k, dark, lit, light)
