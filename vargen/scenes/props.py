"""Things that stand in the pocket scenes: trees, boats, houses, a lighthouse, cacti and the like.

Every function paints one thing with its foot at (x, y), in units, lit by the scene's light.
"""

from __future__ import annotations

import numpy as np

from vargen.scenes.paint import Array, Canvas, mix, rgb
from vargen.scenes.sky import Light

# Colours of boats, umbrellas, barns and cabins by the word that the caption uses.
PAINTS = {
    "red": "d8342c",
    "blue": "2f62d0",
    "yellow": "f4c430",
    "white": "f6f2e8",
    "green": "2f9e58",
    "orange": "f08028",
}


def fir(c: Canvas, x: float, y: float, size: float, dark: Array, lit: Array, light: Light, snow: float = 0) -> None:
    """A fir with drooping tiers, ``size`` units tall; ``snow`` 0..1 whitens the lit side of each tier."""
    part = c.window(x - size * 0.36, y - size, x + size * 0.36, y)
    if part is None:
        return
    up = (y - part.y) / np.float32(size)
    tier = (up * 4.0) % 1
    half = size * 0.33 * (1 - up) * (1.12 - 0.55 * tier) + 0.1
    distance = np.maximum(np.abs(part.x - x) - half, np.maximum(part.y - y + size * 0.1, y - size - part.y))
    t = 0.4 + light.side * (part.x - x) / (size * 0.36) + 0.25 * (0.5 - tier)
    mask = part.cover(distance)
    part.fill(mask, dark, lit, t)
    if snow:
        part.flat(mask * np.clip(1.9 * (0.55 - tier) + 0.5 * t, 0, 1) * np.float32(snow), light.on("f4f8ff"))
    c.rect(x - size * 0.04, y - size * 0.1, x + size * 0.04, y, light.on("4a3424"))


def round_tree(c: Canvas, x: float, y: float, size: float, dark: Array, lit: Array, light: Light) -> None:
    """A broad-leaved tree ``size`` units tall, its crown made of three clumps."""
    c.rect(x - size * 0.05, y - size * 0.45, x + size * 0.05, y, light.on("5a4030"))
    for k in (-1, 1, 0):
        cx = x + k * size * c.uniform(0.16, 0.26)
        cy = y - size * (0.72 if k == 0 else 0.55) - c.uniform(0, size * 0.05)
        r = size * c.uniform(0.24, 0.31)
        part = c.window(cx - r, cy - r, cx + r, cy + r)
        if part is None:
            continue
        dx, dy = (part.x - cx) / np.float32(r), (part.y - cy) / np.float32(r)
        leaves = part.noise(4, 3.2, 1)
        mask = part.cover((np.sqrt(dx * dx + dy * dy) - 1 + 0.14 * leaves) * r)
        part.fill(mask, dark, lit, 0.5 + 0.25 * light.side * dx - 0.3 * dy + 0.45 * leaves)


def palm(c: Canvas, x: float, y: float, size: float, dark: Array, lit: Array, light: Light) -> None:
    """A leaning palm ``size`` units tall."""
    lean = size * c.uniform(0.1, 0.35) * (1 if c.rng.random() < 0.5 else -1)
    trunk = c.window(x - abs(lean) - 2, y - size, x + abs(lean) + 2, y)
    if trunk is not None:
        up = np.clip((y - trunk.y) / np.float32(size), 0, 1)
        distance = np.abs(trunk.x - x - lean * up * up) - (1.0 - 0.4 * up) * size / 26
        shade = 0.5 + 0.5 * light.side * (trunk.x - x - lean * up * up)
        beyond = np.maximum(trunk.y - y, y - size - trunk.y)
        trunk.fill(trunk.cover(np.maximum(distance, beyond)), light.on("5c3e2a"), light.on("a8784c"), shade)
    top_x, top_y, reach = x + lean, y - size, size * 0.52
    part = c.window(top_x - reach, top_y - reach * 0.7, top_x + reach, top_y + reach)
    if part is None:
        return
    for slope, curl in ((0.55, 0.7), (-0.75, 1.5), (-0.1, 0.9)):
        for side in (-1, 1):
            out = side * (part.x - top_x) / np.float32(reach)
            line = top_y + reach * ((slope + c.uniform(-0.12, 0.12)) * out + curl * out * out * 0.6)
            thick = size * 0.075 * (1.15 - out)
            distance = np.maximum(np.abs(part.y - line) - thick, np.maximum(-out, out - 1) * reach)
            part.fill(part.cover(distance), dark, lit, 0.55 - (part.y - line) / (thick + 0.3) * 0.5)


def cactus(c: Canvas, x: float, y: float, size: float, light: Light) -> None:
    """A saguaro with two arms."""
    dark, lit = light.on("23603c"), light.on("5aa050")
    thick = size * 0.2
    strokes = [((x, y), (x, y - size))]
    for side, low, high in ((-1, 0.4, 0.75), (1, c.uniform(0.3, 0.5), 0.85)):
        elbow = (x + side * size * 0.3, y - size * low)
        strokes += [((x, y - size * low), elbow), (elbow, (elbow[0], y - size * high))]
    for a, b in strokes:
        c.line(a, b, thick, dark)
    for a, b in (strokes[0], strokes[2], strokes[4]):
        nudge = light.side * thick * 0.2
        c.line((a[0] + nudge, a[1]), (b[0] + nudge, b[1]), thick * 0.4, lit)


def sail_boat(c: Canvas, x: float, y: float, size: float, paint: Array, hull: Array) -> None:
    """A boat under sail: the sails carry the colour."""
    c.polygon(
        [(x - 0.05 * size, y - size), (x - 0.05 * size, y - 0.2 * size), (x + 0.5 * size, y - 0.2 * size)],
        paint,
    )
    c.polygon(
        [
            (x - 0.15 * size, y - 0.85 * size),
            (x - 0.15 * size, y - 0.2 * size),
            (x - 0.45 * size, y - 0.2 * size),
        ],
        mix(paint, rgb("ffffff"), 0.35),
    )
    c.polygon(
        [
            (x - 0.55 * size, y - 0.14 * size),
            (x + 0.6 * size, y - 0.14 * size),
            (x + 0.4 * size, y + 0.1 * size),
            (x - 0.4 * size, y + 0.1 * size),
        ],
        hull,
    )


def fishing_boat(c: Canvas, x: float, y: float, size: float, paint: Array, light: Light) -> None:
    """A small boat with a cabin and a mast: the hull carries the colour."""
    c.ellipse(x, y + 0.2 * size, 0.6 * size, 0.14 * size, paint * np.float32(0.45), 0.6)
    c.line((x - 0.22 * size, y), (x - 0.22 * size, y - 0.9 * size), 0.8, light.on("5a4436"))
    c.line((x - 0.22 * size, y - 0.85 * size), (x + 0.5 * size, y - 0.2 * size), 0.4, light.on("6a5446"))
    c.rect(x - 0.1 * size, y - 0.45 * size, x + 0.24 * size, y, light.on("f4eee0"))
    c.rect(
        x + 0.0 * size,
        y - 0.36 * size,
        x + 0.16 * size,
        y - 0.2 * size,
        rgb("ffd870") if light.time in ("night", "dusk") else light.on("4a6a88"),
    )
    c.polygon(
        [
            (x - 0.62 * size, y - 0.16 * size),
            (x + 0.66 * size, y - 0.2 * size),
            (x + 0.44 * size, y + 0.2 * size),
            (x - 0.46 * size, y + 0.2 * size),
        ],
        paint,
    )
    c.line(
        (x - 0.6 * size, y - 0.13 * size),
        (x + 0.62 * size, y - 0.16 * size),
        0.7,
        mix(paint, rgb("ffffff"), 0.6),
    )


def house(c: Canvas, x: float, y: float, w: float, h: float, wall: Array, roof: Array, light: Light) -> None:
    """A gabled house ``w`` wide with walls ``h`` tall, one side in shade, a door and a window."""
    c.rect(x - w / 2, y - h, x + w / 2, y, wall)
    shaded = x - light.side * w / 4
    c.rect(shaded - w / 4, y - h, shaded + w / 4, y, wall * np.float32(0.78))
    c.polygon(
        [
            (x - w * 0.62, y - h),
            (x + w * 0.62, y - h),
            (x + w * 0.2, y - h * 1.65),
            (x - w * 0.2, y - h * 1.65),
        ],
        roof,
    )
    pane = rgb("ffd468") if light.time in ("night", "dusk") else light.on("5a7890")
    c.rect(x - w * 0.34, y - h * 0.75, x - w * 0.1, y - h * 0.38, pane)
    c.rect(x + w * 0.12, y - h * 0.62, x + w * 0.34, y, wall * np.float32(0.4))


def lighthouse(c: Canvas, x: float, y: float, size: float, paint: Array, light: Light) -> None:
    """A striped lighthouse on a rock, its lamp lit when it is dark."""
    c.ellipse(x, y + 0.5, size * 0.42, size * 0.13, light.on("584c48"))
    part = c.window(x - size * 0.2, y - size, x + size * 0.2, y)
    if part is not None:
        up = (y - part.y) / np.float32(size)
        distance = np.maximum(
            np.abs(part.x - x) - size * (0.14 - 0.05 * up), np.maximum(part.y - y, y - size * 0.8 - part.y)
        )
        stripes = np.clip(((up * 3.4) % 1 > 0.5) * 1.0 + 0 * part.x, 0, 1)
        lit = 0.78 + 0.22 * np.clip(0.5 + light.side * (part.x - x) / (size * 0.1), 0, 1)
        colour = (light.on("f8f4ea") + stripes[..., None] * (paint - light.on("f8f4ea"))) * lit[..., None]
        part.flat(part.cover(distance), colour)
    lamp = rgb("fff0a0") if light.time in ("night", "dusk", "dawn") else light.on("b8d8e8")
    if light.time in ("night", "dusk"):
        c.glow(x, y - size * 0.86, size * 0.28, lamp, 0.6)
    c.rect(x - size * 0.08, y - size * 0.92, x + size * 0.08, y - size * 0.79, lamp)
    c.polygon(
        [(x - size * 0.12, y - size * 0.9), (x + size * 0.12, y - size * 0.9), (x, y - size * 1.03)],
        paint * 0.8,
    )


def umbrella(c: Canvas, x: float, y: float, size: float, paint: Array, light: Light) -> None:
    """A striped beach umbrella with its shadow and a towel."""
    c.ellipse(x - light.side * size * 0.4, y + 0.3, size * 0.5, size * 0.13, rgb("5a4040"), 0.45)
    c.polygon(
        [
            (x + size * 0.15, y),
            (x + size * 0.6, y),
            (x + size * 0.75, y + size * 0.2),
            (x + size * 0.3, y + size * 0.2),
        ],
        mix(paint, rgb("ffffff"), 0.45),
    )
    c.line((x, y), (x, y - size * 0.7), 0.8, light.on("6a5040"))
    part = c.window(x - size * 0.62, y - size, x + size * 0.62, y - size * 0.5)
    if part is not None:
        dx, dy = (part.x - x) / (size * 0.6), (part.y - y + size * 0.55) / (size * 0.42)
        distance = np.maximum((np.sqrt(dx * dx + dy * dy) - 1) * size * 0.42, part.y - y + size * 0.55)
        bend = dx / np.sqrt(np.clip(1 - dy * dy, 0.05, 1))
        stripe = (np.abs(((bend + 1) * 2.5) % 2 - 1) < 0.42).astype(np.float32)[..., None]
        part.flat(part.cover(distance), paint + stripe * (light.on("fff8ee") - paint))


def snowman(c: Canvas, x: float, y: float, size: float, paint: Array, light: Light) -> None:
    """A snowman with a hat and a coloured scarf."""
    for up, r in ((0.22, 0.27), (0.58, 0.2), (0.84, 0.14)):
        c.ellipse(x - light.side * size * 0.03, y - up * size, r * size, r * size, light.paint("8ea4cc"))
        c.ellipse(
            x + light.side * size * 0.03,
            y - up * size - 0.2,
            r * size * 0.85,
            r * size * 0.88,
            light.paint("fbfdff"),
        )
    c.rect(x - size * 0.17, y - size * 0.76, x + size * 0.17, y - size * 0.66, paint)
    c.rect(x + size * 0.04, y - size * 0.72, x + size * 0.12, y - size * 0.45, paint)
    c.rect(x - size * 0.2, y - size * 0.98, x + size * 0.2, y - size * 0.92, rgb("2a2430"))
    c.rect(x - size * 0.12, y - size * 1.14, x + size * 0.12, y - size * 0.94, rgb("2a2430"))
    c.line((x, y - size * 0.83), (x + size * 0.14, y - size * 0.8), 0.9, light.on("f08028"))


def windmill(c: Canvas, x: float, y: float, size: float, light: Light) -> None:
    """A white windmill with four sails."""
    foot, neck, hub = size * 0.2, size * 0.12, y - size * 0.7
    c.polygon([(x - foot, y), (x + foot, y), (x + neck, hub), (x - neck, hub)], light.on("f2e8d8"))
    dim = x - light.side * size * 0.08
    c.polygon([(dim - size * 0.1, y), (dim + size * 0.1, y), (dim, y - size * 0.68)], light.on("c4b4a4"))
    eaves, cap = y - size * 0.68, y - size * 0.88
    c.polygon([(x - size * 0.16, eaves), (x + size * 0.16, eaves), (x, cap)], light.on("8a4a38"))
    turn = c.uniform(0.2, 1.3)
    for k in range(4):
        dx, dy = np.cos(turn + k * np.pi / 2) * size * 0.5, np.sin(turn + k * np.pi / 2) * size * 0.5
        c.line((x, hub), (x + dx, hub + dy), 1.5, light.on("6a5448"))
