"""The tabs of the page: components, and which of them change when one is used."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vargen.core import registry
from vargen.demo import explain, frontier, handlers, show
from vargen.demo.controls import Controls, first, methods, named, suggested, usual_method
from vargen.demo.limits import MOST_SEED
from vargen.demo.studio import Studio
from vargen.demo.subject import Subject, order

ALONE: dict[str, Any] = {"concurrency_id": "decode", "concurrency_limit": 1}  # one decode at a time, whoever asks
QUIET: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private", "trigger_mode": "once"}
# What follows a choice; on `select`, since `input` of a list comes twice.
INSTANT: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "queue": False,
}  # on `select`: `input` of a list comes twice
SCROLL = """() => {
    const stage = document.getElementById("%s"), top = stage.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) stage.scrollIntoView({behavior: "smooth"});
}"""
RACES = {"raster": ("ar", "sjd-exact:window=16"), "next-scale": ("var", "code:scales=6"), "continuous": ("mar", "disa")}


def seed_box() -> Any:
    """The component that every tab asks for a seed with."""
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=120)


def buttons(verb: str) -> tuple[Any, Any]:
    """Begin, and stop."""
    with gr.Row(elem_classes="vg-buttons"):
        return gr.Button(verb, variant="primary", min_width=140), gr.Button("Stop", variant="stop", min_width=90)


class DrawTab:
    """One decode: its pictures, their maps, their files."""

    def __init__(self, studio: Studio) -> None:
        self._studio, model = studio, studio.models[0]
        method = usual_method(model)
        with gr.Row(equal_height=False, elem_classes="vg-work"):
            with gr.Column(scale=4, min_width=300):
                self.subject = Subject(studio)
                self.method = gr.Dropdown(named(model), value=method, label="Method", filterable=False)
                self.shown = gr.Textbox(f"{model} {method}", visible=False)  # whose settings the panel shows
                self.brief = gr.HTML(explain.brief(method))
                with gr.Accordion("Settings of the method", open=False) as self.box, gr.Row(elem_classes="vg-settings"):
                    self.panel = Controls(model, method, studio.models)
                with gr.Row():
                    self.images = gr.Slider(1, studio.limits.images, 1, step=1, label="Images", min_width=120)
                    self.seed = seed_box()
                self.slow = gr.Checkbox(False, label="Slow motion", info="wait between forwards; not counted as time")
                self.go, self.stop = buttons("Draw")
            with gr.Column(scale=7, min_width=300):
                self.stage = gr.HTML(
                    show.empty("Press Draw: a picture grows here, beside a map of its tokens."), elem_id="vg-draw"
                )
                self.said = gr.HTML("", elem_classes="vg-said")
                self.files = gr.File(label="PNG", file_count="multiple", interactive=False, visible=False)
        self._connect()

    def _connect(self) -> None:
        inputs = [*self.subject.parts, self.method, self.images, self.seed, self.slow, self.shown, *self.panel.parts]
        outputs = [self.stage, self.files, self.said]
        run = handlers.told(self._run)
        self.go.click(None, js=SCROLL % "vg-draw")  # first: Gradio begins one when the other has ended
        drawn = self.go.click(run, inputs, outputs, **ALONE, **QUIET, show_progress_on=self.said)
        self.stop.click(None, cancels=[drawn])
        self.stop.click(lambda: "Stopped.", None, self.said, **INSTANT)
        about = [self.brief, self.box, self.shown, *self.panel.parts]
        model = self.subject.model
        model.select(self._rechoose, model, [*self.subject.parts[1:], self.method, *about], **INSTANT)
        self.method.select(self._about, [model, self.method], about, **INSTANT)
        rule = [self.method, self.panel.part("rule")]
        rule[1].select(self.panel.ruled, rule, self.panel.of_rules, **INSTANT)

    def _run(self, *given: Any) -> Iterator[Any]:
        """Who presses Draw right after a choice may send what the page showed before it: that is not meant."""
        subject, (method, images, seed, slow, shown), rest = given[:4], given[4:9], given[9:]
        model = subject[0]
        method = method if method in methods(model) else usual_method(model)
        spelled = first(model, method)
        if shown == f"{model} {method}":
            spelled = self.panel.spelled(model, method, rest)
        asked = self.subject.order(subject, spelled, images, seed)
        yield from handlers.draw(self._studio, asked, bool(slow), self.files.GRADIO_CACHE)

    def _rechoose(self, model: str) -> list[Any]:
        method = usual_method(model)
        chosen = gr.update(choices=named(model), value=method)
        return [*self.subject.update(model), chosen, *self._about(model, method)]

    def _about(self, model: str, method: str) -> list[Any]:
        has = bool(registry.settings_of(method))
        return [explain.brief(method), gr.update(visible=has), f"{model} {method}", *self.panel.update(model, method)]


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
                self.by = gr.Radio(["forwards", "seconds"], value="forwards", label="Each lane gets as many")
                with gr.Row():
                    self.seed = seed_box()
                    self.slow = gr.Checkbox(True, label="Slow motion", min_width=120)
                self.go, self.stop = buttons("Race")
            with gr.Column(scale=7, min_width=300):
                self.stage = gr.HTML(
                    show.empty("Press Race: both methods draw the same seed, side by side."), elem_id="vg-race"
                )
                self.said = gr.HTML("", elem_classes="vg-said")
                self.slider = gr.ImageSlider(
                    label="Left and right", format="png", type="pil", visible=False, interactive=False, max_height=420
                )
        self._connect()

    def _connect(self) -> None:
        inputs = [*self.subject.parts, self.one, self.two, self.by, self.seed, self.slow]
        outputs = [self.stage, self.slider, self.said]
        run = handlers.told(self._run)
        self.go.click(None, js=SCROLL % "vg-race")  # first: Gradio begins one when the other has ended
        raced = self.go.click(run, inputs, outputs, **ALONE, **QUIET, show_progress_on=self.said)
        self.stop.click(None, cancels=[raced])
        self.stop.click(lambda: "Stopped.", None, self.said, **INSTANT)
        model = self.subject.model
        model.select(self._rechoose, model, [*self.subject.parts[1:], self.one, self.two], **INSTANT)

    def _run(self, *given: Any) -> Iterator[Any]:
        subject, (one, two, by, seed, slow) = given[:4], given[4:]
        asked = (self.subject.order(subject, one, 1, seed), self.subject.order(subject, two, 1, seed))
        yield from handlers.race(self._studio, asked, by, bool(slow))

    def _rechoose(self, model: str) -> list[Any]:
        listed, lanes = suggested(model), RACES[registry.preset(model).kind]
        lanes = [name if name in listed else listed[0] for name in lanes]
        return [*self.subject.update(model), *(gr.update(choices=listed, value=name) for name in lanes)]


class FrontierTab:
    """What was measured of quality and speed."""

    def __init__(self) -> None:
        models, (speed, *_) = frontier.models(), frontier.SPEEDS
        with gr.Row():
            self.model = gr.Dropdown(models, value=models[0], label="Model", filterable=False, min_width=200)
            self.speed = gr.Radio(list(frontier.SPEEDS), value=speed, label="Speed", min_width=200)
        self.plot = gr.ScatterPlot(
            frontier.frame(models[0], speed),
            x=speed,
            y="FID",
            color="family",
            x_title=frontier.SPEEDS[speed],
            y_title="FID, lower is better",
            color_title="method",
            tooltip="all",
            height=380,
            buttons=[],
            **frontier.look(models[0], speed),
        )
        self.table = gr.HTML(frontier.table(models[0], speed))
        for part in (self.model, self.speed):
            part.select(self._show, [self.model, self.speed], [self.plot, self.table], **INSTANT)

    def _show(self, model: str, speed: str) -> tuple[Any, Any]:
        how = frontier.look(model, speed)
        plot = gr.ScatterPlot(frontier.frame(model, speed), x=speed, x_title=frontier.SPEEDS[speed], **how)
        return plot, frontier.table(model, speed)


def api(studio: Studio) -> None:
    """The endpoint `/draw` for programs: text in, PNG files and the trace out."""
    with gr.Column(visible=False):
        texts = {"model": studio.models[0], "subject": "", "method": "", "size": ""}
        model, subject, method, size = (gr.Textbox(value, label=name) for name, value in texts.items())
        seed, images = gr.Number(0, label="seed", precision=0), gr.Number(1, label="images", precision=0)
        files, trace = gr.File(label="files", file_count="multiple"), gr.JSON(label="trace")
        go = gr.Button("api")

    def draw(model: str, subject: str, method: str, seed: int, images: int, size: str) -> Iterator[Any]:
        """Draw `images` pictures of a class or a prompt.

        `method` is a name with its settings, empty for the model's own; `size` is WIDTHxHEIGHT where a model has
        several. Gives PNG files and the trace.
        """
        chosen = method or registry.preset(model).method
        yield from handlers.answer(studio, order(model, subject, chosen, images, seed, size), files.GRADIO_CACHE)

    inputs = [model, subject, method, seed, images, size]
    go.click(handlers.told(draw), inputs, [files, trace], **ALONE, api_name="draw")
