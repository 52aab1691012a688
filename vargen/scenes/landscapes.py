"""The ten classes of pocket scenes: from a label and a seed to a painted picture with its caption."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from vargen.scenes import props, rocks, shores, woods
from vargen.scenes.paint import Canvas

_PAINTERS: tuple[tuple[str, Callable[[Canvas], dict[str, str]]], ...] = (
    ("beach", shores.beach),
    ("forest", woods.forest),
    ("mountains", rocks.mountains),
    ("desert", rocks.desert),
    ("city at night", shores.city),
    ("harbour", shores.harbour),
    ("meadow", woods.meadow),
    ("snow", woods.snow),
    ("canyon", rocks.canyon),
    ("island under stars", shores.island),
)
CLASSES: tuple[str, ...] = tuple(name for name, _ in _PAINTERS)

_COLOURS: dict[str, Iterable[str]] = {
    "beach": props.PAINTS,
    "forest": woods.LEAVES,
    "mountains": rocks.ROCK,
    "desert": rocks.SAND,
    "city at night": shores.NIGHTS,
    "harbour": props.PAINTS,
    "meadow": woods.PETALS,
    "snow": woods.CABINS,
    "canyon": rocks.CLIFFS,
    "island under stars": shores.NIGHTS,
}
COLOURS: tuple[tuple[str, str], ...] = tuple((name, colour) for name in CLASSES for colour in _COLOURS[name])

# Captions by class; the clouds follow after a comma.
_CAPTIONS = {
    "beach": "a beach with {a_colour} {object} {at_time}",
    "forest": "{a_colour} forest of {object} {at_time}",
    "mountains": "{colour} mountains with {a_object} {at_time}",
    "desert": "{a_colour} desert with {a_object} {at_time}",
    "city at night": "a city at night under a {colour} sky, {a_object}",
    "harbour": "{a_colour} {object} in a harbour {at_time}",
    "meadow": "a meadow of {colour} flowers with {a_object} {at_time}",
    "snow": "snow and {a_thing} {at_time}",
    "canyon": "{a_colour} canyon with {a_object} {at_time}",
    "island under stars": "an island under stars with {a_object}, a {colour} sky",
}
_TIMES = {"dawn": "at dawn", "day": "by day", "dusk": "at dusk", "night": "by night"}


@dataclass(frozen=True)
class Scene:
    """A painted scene.

    ``image`` is uint8 (height, width, 3) in RGB, ``label`` indexes ``CLASSES``, ``caption`` is one English
    phrase, and ``attributes`` holds the words it is made of: "scene", "time" ("dawn", "day", "dusk" or
    "night"), "object", "colour" (of the object, or of the palette where the caption says so), "palette" and
    "clouds" ("no clouds" to "four clouds").
    """

    image: np.ndarray
    label: int
    caption: str
    attributes: dict[str, str]


def draw(label: int, seed: int, *, height: int = 64, width: int = 64) -> Scene:
    """Paint the scene of class ``label`` that ``seed`` stands for; the same arguments give the same picture.

    ``height`` and ``width`` are in pixels, at least 16.  Sizes change more than the resolution: a wider
    picture is a different, wider scene.  Raises ValueError for a label that is no class, a negative seed,
    or a side below 16.
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label must be between 0 and {len(CLASSES) - 1}, got {label}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    if min(height, width) < 16:
        raise ValueError(f"height and width must be at least 16 pixels, got {height} and {width}.")
    canvas = Canvas(height, width, np.random.Generator(np.random.PCG64([int(label), int(seed)])))
    name, painter = _PAINTERS[label]
    attributes = {"scene": name, **painter(canvas)}
    return Scene(_finish(canvas), int(label), _caption(attributes), attributes)


def draw_many(labels: Iterable[int], seeds: Iterable[int], *, processes: int | None = None) -> np.ndarray:
    """Paint many 64x64 scenes: uint8 (n, 64, 64, 3), in the order of ``labels`` and ``seeds``.

    ``processes`` above 1 shares the work among that many spawned processes, so that a script that asks for
    them needs the usual ``if __name__ == "__main__"`` guard; the pictures do not depend on it.  Raises
    ValueError if the two sequences differ in length, if ``processes`` is below 1, or as ``draw`` does.
    """
    labels, seeds = [int(label) for label in labels], [int(seed) for seed in seeds]
    if len(labels) != len(seeds):
        raise ValueError(f"labels and seeds must be equally many, got {len(labels)} and {len(seeds)}.")
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}.")
    pairs = list(zip(labels, seeds, strict=True))
    if processes is not None and processes > 1 and len(pairs) > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            images = pool.map(_image, pairs, chunksize=max(1, min(256, len(pairs) // (2 * processes))))
    else:
        images = [_image(pair) for pair in pairs]
    return np.stack(images) if images else np.zeros((0, 64, 64, 3), np.uint8)


def _image(pair: tuple[int, int]) -> np.ndarray:
    return draw(*pair).image


def _finish(c: Canvas) -> np.ndarray:
    """The last passes over every picture: brush dabs, a wash of uneven hue, grain, rounding to bytes."""
    c.dabs(c.uniform(0.08, 0.12), c.uniform(-0.7, 0.7))
    _soften(c.pixels)
    cast = (c.rng.random(3, np.float32) - np.float32(0.5)) * np.float32(0.06)
    c.pixels *= 1 + cast
    c.pixels += (c.noise(6, 6, 1) * np.float32(0.02))[..., None]
    c.pixels += (c.rng.random(c.pixels.shape, np.float32) - np.float32(0.5)) * np.float32(4 / 255)
    return np.rint(np.clip(c.pixels, 0, 1) * 255).astype(np.uint8)


def _soften(pixels: np.ndarray) -> None:
    """Let neighbouring pixels run into each other a little, as wet paint does; in place."""
    for axis in (0, 1):
        view = pixels.swapaxes(0, axis)
        step = (view[1:] - view[:-1]) * np.float32(0.12)
        view[:-1] += step
        view[1:] -= step


def _with_article(words: str) -> str:
    """The words with "a" or "an", unless they are a plural or already counted."""
    if words in ("fir trees", "two palms"):
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _caption(attributes: dict[str, str]) -> str:
    """The caption that the attributes add up to."""
    colour, thing = attributes["colour"], attributes["object"]
    dressed = f"a snowman with {_with_article(colour)} scarf"
    phrase = _CAPTIONS[attributes["scene"]].format(
        colour=colour,
        object=thing,
        a_colour=_with_article(colour),
        a_object=_with_article(thing),
        a_thing=dressed if thing == "snowman" else _with_article(f"{colour} {thing}"),
        at_time=_TIMES[attributes["time"]],
    )
    return f"{phrase}, {attributes['clouds']}"
