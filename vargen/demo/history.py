"""What was drawn on this page since it was opened, newest first: small pictures that bring their settings back."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from vargen.demo import show
from vargen.demo.handlers import Drawn
from vargen.demo.subject import INSTANT

MOST = 12
CHOOSE = """element.addEventListener("click", (event) => {
    const one = event.target.closest("[data-at]");
    if (one) trigger("select", {at: Number(one.dataset.at)});
});"""


class History:
    """The pictures of a session, and views of them on several tabs."""

    def __init__(self) -> None:
        self.album = gr.State([])
        self._views: list[tuple[Any, str]] = []

    def view(self, hint: str) -> Any:
        """A strip of the pictures; `hint` says what comes of choosing one."""
        made = gr.HTML(strip([], hint), js_on_load=CHOOSE)
        self._views.append((made, hint))
        return made

    @property
    def parts(self) -> list[Any]:
        """What changes when something is drawn."""
        return [self.album, *(view for view, _ in self._views)]

    def add(self, album: list[Drawn], drawn: Drawn) -> list[Any]:
        """What becomes of `parts`."""
        kept = [drawn, *album][:MOST]
        return [kept, *(strip(kept, hint) for _, hint in self._views)]

    def choose(self, view: Any, run: Callable[[Drawn], list[Any]], outputs: list[Any]) -> None:
        """Let a choice in a view `run`."""

        def chosen(event: gr.EventData, album: list[Drawn]) -> Any:
            at = event._data["at"] if isinstance(event._data, dict) else None
            return run(album[at]) if isinstance(at, int) and 0 <= at < len(album) else gr.skip()

        view.select(chosen, [self.album], outputs, **INSTANT)


def strip(album: list[Drawn], hint: str) -> str:
    """HTML of the pictures as buttons."""
    if not album:
        return ""
    parts = [
        f'<button type="button" data-at="{at}" title="{escape(one.said)}, {escape(one.order.method)}">'
        f"{show.thumbnail(one.png, one.said)}</button>"
        for at, one in enumerate(album)
    ]
    head = f"<h2>Drawn before <small>{escape(hint)}</small></h2>"
    return f'<div class="vg-history">{head}<div>{"".join(parts)}</div></div>'
