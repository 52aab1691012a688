"""What the demo explains, how its settings are chosen, and its command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vargen.commands import main
from vargen.commands.demo import command, parser
from vargen.core import registry
from vargen.demo import explain, frontier
from vargen.demo.studio import POCKET, Order, Studio

pytest.importorskip("gradio", reason="the demo is an extra: pip install 'vargen[demo]'")

import gradio as gr

from vargen.demo import controls, handlers
from vargen.demo.draw_tab import DrawTab
from vargen.demo.history import History

ROOT = Path(__file__).parent.parent


# What it explains


def test_every_method_is_explained_in_three_sentences():
    found = {each.name: each for each in explain.explanations()}
    assert sorted(found) == sorted(registry.METHODS)
    for each in found.values():
        assert len(each.says) == 3
        assert all(re.fullmatch(r"[A-Z][^.!?]*(\. ?\d[^.!?]*)*\.", text) for text in each.says), each.says
        assert each.papers
        assert all(re.fullmatch(r"\d{4}\.\d{5}", number) for number in each.papers)
    html = explain.page()
    assert html.count("<article") == len(registry.METHODS)
    assert all(f"https://arxiv.org/abs/{number}" in html for each in found.values() for number in each.papers)


def test_papers_are_those_of_the_samplers():
    for each in explain.explanations():
        module = registry.METHODS[each.name].split(":")[0]
        known = "".join((ROOT / f"{name.replace('.', '/')}.py").read_text() for name in (module, *RULES))
        if each.name != "ar":  # whose paper is the model's
            assert all(number in known for number in each.papers), each.name


RULES = ("vargen.samplers.lantern", "vargen.samplers.gsd", "vargen.samplers.cool")


def test_every_setting_has_words():
    names = {name for method in registry.METHODS for name in controls.hints(method)}
    assert {name for name in names if explain.words(name)} == names


def test_words_of_the_page_are_explained():
    html = explain.glossary()
    assert html.startswith("<details")
    for word in ("token", "forward", "window", "exact", "seed", "guidance"):
        assert f"<dt>{word}</dt><dd>" in html


def test_frontier_is_that_of_the_benchmarks():
    assert frontier.points() == frontier.compact(ROOT / "benchmarks"), "python -m vargen.demo.frontier benchmarks"
    for model in frontier.models():
        for speed in frontier.SPEEDS:
            found = frontier.measured(model, speed)
            best = frontier.best(found)
            assert best
            for point in found:
                rivals = [p for p in found if getattr(p, speed) <= getattr(point, speed) and p.fid < point.fid]
                assert (point in best) != bool(rivals) or getattr(rivals[0], speed) == getattr(point, speed)
            assert len(frontier.frame(model, speed)) == len(found)
            assert frontier.table(model, speed).count("<tr") == len(found) + 1


# How settings are chosen


@pytest.mark.parametrize("model", POCKET)
def test_methods_begin_as_the_model_has_them(model):
    names = controls.methods(model)
    assert controls.usual_method(model) in names
    for method in names:
        assert controls.spelled(model, method, controls.defaults(model, method)) == method
        panel = controls.Controls(model, method, POCKET)
        values = tuple(part.value for part in panel.parts)
        shown = {name for name, part in zip(panel.names, panel.parts, strict=True) if part.visible}
        has = set(controls.hints(method))
        assert shown <= has
        assert has - shown <= set(controls.OF_RULES)
        spelled = panel.spelled(model, method, values)
        Studio().check(Order(model, "beach", spelled, 1, 0))
        assert spelled == method or controls.FIRST[method] == {"window": 16}
    for spelled in controls.suggested(model):
        Studio().check(Order(model, "beach", spelled, 1, 0))


def test_settings_are_spelled_as_on_the_command_line():
    spelled = controls.spelled
    assert spelled("pocket-llamagen", "sjd", {"window": "32", "guess": "above"}) == "sjd:window=32:guess=above"
    assert spelled("pocket-llamagen", "sjd", {"window": "auto", "k": 3, "guess": None}) == "sjd"
    assert spelled("pocket-llamagen", "jacobi-2d", {"coupled": True, "window": "8"}) == "jacobi-2d:coupled=true"
    assert spelled("pocket-llamagen", "lantern", {"delta": 0.2, "drafter": controls.OWN}) == "lantern:delta=0.2"
    assert spelled("pocket-mar", "mar", {"highest": 950}) == "mar"  # the recipe's, not the method's
    assert spelled("pocket-mar", "mar", {"highest": 999}) == "mar:highest=999"
    assert spelled("pocket-llamagen", "sjd", {"window": "many"}) == "sjd:window=many"  # refused by whoever draws


def test_settings_of_a_rule_are_shown_with_it():
    panel = controls.Controls("pocket-llamagen", "sjd-coupled", POCKET)
    shown = dict(zip(controls.OF_RULES, panel.ruled("sjd-coupled", "cool"), strict=True))
    assert {name for name, update in shown.items() if update["visible"]} == {"tolerance", "decay"}
    assert not any(update["visible"] for update in panel.ruled("sjd-coupled", "exact"))
    assert not any(update["visible"] for update in panel.ruled("sjd", "cool"))


def test_draw_pressed_before_the_page_has_followed_a_choice(monkeypatch):
    studio, drawn = Studio(), []
    monkeypatch.setattr(handlers, "draw", lambda studio, asked, *rest: drawn.append(asked.method) or iter(()))
    with gr.Blocks(analytics_enabled=False):
        tab = DrawTab(studio, History())
    stale = ["pocket-llamagen sjd-exact", [], *(part.value for part in (*tab.panel.parts, *tab.options.parts))]
    for model, method in (("pocket-llamagen", "jacobi-2d"), ("pocket-llamagen", "sjd"), ("pocket-var", "sjd-coupled")):
        list(tab._run(model, "beach", "", None, method, 1, 0, False, *stale))
    assert drawn == ["jacobi-2d", "sjd:window=16", "var"]
    stale[2 + tab.panel.names.index("window")] = "8"
    list(tab._run("pocket-llamagen", None, "", None, "sjd-exact", 1, 0, False, *stale))
    assert drawn[-1] == "sjd-exact:window=8"


# The command


def test_command_complains_in_one_sentence(capsys, monkeypatch):
    for argv, sentence in (
        (["--port", "0"], "got --port 0, expected 1 to 65535"),
        (["--model", "pocket-lamagen"], "unknown model 'pocket-lamagen'"),
        (["--max-images", "0"], "got at most 0 images"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main.guarded(command, argv)
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        main.guarded(command, [])
    assert "the demo needs Gradio: pip install 'vargen[demo]'" in capsys.readouterr().err


def test_flags_are_made_without_gradio_and_torch():
    assert parser().parse_args(["--max-queue", "3"]).max_queue == 3
    code = (
        "import sys; from vargen.commands.demo import parser; parser(); print({'gradio', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
