"""The tab on which a part of a picture is drawn anew: marked with a brush, repainted by a next-scale model."""

import io
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from vargen.core import registry
from vargen.core.png import encode
from vargen.core.specs import ScaleSpec
from vargen.demo import handlers, links, show
from vargen.demo.controls import OptionControls
from vargen.demo.history import History
from vargen.demo.parts import FINE, Judge, Stage, buttons, seed_box, slow_box
from vargen.demo.studio import Order, Studio
from vargen.demo.subject import INSTANT
from vargen.scenes.dataset import HELD_OUT
from vargen.scenes.landscapes import CLASSES, draw

WINDMILL = (6, HELD_OUT + 2)  # a class and a seed: the painted picture that the brush begins with
SURROUNDINGS = ("as what is around it", "-1")
INVITATION = "Mark a part of the picture, and press Repaint: that part is drawn anew, and the rest stays."
CELLS = """<div class="vg-brush" role="application" tabindex="0" style="--side: ${side}"
    aria-label="Brush: drag over the picture to mark what is repainted; with arrows and the space bar by keyboard">
    <img src="${src}" alt="the picture to be repainted" draggable="false">
    <div class="vg-cells">${[...value].map((one) => `<i class="${one === "1" ? "vg-on" : ""}"></i>`).join("")}</div>
</div>"""


def models(studio: Studio) -> list[str]:
    """The models on offer that repaint."""
    return [name for name in studio.models if registry.preset(name).kind == "next-scale"]


class RepaintTab:
    """A picture under a brush, and what becomes of it."""

    def __init__(self, studio: Studio, history: History) -> None:
        self._studio, self._history, self._models = studio, history, models(studio)
        first = self._models[0]
        picture = scene(*WINDMILL)
        with gr.Row(equal_height=False, elem_classes="vg-work"):
            with gr.Column(scale=4, min_width=300):
                self.model = gr.Dropdown(self._models, value=first, label="Model", filterable=False)
                gr.HTML('<p class="vg-brief">Drag over what is to be drawn anew.</p>')
                self.picture = gr.State(picture)
                self.brush = gr.HTML(
                    clean(first),
                    src=shown(picture),
                    side=side_of(first),
                    html_template=CELLS,
                    js_on_load=Path(__file__).with_name("brush.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                )
                with gr.Row():
                    self.clear = gr.Button("Clear the brush", size="sm", min_width=120)
                    self.other = gr.Button("Another picture", size="sm", min_width=120)
                self.label = gr.Dropdown(choices(first), value=SURROUNDINGS[1], label="Repaint")
                with gr.Row():
                    self.slow = slow_box(False)
                    self.seed = seed_box()
                self.buttons = buttons("Repaint")
                self.options = OptionControls(first)
            with gr.Column(scale=7, min_width=300):
                self.stage = Stage("vg-repaint", INVITATION)
                self.files = gr.File(label="PNG", file_count="multiple", interactive=False, visible=False)
                with gr.Accordion("Draw it again: a command, Python", open=False, visible=False) as self.again:
                    copied: dict[str, Any] = {"interactive": False, "buttons": ["copy"]}
                    self.command = gr.Textbox(label="Command", max_lines=6, **copied)
                    self.python = gr.Textbox(label="Python", lines=3, max_lines=20, **copied)
                self.view = history.view("press one to repaint it")
        self._connect()

    def _connect(self) -> None:
        wanted = [self.model, self.picture, self.brush, self.label, self.seed, self.slow, self._history.album]
        outputs = [self.stage.html, self.files, self.stage.said, self.again, self.command, self.python]
        self.stage.connect(
            self.buttons,
            self._run,
            self._valid,
            [*wanted, *self.options.parts],
            [*outputs, *self._history.parts],
        )
        self.clear.click(clean, self.model, self.brush, **INSTANT)
        under = [self.picture, self.brush]
        self.other.click(lambda model: self._under(model, another()), self.model, under, **INSTANT)
        self.model.change(self._rechoose, self.model, [self.label, self.brush, *self.options.parts], **INSTANT)
        self._history.choose(self.view, self._bring, under)

    def _under(self, model: str, picture: Image.Image) -> list[Any]:
        """A picture under the brush."""
        return [picture, gr.HTML(clean(model), src=shown(picture), side=side_of(model))]

    def _bring(self, drawn: handlers.Drawn) -> list[Any]:
        with Image.open(io.BytesIO(drawn.png)) as image:
            return self._under(self._models[0], image.convert("RGB"))

    def _rechoose(self, model: str) -> list[Any]:
        label = gr.update(choices=choices(model), value=SURROUNDINGS[1])
        return [label, gr.HTML(clean(model), side=side_of(model)), *self.options.update(model)]

    def _run(self, *given: Any) -> Iterator[Any]:
        model, picture, cells, label, seed, slow, album = given[:7]
        mask = masked(str(cells), side_of(model))
        options = self.options.chosen(model, given[7:])
        nothing = [gr.update(visible=False), *[gr.skip()] * (2 + len(self._history.parts))]
        if not self._studio.loaded(model):
            yield show.empty(f"Loading {model}…"), gr.skip(), "", *nothing
        pixels = self._studio.pipe(model).pixels
        parts = (
            picture.resize((pixels, pixels), Image.Resampling.LANCZOS),
            mask.resize((pixels, pixels), Image.Resampling.NEAREST),
        )
        method = registry.preset(model).method
        asked = Order(model, str(label), method, 1, seed, options=options, repainted=parts)
        cache = self.files.GRADIO_CACHE
        for stage, files, said, drawn in handlers.draw(self._studio, asked, bool(slow), cache):
            if drawn is None:
                yield stage, files, said, *nothing
                continue
            under = zip(parts, (links.PICTURE, links.MASK), strict=True)
            files["value"] += [save_bytes_to_cache(encode(part, {}), name, cache) for part, name in under]
            again = [gr.update(visible=True), links.command(asked), links.python(asked)]
            yield stage, files, said, *again, *self._history.add(album, drawn)

    def _valid(self, *given: Any) -> list[Any]:
        """Of every field whether it can be drawn."""
        model, seed, options = given[0], given[4], given[7:]
        judge = Judge(self._studio, model)
        return [*[FINE] * 4, judge.field(seed=seed), FINE, FINE, *judge.options(self.options, options)]


def side_of(model: str) -> int:
    """Cells along a side of a model's brush: tokens of its finest scale."""
    spec = registry.preset(model).spec
    assert isinstance(spec, ScaleSpec)
    return spec.sides[-1]


def clean(model: str) -> str:
    """A brush that has marked nothing."""
    return "0" * side_of(model) ** 2


def choices(model: str) -> list[tuple[str, str]]:
    """What a part can be repainted as."""
    preset = registry.preset(model)
    return [SURROUNDINGS, *((name, name) for name in preset.names() or map(str, range(preset.classes)))]


def masked(cells: str, side: int) -> Image.Image:
    """The mask that a brush's cells say, a pixel each: white is repainted. ValueError where nothing is marked."""
    if not re.fullmatch("[01]*", cells) or len(cells) != side**2:
        raise ValueError(f"got a brush of {len(cells)} cells, expected {side**2} of 0 and 1")
    if "1" not in cells:
        raise ValueError("mark a part of the picture with the brush first: drag over it")
    return Image.fromarray(np.array([int(one) * 255 for one in cells], dtype=np.uint8).reshape(side, side))


def scene(label: int, seed: int) -> Image.Image:
    """A painted picture."""
    return Image.fromarray(draw(label, seed).image)


def another() -> Image.Image:
    """Some painted picture."""
    return scene(secrets.randbelow(len(CLASSES)), secrets.randbits(30))


def shown(picture: Image.Image) -> str:
    """A picture as it lies under the brush."""
    return show.data_url(show.enlarged(picture))
