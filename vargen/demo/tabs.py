"""The tab of what was measured, and the endpoint for programs."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from vargen.core import registry
from vargen.demo import frontier, handlers
from vargen.demo import options as known
from vargen.demo.parts import ALONE
from vargen.demo.studio import Studio
from vargen.demo.subject import INSTANT, order


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
            part.change(self._show, [self.model, self.speed], [self.plot, self.table], **INSTANT)

    def _show(self, model: str, speed: str) -> tuple[Any, Any]:
        how = frontier.look(model, speed)
        plot = gr.ScatterPlot(frontier.frame(model, speed), x=speed, x_title=frontier.SPEEDS[speed], **how)
        return plot, frontier.table(model, speed)


def said(model: str, text: str) -> dict[str, Any]:
    """Options of a call from the text of a query. ValueError for those that the model does not take."""
    given = dict(parse_qsl(text, keep_blank_values=True))
    if wrong := [name for name in given if name not in known.taken(model)]:
        raise ValueError(registry.unknown("option", wrong[0], known.taken(model)))
    return known.chosen(model, given)


def api(studio: Studio) -> None:
    """The endpoint `/draw` for programs: text in, PNG files and the trace out."""
    with gr.Column(visible=False):
        texts = {"model": studio.models[0], "subject": "", "method": "", "size": "", "options": ""}
        model, subject, method, size, law = (gr.Textbox(value, label=name) for name, value in texts.items())
        seed, images = gr.Number(0, label="seed"), gr.Number(1, label="images")  # a precision would round them
        files, trace = gr.File(label="files", file_count="multiple"), gr.JSON(label="trace")
        go = gr.Button("api")

    def draw(model: str, subject: str, method: str, seed: int, images: int, size: str, options: str) -> Iterator[Any]:
        """Draw `images` pictures of a class or a prompt.

        `method` is a name with its settings, empty for the model's own; `size` is WIDTHxHEIGHT where a model has
        several; `options` are those of a call, as guidance_scale=2.5&top_k=100. Gives PNG files and the trace.
        """
        asked = order(model, subject, method or registry.preset(model).method, images, seed, size, said(model, options))
        yield from handlers.answer(studio, asked, files.GRADIO_CACHE)

    inputs = [model, subject, method, seed, images, size, law]
    go.click(handlers.told(draw), inputs, [files, trace], **ALONE, api_name="draw")
