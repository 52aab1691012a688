"""`vargen demo` and scripts/demo.py: a page to play with in the browser, on models that ship with the package."""

import dataclasses
import os
import sys

from vargen.commands.flags import Parser

WORDS = {
    "images": "most images of one drawing",
    "pixels": "most pixels of one drawing, of all its images together",
    "prompt": "most characters of a prompt",
    "seconds": "most seconds that a drawing may take",
    "queue": "most visitors that wait; one more is told to come again",
}


def parser() -> Parser:
    """The flags, those of `Limits` among them."""
    made = Parser(prog="vargen demo", description="Open a page to draw with models that ship, and to watch them draw.")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one of the machine")
    made.add_argument("--port", type=int, default=7860, help="port to listen on")
    made.add_argument("--model", action="append", help="a model to offer; repeat for several (default: all that ship)")
    made.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    for name, (kind, default) in _limits().items():
        made.add_argument(f"--max-{name}", type=kind, default=default, help=WORDS[name])
    return made


def _limits() -> dict[str, tuple[type, float]]:
    from vargen.demo.limits import Limits

    return {name: (type(value), value) for name, value in dataclasses.asdict(Limits()).items()}


def command(argv: list[str]) -> None:
    """Serve the page until Ctrl-C."""
    options = parser().parse_args(argv)
    if not 1 <= options.port <= 65535:
        raise ValueError(f"got --port {options.port}, expected 1 to 65535")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ValueError("the demo needs Gradio: pip install 'vargen[demo]'") from None
    from vargen.demo.limits import Limits
    from vargen.demo.page import build, launch
    from vargen.demo.studio import POCKET, Studio
    from vargen.pipelines.loading import find_device

    find_device(options.device)
    limits = Limits(**{name: getattr(options, f"max_{name}") for name in _limits()})
    studio = Studio(tuple(dict.fromkeys(options.model or POCKET)), limits, device=options.device)
    page = build(studio)
    address = launch(page, options.host, options.port)
    print(f"vargen: {address} until Ctrl-C", file=sys.stderr, flush=True)
    page.block_thread()
