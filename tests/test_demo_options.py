"""The demo's options of a call, links, races and repainting, without its page."""

import dataclasses
import shlex
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

import vargen
from vargen.commands import flags, sample
from vargen.core import registry
from vargen.pipelines import options as calls

pytest.importorskip("gradio", reason="the demo is an extra: pip install 'vargen[demo]'")

import gradio as gr

from vargen.demo import handlers, history, links, options, parts, repaint_tab, studio
from vargen.demo.controls import OptionControls
from vargen.demo.draw_tab import DrawTab
from vargen.demo.studio import POCKET, Order, Studio

SMALL = ("small", "small-scales", "small-latents")
LAW = {"guidance_scale": 2.5, "temperature": 0.7, "top_k": 9}


@pytest.fixture
def small(monkeypatch):
    for name in SMALL:
        monkeypatch.setitem(registry.MODELS, name, "small:PRESETS")
    yield Studio(SMALL, device="cpu")
    options.taken.cache_clear()


def drawn(studio: Studio, order: Order) -> list[bytes]:
    with studio.run(order) as run:
        while run.step():
            pass
        return [image.tobytes() for image in run.images()]


def controls(model: str) -> OptionControls:
    with gr.Blocks(analytics_enabled=False):
        return OptionControls(model)


# Options of a call


@pytest.mark.parametrize("model", POCKET)
def test_controls_are_the_options_that_a_model_takes(model):
    panel = controls(model)
    shown = {name: part for name, part in zip(panel.names, panel.parts, strict=True) if part.visible}
    preset, takes = registry.preset(model), {"guidance_scale", "temperature", "image_size"}
    takes |= {"cfg_interval", "top_k", "top_p"} if preset.kind != "continuous" else set()
    assert set(shown) == takes | (set() if preset.classes else {"negative_prompt"})
    for name, part in shown.items():
        assert part.label == name.replace("_", " ")
        assert part.info == calls.about(name).words
        assert part.value == ""
    assert float(shown["guidance_scale"].placeholder) == preset.recipe.guidance_scale
    assert panel.chosen(model, tuple(part.value for part in panel.parts)) == {}


def test_a_new_option_shows_up_by_itself(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class More(calls.RasterOptions):
        sparkle: float | None = calls.option(None, "how it sparkles", text=float)
        mirrored: bool = calls.option(False, "left is right", text=bool)

    for module in (calls, options):
        monkeypatch.setattr(module, "KINDS", (*calls.KINDS, More))
    monkeypatch.setitem(options.TYPES, "raster", More)
    caches = (options.offered, options.taken)
    try:
        for cache in caches:
            cache.cache_clear()
        panel = controls("pocket-llamagen")
        known = dict(zip(panel.names, panel.parts, strict=True))
        assert (known["sparkle"].label, known["sparkle"].info) == ("sparkle", "how it sparkles")
        assert (known["mirrored"].value, known["mirrored"].visible) == (False, True)
        values = {name: part.value for name, part in known.items()} | {"sparkle": "1.5", "mirrored": True}
        asked = panel.chosen("pocket-llamagen", tuple(values.values()))
        assert asked == {"sparkle": 1.5, "mirrored": True}
        assert links.command(Order("pocket-llamagen", "beach", "ar", 1, 0, options=asked)).endswith("--mirrored true")
        assert not dict(zip(panel.names, controls("pocket-mar").parts, strict=True))["sparkle"].visible
    finally:
        for cache in caches:
            cache.cache_clear()


def test_options_count(small):
    law = {"guidance_scale": 2.5, "top_k": 3}
    order = Order("small", "b", "ar", 2, 3, options=law)
    again = small.pipe("small")("b", method="ar", num_images_per_prompt=2, seed=3, **law)
    assert drawn(small, order) == [image.tobytes() for image in again.images]
    assert drawn(small, order) != drawn(small, dataclasses.replace(order, options={}))


def test_every_bad_field_is_told_by_itself(small):
    judge, panel = parts.Judge(small, "small"), controls("small")
    assert judge.field(seed=7) == parts.FINE
    for said, sentence in (
        ({"seed": -1}, "got seed -1, expected 0 to"),
        ({"seed": 1.5}, "got seed 1.5, expected a whole number"),
        ({"seed": None}, "got seed None"),
        ({"images": 9}, "got 9 images, expected 1 to 4"),
        ({"method": "sjd:window=999"}, "got window 999, expected at most 256 here"),
    ):
        found = judge.field(**said)
        assert not found["is_valid"]
        assert sentence in found["message"]
    values = {"temperature": "hot", "top_p": "2", "top_k": " 3 ", "guidance_scale": "", "image_size": "0"}
    told = judge.options(panel, tuple(values.get(name, "") for name in panel.names))
    wrong = {name: each["message"] for name, each in zip(panel.names, told, strict=True) if not each["is_valid"]}
    assert set(wrong) == {"temperature", "top_p", "image_size"}
    assert wrong["temperature"] == "got temperature 'hot', expected a number"


def test_texts_of_options_are_bounded():
    long = {"negative_prompt": "a" * 301}
    with pytest.raises(ValueError, match="got negative_prompt of 301 characters, expected at most 300"):
        Studio().check(Order("pocket-lumina", "a boat", "ar", 1, 0, options=long))
    with pytest.raises(ValueError, match="unknown option 'top_k'"):
        Studio().check(Order("pocket-mar", "beach", "mar", 1, 0, options={"top_k": 3}))


# Links, commands, Python

ORDERS = [
    Order("pocket-llamagen", "island under stars", "sjd:window=8", 2, 5, options=LAW),
    Order("pocket-var", "beach", "code:scales=5", 1, 2**40, options={"temperature": [1.1] * 10, "top_p": 0.8}),
    Order("pocket-lumina", 'a "red" boat & 50% fog', "ar", 1, 0, (64, 96), {"negative_prompt": "night; rain"}),
    Order("pocket-mar", "beach", "disa", 1, 3, options={"guidance_scale": 1.0}),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.model)
def test_a_link_restores_its_order(order):
    from urllib.parse import parse_qsl

    Studio().check(order)
    assert links.parse(dict(parse_qsl(links.query(order))), "pocket-llamagen") == order


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"model": "pocket-x"}, "unknown model 'pocket-x'"),
        ({"seed": "x"}, "got seed 'x', expected a whole number"),
        ({"sparkle": "1"}, "the link has 'sparkle', which pocket-llamagen does not take"),
        ({"prompt": "a boat"}, "the link has 'prompt', which pocket-llamagen does not take"),
        ({"temperature": "hot"}, "got temperature 'hot', expected a number"),
        ({"size": "9"}, "the link has size '9', pocket-llamagen takes none: it has one size"),
        ({"model": "pocket-lumina", "size": "1x1"}, "the link has size '1x1', pocket-lumina takes sizes 64x64, 96x64"),
    ],
)
def test_bad_links_get_one_sentence(query, sentence):
    with pytest.raises(ValueError, match=sentence):
        links.parse(query, "pocket-llamagen")


@pytest.mark.parametrize("order", ORDERS[:2] + ORDERS[3:], ids=lambda order: order.model)
def test_a_command_asks_for_the_same(order):
    program, name, *argv = shlex.split(links.command(order))
    assert (program, name) == ("vargen", "sample")
    read = sample.parser(sample.wanted_method(argv)).parse_args(argv)
    assert (read.model, read.class_labels, read.method) == (order.model, [order.subject], order.method)
    assert (read.num_images, read.seed) == (order.images, order.seed)
    law = {name: value for name, value in flags.law(read).items() if value is not None}
    assert law == dict(order.options)


def test_python_draws_the_same(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vargen, "load", small.pipe)
    order = Order("small", "b", "sjd:window=8", 2, 3, options=LAW)
    code = links.python(order)
    exec(code, {})
    with Image.open("small-3.png") as image:
        assert image.tobytes() == drawn(small, order)[0]
    assert "seed=3" in code


# Races


def test_what_a_race_loads_counts_for_nobody(small, monkeypatch):
    now, used = [0.0], set()
    monkeypatch.setattr(studio.time, "perf_counter", lambda: now[0])
    stream = type(small.pipe("small")).stream

    def slow_at_first(self, *given, **asked):
        now[0] += 0.0 if asked["method"] in used else 1000.0  # as where a second model is loaded
        used.add(asked["method"])
        for partial in stream(self, *given, **asked):
            now[0] += 1.0
            yield partial

    monkeypatch.setattr(type(small.pipe("small")), "stream", slow_at_first)
    lanes = (Order("small", "b", "ar", 1, 3), Order("small", "b", "sjd-exact:window=8", 1, 3))
    for by in ("seconds", "forwards"):
        used.clear()
        small._warm.clear()
        *_, (stage, _, said) = handlers.race(small, lanes, by, slow=False)
        assert said.startswith("sjd-exact:window=8 needed")
        assert "fewer forwards and" in said
        assert "36.00" in stage
        assert len(small._warm) == 2
    assert used == {"ar", "sjd-exact:window=8"}


@pytest.mark.parametrize("broken", [ValueError("stopped: <too> long"), RuntimeError("a secret")])
def test_a_race_that_fails_leaves_nothing_else(small, broken):
    def run():
        yield "a stage", "a slider", "Racing by forwards…"
        raise broken

    shown = handlers.staged(run, 1)()
    assert next(shown) == ("a stage", "a slider", "Racing by forwards…")
    stage, files, said, other = next(shown)
    assert 'role="alert"' in stage
    assert ("&lt;too&gt;" in stage) == isinstance(broken, ValueError)
    assert "a secret" not in stage
    assert (files["visible"], files["value"], said) == (False, None, "")
    assert "value" not in other
    if isinstance(broken, RuntimeError):  # is for the log
        with pytest.raises(RuntimeError):
            next(shown)
    else:
        assert next(shown, None) is None


# Repainting and history


def test_a_brush_says_a_mask():
    cells = "0" * 5 + "1" + "0" * 10
    mask = np.array(repaint_tab.masked(cells, 4))
    assert mask.shape == (4, 4)
    assert np.argwhere(mask == 255).tolist() == [[1, 1]]
    for bad, sentence in (
        ("0" * 16, "mark a part of the picture"),
        ("1" * 15, "got a brush of 15 cells"),
        ("x" * 16, "expected 16 of 0 and 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            repaint_tab.masked(bad, 4)


def test_what_is_marked_is_repainted_as_the_library_does(small):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    mask = repaint_tab.masked("0" * 8 + "1" * 8, 4).resize((8, 8), Image.Resampling.NEAREST)
    for subject in ("-1", "b"):
        order = Order("small-scales", subject, "var", 1, 3, repainted=(picture, mask))
        pipe = small.pipe("small-scales")
        again = pipe(subject, method="var", seed=3, image=picture, mask_image=mask)
        assert drawn(small, order) == [again.images[0].tobytes()]
        assert drawn(small, order) != drawn(small, Order("small-scales", "b", "var", 1, 3))
        assert "--image picture.png --mask-image mask.png" in links.command(order)
        assert 'mask_image=Image.open("mask.png")' in links.python(order)
    with pytest.raises(ValueError, match="got class -1, expected 0 to 4"):
        small.check(Order("small-scales", "-1", "var", 1, 3))


def test_files_of_two_models_have_two_names(small, tmp_path):
    names = set()
    for model, method in (("small", "ar"), ("small-scales", "var"), ("small-latents", "mar")):
        *_, (_, files, _, _) = handlers.draw(small, Order(model, "b", method, 1, 3), False, str(tmp_path))
        names |= {file.rsplit("/", 1)[1] for file in files["value"]}
    assert names == {"small-b-3.png", "small-scales-b-3.png", "small-latents-b-3.png"}


def test_history_keeps_the_newest(small, tmp_path):
    *_, one = list(handlers.draw(small, Order("small", "b", "ar", 1, 3), False, str(tmp_path)))[-1]
    assert one is not None
    named = dataclasses.replace(one, order=dataclasses.replace(one.order, subject='"><script>'))
    with gr.Blocks(analytics_enabled=False) as page:
        kept = history.History()
        tab = DrawTab(small, kept)
        tab.connect(page)
    album, html = [], ""
    for each in (*[one] * history.MOST, named):
        album, html = kept.add(album, each)
    assert len(album) == history.MOST
    assert album[0] is named
    assert html.count("data-at=") == history.MOST
    assert "<script" not in html
    assert len(tab._bring_back(one)) == tab._count + 3
