"""The demo's page, served for tests."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vargen.demo import page as pages
from vargen.demo.limits import Limits
from vargen.demo.studio import Studio

DRAWN = "() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
LONG = 300.0  # seconds: more than anything takes on busy cores


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[Studio, str]]:
    """A studio, and the address of its page, whose files are kept in `folder`."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    studio = Studio(limits=Limits(queue=3, seconds=2 * LONG), device="cpu")
    page = pages.build(studio)
    try:
        yield studio, pages.launch(page, "127.0.0.1", free_port()).rstrip("/")
    finally:
        page.close(verbose=False)
        del os.environ["GRADIO_TEMP_DIR"]


def waited(true: Callable[[], bool], seconds: float = LONG) -> float:
    """How long it took until `true()`."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, "it never came true"
        time.sleep(0.01)
    return time.monotonic() - start


def enter(field: Any, text: str) -> None:
    """Type into a field key by key, as hands do, until it holds the text: one that was just unfolded may forget it."""
    while field.input_value() != text:
        field.fill("")
        field.press_sequentially(text, delay=20)
        field.blur()
