"""From a request's body to an order: everything that can be refused is refused here, before it joins the queue."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vargen.core import registry
from vargen.core.preset import LAW, Preset, Recipe
from vargen.pipelines import request, values
from vargen.server.errors import Refusal
from vargen.server.options import Options
from vargen.server.orders import Card, Order
from vargen.server.schema import ImageRequest

WINDOW = 16  # of methods whose window is auto: that choice hangs on the clock, and would not repeat
# The rounding of a batch hardly ever turns a draw of `sjd-exact` over; docs/serving.md has figures.
USUAL = {"raster": f"sjd-exact:window={WINDOW}"}
MOST = {"window": 128, "length": 64, "drafts": 64, "ahead": 64}  # what one forward may be made to hold
MOST_OTHERS = 1024


def read(body: ImageRequest, cards: Mapping[str, Card], options: Options) -> Order:
    """The order that a body asks for. Refusal names the field that is wrong."""
    name = options.names[0] if body.model is None else body.model
    if name not in cards:
        message = registry.unknown("model", name[:100], list(cards))
        raise Refusal(404, message, param="model", code="model_not_found")
    card, preset, count = cards[name], options.presets[name], body.n or 1
    if count > options.most_images:
        raise Refusal(400, f"got n {count}, expected at most {options.most_images}", param="n")
    recipe = _checked("preset", preset.choose, body.preset)
    law: dict[str, Any] = {key: getattr(body, key) for key in LAW}
    method = _checked("method", _method, body.method, law, recipe, preset, card)
    size, image_size = _checked("size", _size, body.size, card, recipe)
    high, wide = _pixels(size, image_size, card, recipe)
    if count * high * wide > options.max_pixels:
        raise Refusal(
            400, f"got {count} images of {wide}x{high}, expected {options.max_pixels} pixels at most", param="n"
        )
    subject = _subject(body, preset, options)
    first = secrets.randbits(32) if body.seed is None else body.seed
    given = tuple((key, value) for key, value in law.items() if value is not None)
    order = Order(name, method, body.preset, given, size, image_size, subject, tuple(values.seeds(count, first, None)))
    return replace(order, partials=_partials(body, options))


def said_size(order: Order, cards: Mapping[str, Card]) -> str:
    """The size of an order's images, WIDTHxHEIGHT."""
    recipe = registry.preset(order.model).choose(order.preset)
    high, wide = _pixels(order.size, order.image_size, cards[order.model], recipe)
    return f"{wide}x{high}"


def usual(preset: Preset) -> str:
    """The method that a model is drawn with unless another is asked for: one that repeats itself."""
    return USUAL.get(preset.kind, preset.method)


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
    if text is not None and (not text.isascii() or not text.isprintable() or " " in text):
        raise ValueError("got a method with characters that no method has, expected such as sjd-coupled:window=16")
    name, *parts = (text or usual(preset)).split(":")
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


def _size(text: str | None, card: Card, recipe: Recipe) -> tuple[tuple[int, int] | None, int | None]:
    """Height and width where the model has several, and pixels a side to resize to. ValueError names the sizes."""
    if text is None or text == "auto":
        return None, None
    wide, high = map(int, text.split("x"))
    if (high, wide) in card.sizes:
        size = (high, wide) if len(card.sizes) > 1 else None
        return size, high if recipe.image_size is not None else None
    if high == wide == recipe.image_size:
        return None, None
    raise ValueError(f"{card.model} draws no {text}; its sizes: {', '.join(f'{w}x{h}' for h, w in card.sizes)}")


def _pixels(size: tuple[int, int] | None, image_size: int | None, card: Card, recipe: Recipe) -> tuple[int, int]:
    side = recipe.image_size if image_size is None else image_size
    return size or card.sizes[0] if side is None else (side, side)


def _subject(body: ImageRequest, preset: Preset, options: Options) -> int | str:
    """A class by index, or a prompt."""
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
    if (text is None) == (label is None):
        raise Refusal(400, f"{preset.name} draws classes: give a class, or the name of one as prompt", param="class")
    found, least = label if text is None else text, 0 if preset.kind == "raster" else -1
    param = "class" if text is None else "prompt"
    if isinstance(found, str) and len(found) > 100:
        raise Refusal(400, f"got a class of {len(found)} characters, expected a name or an index", param=param)
    return _checked(param, values.label, found, preset.names(), preset.classes, least)


def _partials(body: ImageRequest, options: Options) -> int:
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
    return min(2, options.max_partials) if wanted is None else wanted
