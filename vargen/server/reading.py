"""From a request's body to an order: everything that can be refused is refused here, before it joins the queue."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vargen.core import registry
from vargen.core.preset import LAW, Preset, Recipe
from vargen.pipelines import request, values
from vargen.server.edits import NOTHING, Given
from vargen.server.errors import Refusal
from vargen.server.options import Options
from vargen.server.orders import Card, Order
from vargen.server.schema import ImageRequest

WINDOW = 16  # of methods whose window is auto: that choice hangs on the clock, and would not repeat
MOST = {"window": 128, "length": 64, "drafts": 64, "ahead": 64}  # what one forward may be made to hold
MOST_OTHERS = 1024
LONGEST = 256  # characters of a method


def read(body: ImageRequest, cards: Mapping[str, Card], options: Options, given: Given = NOTHING) -> Order:
    """The order that a body asks for, of pictures that are `given`. Refusal names the field that is wrong."""
    name = options.names[0] if body.model is None else body.model
    drawer, preset, count = card(name, cards), options.presets[name], body.n or 1
    most = options.most_images if drawer.joins else min(options.most_images, options.batch_size)
    if count > most:
        raise Refusal(400, f"got n {count}, expected at most {most}", param="n")
    asked = body.options
    recipe = _checked("preset", preset.choose, asked["preset"])
    law = {key: asked[key] for key in LAW}
    for key, value in law.items():
        _checked(key, request.asked, preset.method, recipe, {key: value}, {}, preset.spec)
    method = _checked("method", _method, asked["method"], law, recipe, preset, drawer)
    size, image_size = _checked("size", _size, body.size, drawer, recipe, options.strict)
    high, wide = _pixels(size, image_size, drawer, recipe)
    if count * high * wide > options.max_pixels:
        raise Refusal(
            400, f"got {count} images of {wide}x{high}, expected {options.max_pixels} pixels at most", param="n"
        )
    subject, pictures = _subject(body, preset, options, edits=bool(given.pictures)), {}
    if given.pictures:
        pictures = given.fitting(drawer, drawer.sizes[0] if size is None else size, strict=options.strict)
    first = secrets.randbits(32) if asked["seed"] is None else asked["seed"]
    said = tuple((key, value) for key, value in law.items() if value is not None)
    order = Order(
        name, method, asked["preset"], said, size, image_size, subject, tuple(values.seeds(count, first, None))
    )
    return replace(
        order,
        partials=_partials(body, options, drawer),
        priority=body.priority or 0,
        negative=_negative(asked["negative_prompt"] or "", preset, options),
        **_file(body),
        **pictures,
    )


def card(name: str, cards: Mapping[str, Card]) -> Card:
    """A model that is served, by name. Refusal where there is none."""
    if name not in cards:
        message = registry.unknown("model", name[:100], list(cards))
        raise Refusal(404, message, param="model", code="model_not_found")
    return cards[name]


def said_size(order: Order, cards: Mapping[str, Card]) -> str:
    """The size of an order's images, WIDTHxHEIGHT."""
    recipe = registry.preset(order.model).choose(order.preset)
    high, wide = _pixels(order.size, order.image_size, cards[order.model], recipe)
    return f"{wide}x{high}"


def methods(preset: Preset, card: Card) -> list[str]:
    """The methods that can be asked for."""
    fit = registry.methods(preset.kind, preset.plan)
    return [name for name in fit if card.drafts or registry.sampler(name).partner is None]


def _checked(param: str, read: Any, *arguments: Any) -> Any:
    """What `read` gives; its ValueError as a refusal."""
    try:
        return read(*arguments)
    except ValueError as error:
        raise Refusal(400, str(error), param=param) from None


def _method(text: str | None, law: dict[str, Any], recipe: Recipe, preset: Preset, card: Card) -> str:
    """A method that repeats itself, with its settings. ValueError where it cannot be had here."""
    if text is not None and (len(text) > LONGEST or not text.isascii() or not text.isprintable() or " " in text):
        raise ValueError("got a method with characters that no method has, expected such as sjd-coupled:window=16")
    name, *parts = (text or preset.method).split(":")
    chosen = request.asked(":".join([name, *parts]), recipe, law, {}, preset.spec)
    given = {part.partition("=")[0] for part in parts}
    partner = chosen.sampler.partner
    if partner is not None and partner in given:
        raise ValueError(f"got a {partner}: it is chosen where the server is started")
    if partner is not None and not card.drafts:
        raise ValueError(f"{name} wants a {partner}, and {preset.name} is served without one")
    for key in given:
        value = getattr(chosen.settings, key)
        if isinstance(value, int) and value > MOST.get(key, MOST_OTHERS):
            raise ValueError(f"got {key} {value}, expected at most {MOST.get(key, MOST_OTHERS)}")
    if chosen.sampler.block_width(chosen.settings) is None:
        if "window" in given:
            raise ValueError("got window auto, which hangs on the clock and does not repeat: give a number")
        parts.append(f"window={WINDOW}")
    return ":".join([name, *parts])


def _size(text: str | None, card: Card, recipe: Recipe, strict: bool) -> tuple[tuple[int, int] | None, int | None]:
    """Height and width where the model has several, and pixels a side to resize to: the nearest to what is asked for.

    With `strict`, ValueError where the model does not draw just that; it names the sizes.
    """
    if text is None or text == "auto":
        return None, None
    wide, high = map(int, text.split("x"))
    if not strict and high == wide == recipe.image_size:
        return None, None
    if not strict:
        high, wide = min(card.sizes, key=lambda size: abs(math.log(size[0] / high)) + abs(math.log(size[1] / wide)))
    if (high, wide) in card.sizes:
        size = (high, wide) if len(card.sizes) > 1 else None
        return size, high if recipe.image_size is not None else None
    if high == wide == recipe.image_size:
        return None, None
    raise ValueError(f"{card.model} draws no {text}; its sizes: {', '.join(f'{w}x{h}' for h, w in card.sizes)}")


def _pixels(size: tuple[int, int] | None, image_size: int | None, card: Card, recipe: Recipe) -> tuple[int, int]:
    side = recipe.image_size if image_size is None else image_size
    return size or card.sizes[0] if side is None else (side, side)


def _subject(body: ImageRequest, preset: Preset, options: Options, *, edits: bool) -> int | str:
    """A class by index, or a prompt. Where a picture is repainted, no class stands for what is around."""
    text, label = body.prompt, body.class_
    if text is not None and len(text) > options.max_prompt:
        message = f"got a prompt of {len(text)} characters, expected at most {options.max_prompt}"
        raise Refusal(400, message, param="prompt")
    if not preset.classes:
        if label is not None:
            raise Refusal(400, f"{preset.name} draws what a prompt says and takes no class", param="class")
        if text is None or not text.strip():
            raise Refusal(400, f"{preset.name} draws what a prompt says: give one", param="prompt")
        if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise Refusal(400, "got a prompt that is no text: it holds half of a character", param="prompt")
        return text
    if edits and not text and label is None and preset.kind != "raster":
        return -1
    if (text is None) == (label is None):
        raise Refusal(400, f"{preset.name} draws classes: give a class, or the name of one as prompt", param="class")
    found, least = label if text is None else text, 0 if preset.kind == "raster" else -1
    param = "class" if text is None else "prompt"
    if isinstance(found, str) and len(found) > 100:
        raise Refusal(400, f"got a class of {len(found)} characters, expected a name or an index", param=param)
    return _checked(param, values.label, found, preset.names(), preset.classes, least)


def _negative(text: str, preset: Preset, options: Options) -> str:
    """What guidance is against, where a request says it."""
    if text and preset.classes:
        raise Refusal(400, f"{preset.name} draws classes and takes no negative_prompt", param="negative_prompt")
    if len(text) > options.max_prompt:
        message = f"got a negative_prompt of {len(text)} characters, expected at most {options.max_prompt}"
        raise Refusal(400, message, param="negative_prompt")
    return text


def _file(body: ImageRequest) -> dict[str, Any]:
    """The kind of the files, and their quality."""
    kind, quality = body.output_format or "png", body.output_compression
    if kind == "png" and quality not in (None, 100):
        message = "got output_compression for png, which loses nothing: it is of jpeg and webp"
        raise Refusal(400, message, param="output_compression")
    return {"kind": kind.upper(), "quality": None if kind == "png" else quality}


def _partials(body: ImageRequest, options: Options, drawer: Card) -> int:
    """How many pictures of each image on its way are sent."""
    wanted = body.partial_images
    if not body.stream:
        if wanted:
            raise Refusal(400, "got partial_images without stream", param="partial_images")
        return 0
    if body.response_format == "file":
        raise Refusal(400, "got a stream of files: events hold b64_json", param="response_format")
    if wanted is not None and wanted > options.max_partials:
        raise Refusal(
            400, f"got partial_images {wanted}, expected at most {options.max_partials}", param="partial_images"
        )
    if not drawer.sketches:
        if wanted:
            raise Refusal(400, f"{drawer.model} shows no images on their way", param="partial_images")
        return 0
    return min(2, options.max_partials) if wanted is None else wanted
