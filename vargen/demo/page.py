"""The page: tabs to draw, to race two methods, and to read about them. Built with Gradio; nothing on it is remote."""

from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from vargen.demo import explain, repaint_tab
from vargen.demo.draw_tab import DrawTab
from vargen.demo.guard import Guard
from vargen.demo.history import History
from vargen.demo.race_tab import RaceTab
from vargen.demo.studio import Studio
from vargen.demo.tabs import FrontierTab, api

AGE = (300, 3600)  # seconds: how often finished files are looked through, and when they are deleted
SESSIONS = 500  # pages whose state is kept
INTRO = (
    '<header class="vg-head"><h1>vargen</h1><p>Pictures drawn token by token in a fraction of the forward passes: '
    "watch which forward settles what.</p></header>"
)

HERE = Path(__file__).parent
TITLE = "vargen: pictures drawn in fewer forwards"
# A list that loses the focus closes, and is no stop of its own for Tab; Gradio's own stays open over the next.
CLOSE = """() => {
    document.addEventListener("focusout", ({target}) => {
        const escape = new KeyboardEvent("keydown", {key: "Escape", bubbles: true});
        if (target.role === "combobox") target.dispatchEvent(escape);
    });
    document.addEventListener("keydown", ({key}) => {
        if (key === "Tab") document.querySelectorAll("[role=listbox]").forEach((list) => { list.tabIndex = -1; });
    }, true);
}"""
PROGRAMS = (
    '<p class="vg-foot">For programs: <code>gradio_client.Client(address).predict("pocket-llamagen", "beach", '
    '"sjd-coupled:window=16", 0, 1, api_name="/draw")</code> gives PNG files and the trace.</p>'
)


def theme() -> Any:
    """Gradio's plainest theme in the system's own fonts, so that none is fetched."""
    font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    made = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=font, font_mono=mono, radius_size="lg")
    muted = ("body_text_color_subdued", "block_info_text_color", "block_label_text_color", "block_title_text_color")
    faint = dict.fromkeys((*muted, "input_placeholder_color"), "*neutral_600")
    return made.set(
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        **faint,
        **{f"{name}_dark": "*neutral_300" for name in faint},
    )


def build(studio: Studio) -> gr.Blocks:
    """The page of a studio, with its queue; `launch` serves it."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=AGE) as page:
        gr.HTML(INTRO)
        history = History()
        with gr.Tabs():
            with gr.Tab("Draw"):
                drawing = DrawTab(studio, history)
            with gr.Tab("Race"):
                RaceTab(studio)
            if repaint_tab.models(studio):
                with gr.Tab("Repaint"):
                    repaint_tab.RepaintTab(studio, history)
            with gr.Tab("Results"):
                FrontierTab()
            with gr.Tab("Methods"):
                gr.HTML(explain.page() + PROGRAMS)
        api(studio)
        drawing.connect(page)
    page.queue(max_size=studio.limits.queue, default_concurrency_limit=4, api_open=False)
    return page


def launch(page: gr.Blocks, host: str, port: int) -> str:
    """Begin to serve a page; its address. ValueError where the port is taken."""
    try:
        _, address, _ = _launched(page, host, port)
    except OSError:
        raise ValueError(f"cannot listen on {host}, port {port}: choose another --port") from None
    return address


def _launched(page: gr.Blocks, host: str, port: int) -> Any:
    return page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        theme=theme(),
        css=(HERE / "style.css").read_text(encoding="utf-8"),
        js=CLOSE,
        favicon_path=HERE / "favicon.svg",
        quiet=True,
        share=False,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=1,  # nobody uploads anything
        state_session_capacity=SESSIONS,
        app_kwargs={"middleware": [Middleware(Guard)]},
    )
