"""The tab on which two methods draw the same seed side by side."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vargen.core import registry
from vargen.demo import handlers
from vargen.demo.controls import OptionControls, suggested
from vargen.demo.parts import FINE, Judge, Stage, buttons, seed_box, slow_box
from vargen.demo.studio import Studio
from vargen.demo.subject import INSTANT, Subject

INVITATION = "Press Race: both methods draw the same seed, side by side."
RACES = {"raster": ("ar", "sjd-exact:window=16"), "next-scale": ("var", "code:scales=6"), "continuous": ("mar", "disa")}


class RaceTab:
    """Two decodes side by side, and their pictures under a slider."""

    def __init__(self, studio: Studio) -> None:
        self._studio, first = studio, studio.models[0]
        listed, lanes = suggested(first), RACES[registry.preset(first).kind]
        free: dict[str, Any] = {"allow_custom_value": True, "info": "settings follow the name after colons"}
        with gr.Row(equal_height=False, elem_classes="vg-work"):
            with gr.Column(scale=4, min_width=300):
                self.subject = Subject(studio)
                self.one = gr.Dropdown(listed, value=lanes[0], label="Left", **free)
                self.two = gr.Dropdown(listed, value=lanes[1], label="Right", **free)
                with gr.Row():
                    self.by = gr.Radio(
                        ["forwards", "seconds"], value="forwards", label="Each gets as many", min_width=160
                    )
                    self.seed = seed_box()
                self.slow = slow_box(True)
                self.buttons = buttons("Race")
                self.options = OptionControls(first)
            with gr.Column(scale=7, min_width=300):
                self.stage = Stage("vg-race", INVITATION)
                self.slider = gr.ImageSlider(
                    label="Left and right", format="png", type="pil", visible=False, interactive=False, max_height=420
                )
        inputs = [*self.subject.parts, self.one, self.two, self.by, self.seed, self.slow, *self.options.parts]
        outputs = [self.stage.html, self.slider, self.stage.said]
        self.stage.connect(self.buttons, self._run, self._valid, inputs, outputs)
        follow = [*self.subject.follow, self.one, self.two, *self.options.parts]
        self.subject.model.change(self._rechoose, self.subject.model, follow, **INSTANT)

    def _run(self, *given: Any) -> Iterator[Any]:
        subject, (one, two, by, seed, slow), options = given[:4], given[4:9], given[9:]
        chosen = self.options.chosen(subject[0], options)
        left, right = (self.subject.order(subject, name, 1, seed, chosen) for name in (one, two))
        yield from handlers.race(self._studio, (left, right), by, bool(slow))

    def _valid(self, *given: Any) -> list[Any]:
        """Of every field whether it can be drawn."""
        (model, _, prompt, _), (one, two, _, seed, _), options = given[:4], given[4:9], given[9:]
        judge, preset = Judge(self._studio, model), registry.preset(model)
        subject = [FINE, FINE, FINE if preset.classes else judge.field(subject=prompt), FINE]
        lanes = [judge.field(method=str(name or "")) for name in (one, two)]
        return [*subject, *lanes, FINE, judge.field(seed=seed), FINE, *judge.options(self.options, options)]

    def _rechoose(self, model: str) -> list[Any]:
        listed, lanes = suggested(model), RACES[registry.preset(model).kind]
        lanes = [name if name in listed else listed[0] for name in lanes]
        both = (gr.update(choices=listed, value=name) for name in lanes)
        return [*self.subject.update(model), *both, *self.options.update(model)]
