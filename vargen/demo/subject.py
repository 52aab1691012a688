"""What is drawn, as components of the page: a model, its class or prompt, and a size where it has several."""

import re
from typing import Any

import gradio as gr

from vargen.core import registry
from vargen.demo.studio import Order, Studio
from vargen.models.pocket import LUMINA_SIZES
from vargen.scenes.dataset import captions

SIZES = {"pocket-lumina": [f"{wide}x{high}" for high, wide in LUMINA_SIZES]}


class Subject:
    """Model, class, prompt and size, which belong together."""

    def __init__(self, studio: Studio) -> None:
        first = studio.models[0]
        state = self._state(first)
        self.model = gr.Dropdown(list(studio.models), value=first, label="Model", filterable=False)
        self.label = gr.Dropdown(label="Class", **state["label"])
        self.prompt = gr.Textbox(label="Prompt", lines=2, max_length=studio.limits.prompt, **state["prompt"])
        self.size = gr.Dropdown(label="Size in pixels", filterable=False, **state["size"])
        self.parts = [self.model, self.label, self.prompt, self.size]

    def _state(self, model: str) -> dict[str, dict[str, Any]]:
        """What the parts show for a model."""
        preset, sizes = registry.preset(model), SIZES.get(model, [])
        names = list(preset.names()) or [str(i) for i in range(preset.classes)]
        prompt = captions(1)[0] if preset.scenes else "a lighthouse in a storm, oil on canvas"
        return {
            "label": {"choices": names, "value": names[0] if names else None, "visible": bool(names)},
            "prompt": {"value": prompt, "visible": not names},
            "size": {"choices": sizes, "value": sizes[0] if sizes else None, "visible": bool(sizes)},
        }

    def update(self, model: str) -> list[Any]:
        """What becomes of class, prompt and size when a model is chosen."""
        return [gr.update(**shown) for shown in self._state(model).values()]

    @staticmethod
    def order(given: tuple[Any, ...], method: str, images: Any, seed: Any) -> Order:
        """What the parts' values ask for."""
        model, label, prompt, size = given
        preset = registry.preset(model)
        subject = (label or next(iter(preset.names()), "0")) if preset.classes else prompt
        return order(model, subject, method, images, seed, size if model in SIZES else None)


def order(model: str, subject: Any, method: str, images: Any, seed: Any, size: str | None = None) -> Order:
    """An order as components give it; `size` is width x height. ValueError where a number is missing."""
    if images is None or seed is None:
        raise ValueError("give a seed and a number of images: whole numbers")
    given = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size or "")
    if size and not given:
        raise ValueError(f"got size {size[:20]!r}, expected one such as 96x64: width and height in pixels")
    high_wide = None if given is None else (int(given[2]), int(given[1]))
    return Order(model, str(subject or ""), str(method or ""), images, seed, high_wide)
