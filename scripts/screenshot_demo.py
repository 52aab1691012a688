"""Take the pictures of the demo that the README shows: python scripts/screenshot_demo.py. Needs Chromium, Playwright.

Serves the demo, draws in slow motion, and writes docs/demo-light.png, demo-dark.png, demo-repaint.png, demo-phone.png.
"""

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from vargen.commands.main import guarded
from vargen.core.atomic import write_atomically

FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
MOST = 240_000
PATIENCE = 300_000  # milliseconds: on a busy machine a decode takes long
DOCS = Path(__file__).parent.parent / "docs"


def save(shot: bytes, path: Path) -> None:
    """Write a screenshot, in 256 colours where it would be larger than `MOST` bytes."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").save(out, format="PNG", optimize=True)
        if out.tell() > MOST:
            out = io.BytesIO()
            image.convert("RGB").quantize(256).save(out, format="PNG", optimize=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(out.getvalue()))


def draw(page: Any, settled: int) -> None:
    """Begin a slow decode, and wait until about so many tokens are settled."""
    page.get_by_label("Slow motion").first.check()
    page.get_by_role("button", name="Draw", exact=True).click()
    tile = "document.querySelector('#vg-draw .vg-tile:last-child dd')?.firstChild.textContent"
    reached = f"Number({tile} ?? 0) >= {settled}"
    page.wait_for_function(reached)


def light(page: Any) -> bytes:
    """A decode on its way."""
    draw(page, 150)
    return page.screenshot()


def dark(page: Any) -> bytes:
    """A race that is won."""
    page.get_by_role("tab", name="Race").click()
    page.get_by_role("button", name="Race", exact=True).click()
    page.locator("#vg-race .vg-lane header b").first.wait_for()
    return page.screenshot()


def repaint(page: Any) -> bytes:
    """A picture of which a part was drawn anew."""
    page.get_by_role("tab", name="Repaint").click()
    box = page.locator(".vg-brush").bounding_box()
    for row in (0.34, 0.5):
        page.mouse.move(box["x"] + 0.28 * box["width"], box["y"] + row * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + row * box["height"], steps=8)
        page.mouse.up()
    page.get_by_role("button", name="Repaint", exact=True).click()
    page.get_by_text("Drawn by").wait_for()
    page.evaluate("scrollTo(0, 0)")
    return page.screenshot()


def phone(page: Any) -> bytes:
    """A decode on its way, the whole page."""
    draw(page, 150)
    return page.screenshot(full_page=True)


def command(argv: list[str]) -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder to write to")
    parser.add_argument("--port", type=int, default=7899, help="port to serve the demo on meanwhile")
    options = parser.parse_args(argv)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise ValueError("no browser is installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    from vargen.demo.limits import Limits
    from vargen.demo.page import build, launch
    from vargen.demo.studio import Studio

    blocks = build(Studio(limits=Limits(seconds=PATIENCE / 1000)))
    url = launch(blocks, "127.0.0.1", options.port)
    views = (
        ("light", light, 1280, 900),
        ("dark", dark, 1280, 900),
        ("repaint", repaint, 1280, 1000),
        ("phone", phone, 390, 844),
    )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS.split())
        for name, take, width, height in views:
            scheme: Any = "dark" if name == "dark" else "light"
            page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.set_default_timeout(PATIENCE)
            page.goto(url)
            page.get_by_role("button", name="Draw", exact=True).wait_for()
            save(take(page), options.out / f"demo-{name}.png")
            page.close()
        chromium.close()
    blocks.close(verbose=False)


if __name__ == "__main__":
    guarded(command)
