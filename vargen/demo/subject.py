"""What is drawn, as components of the page: a model, its class or prompt, and a size where it has several."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import gradio as gr

from vargen.core import registry
from vargen.demo.studio import Order, Studio
from vargen.models.pocket import LUMINA_SIZES
from vargen.scenes.dataset import captions

EXAMPLES = 6
PROMPTS = ("a lighthouse in a storm, oil on canvas", "a fox asleep in autumn leaves", "a street in Lisbon at dawn")
# What follows a choice. On `change`: `select` is silent when a list is left by keyboard, `input` comes twice.
INSTANT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
SIZES = {"pocket-lumina": [f"{wide}x{high}" for high, wide in LUMINA_SIZES]}


@cache
def examples(model: str) -> list[str]:
    """Prompts to begin with."""
    return captions(EXAMPLES) if registry.preset(model).scenes else list(PROMPTS)


class Subject:
    """Model, class, prompt with examples, and size, which belong together. `order` is made of `parts`."""

    def __init__(self, studio: Studio) -> None:
        first = studio.models[0]
        state = self._state(first)
        self.model = gr.Dropdown(list(studio.models), value=first, label="Model", filterable=False)
        self.label = gr.Dropdown(label="Class", **state["label"])
        self.prompt = gr.Textbox(label="Prompt", lines=2, max_length=studio.limits.prompt, **state["prompt"])
        self.size = gr.Dropdown(label="Size in pixels", filterable=False, **state["size"])
        self.examples = gr.Dataset(
            label="Example prompts", components=[self.prompt], type="values", **state["examples"]
        )
        self.examples.click(lambda row: row[0], self.examples, self.prompt, **INSTANT)
        self.parts = [self.model, self.label, self.prompt, self.size]
        self.follow = [*self.parts[1:], self.examples]  # what changes with the model

    def _state(self, model: str) -> dict[str, dict[str, Any]]:
        """What the parts that follow show for a model."""
        preset, sizes = registry.preset(model), SIZES.get(model, [])
        names = list(preset.names()) or [str(i) for i in range(preset.classes)]
        prompts = examples(model)
        return {
            "label": {"choices": names, "value": names[0] if names else None, "visible": bool(names)},
            "prompt": {"value": prompts[0], "visible": not names},
            "size": {"choices": sizes, "value": sizes[0] if sizes else None, "visible": bool(sizes)},
            "examples": {"samples": [[prompt] for prompt in prompts], "visible": not names},
        }

    def update(self, model: str) -> list[Any]:
        """What becomes of `follow` when a model is chosen."""
        return [gr.update(**shown) for shown in self._state(model).values()]

    def restore(self, asked: Order) -> list[Any]:
        """What becomes of the model and of `follow` for an order that was given before."""
        state = self._state(asked.model)
        state["label" if registry.preset(asked.model).classes else "prompt"]["value"] = asked.subject
        if asked.size:
            state["size"]["value"] = "{1}x{0}".format(*asked.size)
        return [gr.update(value=asked.model), *(gr.update(**shown) for shown in state.values())]

    @staticmethod
    def order(given: tuple[Any, ...], method: str, images: Any, seed: Any, options: Mapping[str, Any]) -> Order:
        """What the parts' values ask for."""
        model, label, prompt, size = given
        preset = registry.preset(model)
        subject = (label or next(iter(preset.names()), "0")) if preset.classes else prompt
        return order(model, subject, method, images, seed, size if model in SIZES else None, options)


def order(
    model: str,
    subject: Any,
    method: str,
    images: Any,
    seed: Any,
    size: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Order:
    """An order as components give it; `size` is width x height. ValueError where a number is missing."""
    if images is None or seed is None:
        raise ValueError("give a seed and a number of images: whole numbers")
    given = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size or "")
    if size and not given:
        raise ValueError(f"got size {size[:20]!r}, expected one such as 96x64: width and height in pixels")
    high_wide = None if given is None else (int(given[2]), int(given[1]))
    return Order(model, str(subject or ""), str(method or ""), images, seed, high_wide, options or {})
