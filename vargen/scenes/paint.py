"""Drawing primitives of the pocket scenes: a small float canvas, smooth noise, soft-edged shapes, brush dabs.

Lengths are in *units*: a picture's shorter side is always 64 units long, so a scene keeps its
proportions at every size.  Edges are antialiased analytically: a shape is a signed distance (negative
inside), and a pixel's cover falls from one to zero across one pixel around distance zero.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Array = np.ndarray


def rgb(code: str) -> Array:
    """A colour "rrggbb" as three float32 in 0..1."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / np.float32(255)


def mix(a: Array, b: Array, t: float) -> Array:
    """The colour a fraction ``t`` of the way from ``a`` to ``b``."""
    return a + (b - a) * np.float32(t)


@lru_cache(maxsize=512)
def _cubic_weights(length: int, cells: int) -> Array:
    """Catmull-Rom matrix (length, cells + 3) that stretches a row of random values over ``length`` pixels."""
    position = (np.arange(length) + 0.5) * cells / length
    cell = np.minimum(position.astype(int), cells - 1)
    t = position - cell
    taps = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    weights = np.zeros((length, cells + 3), np.float32)
    for k, tap in enumerate(taps):
        weights[np.arange(length), cell + k] = tap
    weights.setflags(write=False)
    return weights


@lru_cache(maxsize=64)
def _axes(height: int, width: int) -> tuple[Array, Array]:
    """Pixel centres in units: x as (1, width) and y as (height, 1)."""
    unit = min(height, width) / 64
    x = ((np.arange(width, dtype=np.float32) + 0.5) / unit).astype(np.float32)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / unit).astype(np.float32)[:, None]
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


class Canvas:
    """A picture being painted: ``pixels`` is float32 (height, width, 3) in 0..1, mostly.

    ``x`` (1, width) and ``y`` (height, 1) hold the pixel centres in units, ``w`` and ``h`` the extent in
    units, ``unit`` the pixels per unit, and ``rng`` the only source of randomness.
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.unit = min(height, width) / 64
        self.x, self.y = _axes(height, width)
        self.w, self.h = width / self.unit, height / self.unit
        self.pixels = np.zeros((height, width, 3), np.float32)

    def uniform(self, low: float, high: float) -> float:
        """One random float between ``low`` and ``high``."""
        return low + (high - low) * float(self.rng.random())

    def pick(self, options):
        """One of the options, each as likely."""
        return options[int(self.rng.integers(len(options)))]

    def cover(self, distance: Array) -> Array:
        """Pixel cover 0..1 of a signed distance in units."""
        return np.clip(0.5 - distance * np.float32(self.unit), 0, 1)

    def noise(self, cell_x: float, cell_y: float, octaves: int = 2) -> Array:
        """Smooth noise (height, width), about -1..1, whose coarsest blobs are ``cell_x`` by ``cell_y`` units.

        Octaves finer than about two units are left out: a brush would not paint them.
        """
        height, width = self.pixels.shape[:2]
        total = np.zeros((height, width), np.float32)
        gain = 1.5
        for octave in range(octaves):
            if octave and min(cell_x, cell_y) < 2.1 * 2**octave:
                break
            ny = max(1, round(self.h / cell_y * 2**octave))
            nx = max(1, round(self.w / cell_x * 2**octave))
            grid = self.rng.random((ny + 3, nx + 3), np.float32) * 2 - 1
            total += gain * (_cubic_weights(height, ny) @ grid @ _cubic_weights(width, nx).T)
            gain *= 0.5
        return total

    def ridge(self, base: float, rise: float, cell: float, octaves: int = 3) -> Array:
        """A skyline (1, width): heights in units that wander by about ``rise`` around ``base``."""
        width = self.pixels.shape[1]
        line = np.zeros(width, np.float32)
        gain = 1.0
        for octave in range(octaves):
            n = max(1, round(self.w / cell * 2**octave))
            line += gain * (_cubic_weights(width, n) @ (self.rng.random(n + 3, np.float32) * 2 - 1))
            gain *= 0.5
        return np.float32(base) - np.float32(rise) * line[None, :]

    def fill(self, mask: Array, dark: Array, light: Array, t: Array) -> None:
        """Paint where ``mask`` is, in the colour between ``dark`` (``t`` = 0) and ``light`` (``t`` = 1)."""
        colour = dark + np.clip(t, 0, 1)[..., None] * (light - dark)
        colour -= self.pixels
        colour *= mask[..., None]
        self.pixels += colour

    def flat(self, mask: Array, colour: Array) -> None:
        """Paint one colour where ``mask`` is."""
        self.pixels += mask[..., None] * (colour - self.pixels)

    def window(self, x0: float, y0: float, x1: float, y1: float) -> Canvas | None:
        """The part of the canvas around a box in units, sharing its pixels; None if it lies outside."""
        height, width = self.pixels.shape[:2]
        left, right = max(0, int(x0 * self.unit) - 1), min(width, int(x1 * self.unit) + 2)
        top, bottom = max(0, int(y0 * self.unit) - 1), min(height, int(y1 * self.unit) + 2)
        if left >= right or top >= bottom:
            return None
        part = object.__new__(Canvas)
        part.rng, part.unit = self.rng, self.unit
        part.w, part.h = (right - left) / self.unit, (bottom - top) / self.unit
        part.x, part.y = self.x[:, left:right], self.y[top:bottom]
        part.pixels = self.pixels[top:bottom, left:right]
        return part

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Array, strength: float = 1.0) -> None:
        """A filled ellipse around (x, y)."""
        part = self.window(x - rx, y - ry, x + rx, y + ry)
        if part is not None:
            distance = (np.sqrt(((part.x - x) / rx) ** 2 + ((part.y - y) / ry) ** 2) - 1) * min(rx, ry)
            part.flat(part.cover(distance) * np.float32(strength), colour)

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: Array, strength: float = 1.0) -> None:
        """A filled upright rectangle."""
        part = self.window(x0, y0, x1, y1)
        if part is not None:
            across = part.cover(np.abs(part.x - (x0 + x1) / 2) - (x1 - x0) / 2)
            down = part.cover(np.abs(part.y - (y0 + y1) / 2) - (y1 - y0) / 2)
            part.flat(across * down * np.float32(strength), colour)

    def polygon(self, points: list[tuple[float, float]], colour: Array) -> None:
        """A filled convex polygon, corners in either order."""
        xs, ys = zip(*points, strict=True)
        part = self.window(min(xs), min(ys), max(xs), max(ys))
        if part is None:
            return
        pairs = list(zip(points, points[1:] + points[:1], strict=True))
        turn = 1.0 if sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs) > 0 else -1.0
        distance: Array = np.full((1, 1), -1e9, np.float32)
        for (ax, ay), (bx, by) in pairs:
            length = turn * max(1e-6, float(np.hypot(bx - ax, by - ay)))
            edge = (part.x - ax) * ((by - ay) / length) - (part.y - ay) * ((bx - ax) / length)
            distance = np.maximum(distance, edge)
        part.flat(part.cover(distance), colour)

    def line(self, a: tuple[float, float], b: tuple[float, float], thick: float, colour: Array) -> None:
        """A straight stroke ``thick`` units wide."""
        (ax, ay), (bx, by) = a, b
        part = self.window(min(ax, bx) - thick, min(ay, by) - thick, max(ax, bx) + thick, max(ay, by) + thick)
        if part is not None:
            dx, dy = bx - ax, by - ay
            t = np.clip(((part.x - ax) * dx + (part.y - ay) * dy) / (dx * dx + dy * dy + 1e-6), 0, 1)
            distance = np.hypot(part.x - ax - t * dx, part.y - ay - t * dy) - thick / 2
            part.flat(part.cover(distance), colour)

    def glow(self, x: float, y: float, radius: float, colour: Array, strength: float) -> None:
        """Light that fades over ``radius`` units around (x, y)."""
        part = self.window(x - 2.5 * radius, y - 2.5 * radius, x + 2.5 * radius, y + 2.5 * radius)
        if part is not None:
            away = ((part.x - x) ** 2 + (part.y - y) ** 2) / np.float32(radius * radius)
            part.flat(np.float32(strength) * np.exp(-away), colour)

    def mirror(self, level: float, mask: Array, strength: float, wobble: float = 1.2) -> None:
        """Reflect what stands above ``level`` into the water below it, broken up by small waves."""
        height, width = self.pixels.shape[:2]
        row = round(level * self.unit)
        if row >= height or row <= 0:
            return
        waves = self.noise(9, 2.2, 1)[row:]
        shift = (waves * np.float32(wobble * self.unit)).astype(np.int32)
        source_y = np.clip(2 * row - 1 - np.arange(row, height)[:, None] + shift, 0, row - 1)
        source_x = np.clip(np.arange(width)[None, :] + shift, 0, width - 1)
        image = self.pixels[source_y, source_x]
        below = self.pixels[row:]
        below += (mask[row:] * np.float32(strength))[..., None] * (image - below)

    def dabs(self, strength: float, angle: float) -> None:
        """Break the picture into brush dabs about five units long that differ a little in lightness and hue.

        Dabs are the cells of a stretched, jittered Voronoi pattern, so that they have clean edges and a
        size that survives a coarse tokenizer.
        """
        pitch = max(2, round(5 * self.unit))
        light, warm = _dab_fields(self.rng, self.pixels.shape[0], self.pixels.shape[1], pitch, angle)
        self.pixels *= (1 + np.float32(strength) * light)[..., None]
        self.pixels += (np.float32(0.3 * strength) * warm)[..., None] * rgb("ff8000") - (
            np.float32(0.3 * strength) * warm
        )[..., None] * rgb("0080ff")


def _dab_fields(rng: np.random.Generator, height: int, width: int, pitch: int, angle: float) -> tuple[Array, Array]:
    """Lightness and warmth (height, width), each -1..1 and constant over a brush dab."""
    ny, nx = -(-height // pitch), -(-width // pitch)
    shape = (ny + 2, 1, nx + 2, 1)
    jitter = rng.random((4, *shape), np.float32) - np.float32(0.5)
    value = rng.random((2, *shape), np.float32) * 2 - 1
    turn = np.float32(angle) + jitter[2] * np.float32(1.1)
    cos, sin = np.cos(turn), np.sin(turn)
    along, across = np.float32(0.35), np.float32(1.8)
    xx = along * cos * cos + across * sin * sin
    yy = along * sin * sin + across * cos * cos
    xy = 2 * (along - across) * cos * sin
    local = np.arange(pitch, dtype=np.float32) - np.float32((pitch - 1) / 2)
    px, py = local[None, None, None, :], local[None, :, None, None]
    best = np.full((ny, pitch, nx, pitch), np.inf, np.float32)
    light, warm = np.zeros_like(best), np.zeros_like(best)
    for dy in range(3):
        for dx in range(3):
            at = (slice(dy, dy + ny), slice(None), slice(dx, dx + nx), slice(None))
            x = px - (jitter[0][at] + (dx - 1)) * np.float32(pitch)
            y = py - (jitter[1][at] + (dy - 1)) * np.float32(pitch)
            distance = xx[at] * (x * x) + yy[at] * (y * y) + (xy[at] * x) * y
            nearer = distance < best
            np.copyto(best, distance, where=nearer)
            np.copyto(light, value[0][at], where=nearer)
            np.copyto(warm, value[1][at], where=nearer)
    size = (ny * pitch, nx * pitch)
    return light.reshape(size)[:height, :width], warm.reshape(size)[:height, :width]
