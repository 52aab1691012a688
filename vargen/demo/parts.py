"""What the tabs have in common: components, how their events run, and bad values said at their fields."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from vargen.core import registry
from vargen.demo import show
from vargen.demo.handlers import staged
from vargen.demo.studio import Order, Studio

ALONE: dict[str, Any] = {"concurrency_id": "decode", "concurrency_limit": 1}  # one decode at a time, whoever asks
# Until the first picture the stage shows who else waits in the queue, and for how long.
RUNNING: dict[str, Any] = {"show_progress": "full", "api_visibility": "private", "trigger_mode": "once", **ALONE}
SCROLL = """() => {
    const stage = document.getElementById("%s"), top = stage.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) stage.scrollIntoView({behavior: "smooth"});
}"""
STOPPED = '(stage) => [stage.includes("vg-waiting") ? %r : stage, "Stopped."]'
RANDOM = "() => Math.floor(Math.random() * 2 ** 32)"


def seed_box() -> Any:
    """The component that every tab asks for a seed with, and a button that draws one."""
    draw = gr.Button("Random", render=False)
    seed = gr.Number(0, label="Seed", min_width=120, buttons=[draw])
    draw.click(None, None, seed, js=RANDOM)
    return seed


def slow_box(usual: bool) -> Any:
    """Whether a decode waits between forwards."""
    return gr.Checkbox(usual, label="Slow motion", info="waits between forwards; not counted as time", min_width=160)


def buttons(verb: str) -> tuple[Any, Any]:
    """Begin, and stop."""
    with gr.Row(elem_classes="vg-buttons"):
        return gr.Button(verb, variant="primary", min_width=140), gr.Button("Stop", variant="stop", min_width=90)


class Stage:
    """Where a tab's pictures grow, and a line of text under it."""

    def __init__(self, name: str, invitation: str) -> None:
        self.name, self._start = name, show.empty(invitation)
        self.html = gr.HTML(self._start, elem_id=name, elem_classes="vg-place")
        self.said = gr.HTML("", elem_classes="vg-said")

    def connect(
        self, buttons: tuple[Any, Any], run: Callable, valid: Callable, inputs: list[Any], outputs: list[Any]
    ) -> Any:
        """Let one of the buttons begin a run where every field is `valid`, and the other end it. See `staged`."""
        go, stop = buttons
        go.click(None, js=SCROLL % self.name)  # first: Gradio begins one when the other has ended
        told = staged(run, len(outputs) - 3)
        begun = go.click(told, inputs, outputs, validator=valid, show_progress_on=self.html, **RUNNING)
        stop.click(None, self.html, [self.html, self.said], js=STOPPED % self._start, cancels=[begun])
        return begun


class Judge:
    """Says of each field whether an order that differs from the usual one in it alone would be drawn."""

    def __init__(self, studio: Studio, model: str) -> None:
        self._studio, preset = studio, registry.preset(model)
        subject = "0" if preset.classes else "a boat"
        self._usual = {"model": model, "subject": subject, "method": preset.method, "images": 1, "seed": 0}

    def field(self, **said: Any) -> Any:
        """Of a field that says so."""
        return self.read(lambda: said)

    def read(self, said: Callable[[], dict[str, Any]]) -> Any:
        """Of a field that has first to be read."""
        try:
            self._studio.check(Order(**self._usual | said()))
        except ValueError as error:
            return gr.validate(False, str(error))
        return FINE

    def options(self, panel: Any, values: tuple[Any, ...]) -> list[Any]:
        """Of each of the options of a call."""
        model = self._usual["model"]
        return [
            self.read(lambda at=at: {"options": panel.one(model, at, values[at])}) for at in range(len(panel.names))
        ]


FINE = gr.validate(True, "")
