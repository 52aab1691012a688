"""The demo's page under a visitor's hands, in headless Chromium: keys, fields, links, history, the brush."""

import re
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo is an extra: pip install 'vargen[demo]'")

from demo_served import DRAWN, enter, serving, waited
from test_demo_page import DRAW, RACE, TABS, choose, chromium, press, visit  # noqa: F401

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
FIELDS = ("Model", "Class", "Method", "Seed")
# A list is open, and how the focus shows.
OPEN = "[...document.querySelectorAll('[role=combobox][aria-expanded=true]')].map((one) => one.ariaLabel)"
FOCUS = """() => {
    const one = document.activeElement, style = getComputedStyle(one);
    if (one === document.body) return null;
    const shown = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    return [one.outerHTML.slice(0, 90), shown];
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("gradio")) as found:
        yield found


def fields(page) -> list[str]:
    return [page.get_by_label(name, exact=True).first.input_value() for name in FIELDS]


def unfold(page, text: str) -> None:
    page.get_by_text(text).first.click()
    page.evaluate(DRAWN)


def test_a_model_chosen_by_keyboard_is_what_is_drawn(visit):  # noqa: F811
    page = visit()
    page.get_by_label("Model", exact=True).first.focus()
    waited(lambda: page.evaluate(OPEN) == ["Model"])
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_label("Prompt", exact=True).first.wait_for()
    assert page.get_by_label("Model", exact=True).first.input_value() == "pocket-lumina"
    page.get_by_role("button", name="Draw", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_text("forwards an image where plain decoding takes 272").wait_for()
    page.wait_for_function("location.search.endsWith('seed=0&size=64x64')")


def test_lists_close_when_they_are_left_and_focus_is_seen(visit):  # noqa: F811
    page = visit()
    page.get_by_label("Model", exact=True).first.click()
    waited(lambda: page.evaluate(OPEN) == ["Model"])
    opened, unseen = set(), []
    for _ in range(30):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUS)
        if found is None:  # the end of the page
            break
        opened.add(len(page.evaluate(OPEN)))
        unseen += [found[0]] if not found[1] else []
    assert opened == {0, 1}
    assert not unseen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_and_nothing_jumps_between_tabs(visit, scheme):  # noqa: F811
    page = visit(1280, 900, scheme)
    for text in ("Settings of the method", "Guidance, temperature", "What is a token"):
        unfold(page, text)
    press(page, "Draw")
    page.get_by_text("Drawn by").wait_for()
    places = set()
    for tab in TABS:
        page.get_by_role("tab", name=tab, exact=True).click()
        page.get_by_role("tab", name=tab, exact=True, selected=True).wait_for()
        page.evaluate("scrollTo(0, 0)")
        box = page.get_by_role("tablist").bounding_box()
        places.add((box["x"], box["y"], box["width"]))
        assert page.evaluate(CONTRAST) == [], tab
    assert len(places) == 1


def test_bad_values_are_told_at_their_fields(visit, served, capfd):  # noqa: F811
    page = visit()
    unfold(page, "Guidance, temperature")
    enter(page.get_by_label("Seed", exact=True).first, "-3")
    enter(page.get_by_label("top p").first, "2.0")
    press(page, "Draw")
    for label, sentence in (("Seed", "got seed -3, expected 0 to"), ("top p", "got top-p 2.0")):
        block = page.locator(".block", has=page.get_by_label(label).first).last
        block.get_by_text(sentence).wait_for()
    page.get_by_text("Press Draw").wait_for()  # nothing was begun
    page.get_by_label("top p").first.fill("0.9")
    page.get_by_title("Random").first.click()
    waited(lambda: page.get_by_label("Seed", exact=True).first.input_value() != "-3")
    press(page, "Draw")
    page.get_by_text("Drawn by").wait_for()
    page.wait_for_function("location.search.includes('top_p=0.9')")
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_race_that_cannot_be_leaves_its_fields_alone(visit):  # noqa: F811
    page = visit()
    page.get_by_role("tab", name="Race").click()
    page.get_by_label("Right", exact=True).fill("sdj")
    page.get_by_label("Right", exact=True).press("Enter")
    press(page, "Race")
    page.get_by_text("unknown method 'sdj'").wait_for()
    assert page.locator(f"{RACE} .vg-lane").count() == 0
    assert "Racing" not in page.locator(".vg-said").nth(1).inner_text()


def test_a_link_and_the_history_restore_settings(visit):  # noqa: F811
    link = "?model=pocket-var&class=canyon&method=code:scales=5&seed=7&images=2&guidance_scale=1.5&top_p=0.8"
    page = visit(query=link)
    page.wait_for_function("document.querySelector('input[aria-label=Class]').value === 'canyon'")
    told = ["pocket-var", "canyon", "code · approximate", "7"]
    assert fields(page) == told
    press(page, "Draw")
    page.get_by_text("Drawn by code:scales=5 in").wait_for()
    waited(lambda: page.locator(f"{DRAW} img").count() == 2)
    assert page.url.endswith(link)
    unfold(page, "Draw it again")
    command = page.locator("#vg-command textarea").input_value()
    assert command.endswith("--num-images 2 --seed 7 --guidance-scale 1.5 --top-p 0.8")
    assert page.locator("#vg-link textarea").input_value() == page.url
    choose(page, "Model", "pocket-llamagen")
    page.wait_for_function("document.querySelector('input[aria-label=Method]').value.startsWith('sjd')")
    press(page, "Draw")
    page.get_by_text("Drawn by sjd-exact:window=16 in").wait_for()
    page.locator(".vg-history button").nth(1).click()
    page.get_by_text("its settings are back").wait_for()
    page.wait_for_function("document.querySelector('input[aria-label=Class]').value === 'canyon'")
    assert fields(page) == told
    page.goto(page.url.split("?")[0] + "?model=nobody")
    page.get_by_text("The link cannot be followed: unknown model 'nobody'").wait_for()


def test_example_prompts_fill_the_prompt(visit):  # noqa: F811
    page = visit(query="?model=pocket-lumina")
    page.get_by_text("Example prompts").first.wait_for()
    example = page.locator("button.gallery-item, button:has(.gallery)").nth(2)
    text = example.inner_text()
    example.click()
    waited(lambda: page.get_by_label("Prompt", exact=True).first.input_value() == text)


def test_what_a_brush_marks_is_repainted(visit):  # noqa: F811
    page = visit()
    page.get_by_role("tab", name="Repaint").click()
    press(page, "Repaint")
    page.get_by_text("mark a part of the picture with the brush first").wait_for()
    box = page.locator(".vg-brush").bounding_box()
    side = box["width"] / 16
    page.mouse.move(box["x"] + 4.5 * side, box["y"] + 4.5 * side)
    page.mouse.down()
    page.mouse.move(box["x"] + 8.5 * side, box["y"] + 4.5 * side)
    page.mouse.up()
    waited(lambda: page.locator(".vg-cells .vg-on").count() == 7 * 3)
    page.locator(".vg-brush").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    waited(lambda: page.locator(".vg-cells .vg-on").count() == 7 * 3 + 1)
    press(page, "Repaint")
    page.get_by_text(re.compile("Drawn by var in 10 forwards")).wait_for()
    for name in ("pocket-var-repainted-0", "picture", "mask"):
        page.locator(".file-preview").get_by_text(name, exact=True).wait_for()
    press(page, "Clear the brush")
    waited(lambda: page.locator(".vg-cells .vg-on").count() == 0)


def test_who_waits_sees_the_queue(visit, served):  # noqa: F811
    studio, _ = served
    one, two = visit(), visit()
    choose(one, "Method", "ar · exact")
    one.get_by_label("Slow motion").first.check()
    press(one, "Draw")
    waited(lambda: len(studio.running) == 1)
    press(two, "Draw")
    two.get_by_text(re.compile("queue: 1/1")).wait_for()
    press(one, "Stop")
    two.get_by_text("Drawn by").wait_for()
    assert two.locator(f"{DRAW} .vg-tile dd").first.inner_text().endswith("of 256")


def test_the_page_is_vargens_own(visit, served):  # noqa: F811
    page = visit()
    assert page.title() == "vargen: pictures drawn in fewer forwards"
    assert page.locator("footer").count() == 0
    assert "<svg" in page.request.get(f"{served[1]}/favicon.ico").text()
