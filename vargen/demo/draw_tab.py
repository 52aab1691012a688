"""The tab on which one decode grows: its pictures, their maps, their files, and words that draw them again."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vargen.core import registry
from vargen.demo import explain, handlers, links, show
from vargen.demo.controls import Controls, OptionControls, first, methods, named, spelled, usual_method
from vargen.demo.history import History
from vargen.demo.parts import FINE, Judge, Stage, buttons, seed_box, slow_box
from vargen.demo.studio import Order, Studio
from vargen.demo.subject import INSTANT, Subject

INVITATION = "Press Draw: a picture grows here, beside a map of its tokens."
# The link of a drawing becomes the page's address.
ADDRESS = """(query) => {
    const link = query ? location.origin + location.pathname + "?" + query : "";
    if (link) history.replaceState(null, "", link);
    return link;
}"""


class DrawTab:
    """One decode."""

    def __init__(self, studio: Studio, history: History) -> None:
        self._studio, self._history, model = studio, history, studio.models[0]
        usual = usual_method(model)
        with gr.Row(equal_height=False, elem_classes="vg-work"):
            with gr.Column(scale=4, min_width=300):
                self.subject = Subject(studio)
                self.method = gr.Dropdown(named(model), value=usual, label="Method", filterable=False)
                self.shown = gr.Textbox(f"{model} {usual}", visible=False)  # whose settings the panel shows
                self.brief = gr.HTML(explain.brief(usual))
                with gr.Row():
                    self.images = gr.Slider(1, studio.limits.images, 1, step=1, label="Images", min_width=120)
                    self.seed = seed_box()
                self.slow = slow_box(False)
                self.buttons = buttons("Draw")
                with gr.Accordion("Settings of the method", open=False) as self.box, gr.Row(elem_classes="vg-settings"):
                    self.panel = Controls(model, usual, studio.models)
                self.options = OptionControls(model)
            with gr.Column(scale=7, min_width=300):
                self.stage = Stage("vg-draw", INVITATION)
                self.files = gr.File(label="PNG", file_count="multiple", interactive=False, visible=False)
                self._words()
                self.view = history.view("press one for its settings")
                gr.HTML(explain.glossary())

    def _words(self) -> None:
        """What draws it again elsewhere."""
        self.query = gr.Textbox(visible=False)
        copied: dict[str, Any] = {"interactive": False, "buttons": ["copy"]}
        with gr.Accordion("Draw it again: a link, a command, Python", open=False, visible=False) as self.again:
            self.link = gr.Textbox(label="Link", elem_id="vg-link", info="restores all settings", max_lines=5, **copied)
            self.command = gr.Textbox(label="Command", elem_id="vg-command", max_lines=6, **copied)
            self.python = gr.Textbox(label="Python", elem_id="vg-python", lines=3, max_lines=20, **copied)

    @property
    def _outputs(self) -> list[Any]:
        last = [self.again, self.query, self.command, self.python]
        return [self.stage.html, self.files, self.stage.said, *last, *self._history.parts]

    def connect(self, page: gr.Blocks) -> None:
        """Connect its parts, when all views of the history are there."""
        wanted = [*self.subject.parts, self.method, self.images, self.seed, self.slow, self.shown]
        inputs = [*wanted, self._history.album, *self.panel.parts, *self.options.parts]
        drawn = self.stage.connect(self.buttons, self._run, self._valid, inputs, self._outputs)
        drawn.then(None, self.query, self.link, js=ADDRESS)
        about, model = [self.brief, self.box, self.shown, *self.panel.parts], self.subject.model
        follow = [*self.subject.follow, self.method, *about, *self.options.parts]
        model.change(self._rechoose, [model, self.shown], follow, **INSTANT)
        self.method.change(self._about, [model, self.method, self.shown], about, **INSTANT)
        rule = [self.method, self.panel.part("rule")]
        rule[1].change(self.panel.ruled, rule, self.panel.of_rules, **INSTANT)
        restored = [model, *follow, self.images, self.seed]
        self._history.choose(self.view, self._bring_back, [*restored, self.stage.html, self.stage.said, self.files])
        page.load(self._from_link, None, [*restored, self.stage.html], **INSTANT)

    def _split(self, given: tuple[Any, ...]) -> tuple[tuple, tuple, tuple, tuple]:
        """The values of what is drawn, of what stands beside it, of the method's settings, and of the options."""
        at = 10 + len(self.panel.parts)
        return given[:4], given[4:10], given[10:at], given[at:]

    def _method(self, model: str, method: str, shown: str, settings: tuple[Any, ...]) -> str:
        """Who presses Draw right after a choice may send what the page showed before it: that is not meant."""
        method = method if method in methods(model) else usual_method(model)
        return self.panel.spelled(model, method, settings) if shown == f"{model} {method}" else first(model, method)

    def _run(self, *given: Any) -> Iterator[Any]:
        subject, (method, images, seed, slow, shown, album), settings, options = self._split(given)
        by = self._method(subject[0], method, shown, settings)
        chosen = self.options.chosen(subject[0], options)
        asked = self.subject.order(subject, by, images, seed, chosen)
        nothing = [gr.update(visible=False), *[gr.skip()] * (len(self._outputs) - 4)]
        for *shown_now, drawn in handlers.draw(self._studio, asked, bool(slow), self.files.GRADIO_CACHE):
            if drawn is None:
                yield [*shown_now, *nothing]
                continue
            words = [gr.update(visible=True), links.query(asked), links.command(asked), links.python(asked)]
            yield [*shown_now, *words, *self._history.add(album, drawn)]

    def _valid(self, *given: Any) -> list[Any]:
        """Of every field whether it can be drawn."""
        (model, _, prompt, _), (method, images, seed, _, shown, _), settings, options = self._split(given)
        judge, preset = Judge(self._studio, model), registry.preset(model)
        subject = [FINE, FINE, FINE if preset.classes else judge.field(subject=prompt), FINE]
        beside = [FINE, judge.field(images=images), judge.field(seed=seed), FINE, FINE, FINE]
        known = shown == f"{model} {method}"
        alone = [{name: value} for name, value in zip(self.panel.names, settings, strict=True)]
        of_method = [judge.field(method=spelled(model, method, one)) if known else FINE for one in alone]
        return [*subject, *beside, *of_method, *judge.options(self.options, options)]

    def _rechoose(self, model: str, shown: str) -> Any:
        """What follows a model; nothing where it has followed already."""
        if shown.split(" ")[0] == model:
            return gr.skip()
        usual = usual_method(model)
        chosen = gr.update(choices=named(model), value=usual)
        return [*self.subject.update(model), chosen, *self._about(model, usual, ""), *self.options.update(model)]

    def _about(self, model: str, method: str, shown: str) -> Any:
        """What follows a method; nothing where it has followed already, or is none of the model's."""
        if shown == f"{model} {method}" or method not in methods(model):
            return gr.skip()
        has = bool(registry.settings_of(method))
        return [explain.brief(method), gr.update(visible=has), f"{model} {method}", *self.panel.update(model, method)]

    def _restored(self, asked: Order) -> list[Any]:
        """All settings of an order that was given before."""
        model, method = asked.model, asked.method.split(":")[0]
        brief, box, shown, *_ = self._about(model, method, "")
        about = [brief, box, shown, *self.panel.restore(asked)]
        chosen = gr.update(choices=named(model), value=method)
        restored = [*self.subject.restore(asked), chosen, *about, *self.options.update(model, dict(asked.options))]
        return [*restored, asked.images, asked.seed]

    def _bring_back(self, drawn: handlers.Drawn) -> list[Any]:
        if drawn.order.repainted:
            told = "That one was repainted: its picture and mask cannot be brought back here."
            return [*[gr.skip()] * self._count, show.kept(drawn.png, drawn.said), told, gr.update(visible=False)]
        told = "Drawn before; its settings are back, and Draw draws it again."
        return [*self._restored(drawn.order), show.kept(drawn.png, drawn.said), told, gr.update(visible=False)]

    @property
    def _count(self) -> int:
        """How many parts are restored."""
        return len(self.subject.follow) + len(self.panel.parts) + len(self.options.parts) + 7

    def _from_link(self, request: gr.Request) -> Any:
        """The settings that the page's address has."""
        said = {name: value for name, value in request.query_params.items() if not name.startswith("__")}
        if not said:
            return gr.skip()
        try:
            asked = links.parse(said, self._studio.models[0])
            self._studio.check(asked)
            return [*self._restored(asked), gr.skip()]
        except ValueError as error:
            return [*[gr.skip()] * self._count, show.refused(f"The link cannot be followed: {error}.")]
