"""The demo's page in headless Chromium, as a visitor has it."""

import re
import shutil
import threading
import time

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo is an extra: pip install 'vargen[demo]'")

from demo_served import enter, serving, waited

from vargen.demo.studio import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
LONG = 60_000  # milliseconds: far more than anything takes on busy cores
REFUSED = "status of 422"  # what a browser writes where a field is refused
DRAW = "#vg-draw"
RACE = "#vg-race"
TABS = ("Draw", "Race", "Repaint", "Results", "Methods")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("gradio")) as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    if BROWSER is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install 'vargen[dev]'")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, served):
    """Opens the page; at the end nothing may have been asked of anybody else, and no error written."""
    studio, url = served
    outside, errors, opened = [], [], []

    def open_page(width: int = 1280, height: int = 900, scheme: str = "light", query: str = ""):
        page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.set_default_timeout(LONG)
        page.on("request", lambda r: r.url.startswith((url, "data:", "blob:")) or outside.append(r.url))
        page.on("console", lambda m: m.type == "error" and REFUSED not in m.text and errors.append(m.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/{query}")
        page.get_by_role("button", name="Draw", exact=True).wait_for()
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert not outside
    assert not errors
    waited(lambda: not studio.running)


def press(page, name: str, tab: int = 0) -> None:
    page.get_by_role("button", name=name, exact=True).nth(tab).click()


def choose(page, label: str, option: str, tab: int = 0) -> None:
    page.get_by_label(label, exact=True).nth(tab).click()
    page.get_by_role("option", name=option, exact=True).click()


def watch(page, stage: str) -> None:
    """Keep every picture and map that appears on a stage."""
    page.evaluate(
        """(stage) => {
            window.pictures = new Set(); window.maps = new Set();
            const look = () => {
                document.querySelectorAll(stage + " img").forEach((one) => window.pictures.add(one.src));
                document.querySelectorAll(stage + " svg.vg-map").forEach((one) => window.maps.add(one.ariaLabel));
            };
            new MutationObserver(look).observe(document.querySelector(stage), {childList: true, subtree: true});
        }""",
        stage,
    )


def test_a_picture_grows_beside_its_map_and_ends_as_png(visit, tmp_path):
    page = visit()
    watch(page, DRAW)
    page.get_by_label("Slow motion").first.check()
    press(page, "Draw")
    page.get_by_text("Drawn by sjd-exact:window=16 in").wait_for()
    assert page.evaluate("window.pictures.size") >= 4  # three on the way, and the last
    maps = page.evaluate("[...window.maps]")
    counts = [tuple(map(int, re.findall(r"\d+", said))) for said in maps]
    assert counts == sorted(counts, key=lambda each: each[1])
    assert len(counts) >= 4
    assert any(0 < drafts < 16 for _, _, drafts in counts)
    assert counts[-1] == (256, 256, 0)
    assert page.locator(f"{DRAW} .vg-map path title").count() == page.locator(f"{DRAW} .vg-map path").count() - 1
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("KB")).first.click()
    download.value.save_as(tmp_path / "beach.png")
    with Image.open(tmp_path / "beach.png") as image:
        assert (image.format, image.size, image.info["seed"]) == ("PNG", (64, 64), "0")
        assert image.info["method"] == "sjd-exact:window=16"


def test_settings_are_those_of_the_method_and_count(visit):
    page = visit()
    choose(page, "Method", "sjd-coupled · exact")
    page.get_by_text("Settings of the method").click()
    page.get_by_label("coupling").wait_for()
    assert not page.get_by_label("length").is_visible()
    assert not page.get_by_label("tolerance").is_visible()
    choose(page, "rule", "cool")
    page.get_by_label("tolerance").wait_for()
    choose(page, "Method", "speculative · exact")
    enter(page.get_by_label("length"), "3")
    assert not page.get_by_label("coupling").is_visible()
    press(page, "Draw")
    page.get_by_text("Drawn by speculative:length=3 in").wait_for()
    choose(page, "Model", "pocket-var")
    page.wait_for_function("document.querySelector('input[aria-label=Method]').value.startsWith('var')")
    assert page.get_by_label("more smooth").is_visible()
    press(page, "Draw")
    page.get_by_text("Drawn by var in 10 forwards an image.").wait_for()


def test_race_ends_under_a_slider(visit):
    page = visit()
    page.get_by_role("tab", name="Race").click()
    choose(page, "Model", "pocket-var", 1)
    page.wait_for_function("document.querySelector('input[aria-label=Right]').value.startsWith('code')")
    page.get_by_label("Right", exact=True).fill("code:scales=10")
    page.get_by_label("Right", exact=True).press("Enter")
    watch(page, RACE)
    page.get_by_label("Slow motion").nth(1).uncheck()
    press(page, "Race")
    page.get_by_text("both needed as many forwards").wait_for()
    page.get_by_text("The two pictures are the same.").wait_for()
    assert page.locator(f"{RACE} .vg-lane").count() == 2
    assert page.locator(f"{RACE} .vg-lane header b").count() == 2
    assert page.evaluate("window.pictures.size") >= 4
    large = "[...document.querySelectorAll('img')].filter((one) => one.naturalWidth === 512).length"
    page.wait_for_function(f"{large} === 2")  # both under the slider


def test_stop_ends_a_decode_midway_and_the_next_one_begins(visit, served, monkeypatch):
    studio, _ = served
    page, step, held = visit(), Run.step, threading.Event()

    def until_stopped(run):
        """Midway a decode waits, so that it cannot end before somebody has pressed Stop."""
        if held.is_set() or run.forwards < 20:
            return step(run)
        time.sleep(0.05)
        return True

    monkeypatch.setattr(Run, "step", until_stopped)
    choose(page, "Method", "ar · exact")
    page.get_by_label("Slow motion").first.check()
    press(page, "Draw")
    page.locator(f"{DRAW} .vg-tile").first.wait_for()
    waited(lambda: len(studio.running) == 1)
    press(page, "Stop")
    waited(lambda: not studio.running)
    page.get_by_text("Stopped.").wait_for()
    held.set()
    forwards = page.locator(f"{DRAW} dd").first.inner_text()
    assert 0 < int(forwards.split()[0]) < 256
    page.get_by_label("Slow motion").first.uncheck()
    choose(page, "Method", "jacobi-2d · approximate")
    press(page, "Draw")
    page.get_by_text("Drawn by jacobi-2d in").wait_for()


def test_a_page_that_is_closed_frees_the_worker(visit, served):
    studio, _ = served
    page = visit()
    choose(page, "Method", "ar · exact")
    page.get_by_label("Slow motion").first.check()
    press(page, "Draw")
    page.locator(f"{DRAW} .vg-tile").first.wait_for()
    (run,) = studio.running
    page.close()
    waited(lambda: not studio.running)
    assert not run.done


def test_errors_are_shown_as_one_sentence(visit, served):
    page = visit()
    page.get_by_text("Settings of the method").click()
    page.get_by_label("window").fill("999")
    page.get_by_label("window").press("Enter")
    press(page, "Draw")
    page.get_by_text("got window 999, expected at most 256 here").wait_for()
    page.get_by_label("window").fill("<b id=bold>9</b>")
    page.get_by_label("window").press("Enter")
    press(page, "Draw")
    page.get_by_text("got window '<b id=bold>9</b>'").wait_for()  # as text
    assert page.locator("#bold").count() == 0
    assert "Traceback" not in page.content()
    assert not served[0].running


def test_frontier_shows_another_model_and_seconds(visit):
    page = visit()
    page.get_by_role("tab", name="Results").click()
    page.get_by_text("sjd-exact:window=16", exact=True).first.wait_for()
    choose(page, "Model", "pocket-mar", -1)
    page.get_by_label("seconds", exact=True).last.check()
    page.get_by_text("disa:iterations=64:upper=50:lower=5").wait_for()
    page.get_by_text("seconds per image").wait_for()  # the plot's axis
    page.get_by_text("csd:iterations=64:upper=50:lower=5:highest=950").wait_for(state="detached")  # was not timed


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_a_phone_in_light_and_dark(visit, scheme):
    page = visit(390, 844, scheme)
    press(page, "Draw")
    page.get_by_text("Drawn by").wait_for()
    for tab in TABS:
        page.get_by_role("tab", name=tab, exact=True).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    red, *_ = map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert (red < 60) == (scheme == "dark")
