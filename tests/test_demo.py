"""The demo without its page: what it records, what it shows, what it explains, and what it refuses."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vargen.core import registry
from vargen.core.specs import ContinuousSpec, RasterSpec, ScaleSpec
from vargen.demo import show
from vargen.demo.limits import MOST, Limits
from vargen.demo.record import layout, settled
from vargen.demo.studio import POCKET, Order, Studio

pytest.importorskip("gradio", reason="the demo is an extra: pip install 'vargen[demo]'")

from vargen.demo import controls, handlers
from vargen.demo.subject import order

ROOT = Path(__file__).parent.parent
SMALL = ("small", "small-scales", "small-latents")


@pytest.fixture
def studio(monkeypatch):
    for name in SMALL:
        monkeypatch.setitem(registry.MODELS, name, "small:PRESETS")
    return Studio(SMALL, device="cpu")


def asked(method: str, model: str = "small", images: int = 2, **other) -> Order:
    return Order(model, "b", method, images, other.pop("seed", 3), **other)


# What it records


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("small", "ar"),
        ("small", "sjd-coupled:window=8"),
        ("small", "sjd-exact:window=4:guess=above"),
        ("small", "zipar:window=2"),
        ("small", "zipar-adaptive:window=2"),
        ("small", "jacobi-2d:window=2:drafts=3"),
        ("small-scales", "var"),
        ("small-scales", "code:scales=2"),
        ("small-latents", "mar"),
        ("small-latents", "disa"),
        ("small-latents", "csd:rule=paper:draft=2"),
    ],
)
def test_each_token_is_recorded_with_the_forward_that_settled_it(studio, model, method):
    seen = []
    with studio.run(asked(method, model)) as run:
        while run.step():
            final = settled(run.partial)
            tokens = run.partial.tokens.clone()
            assert final.sum(1).tolist() == run.partial.settled  # what the sampler itself counts
            assert not (run.record.drafts & final).any()
            seen.append((final, tokens))
        pictures = run.images()
        steps = run.record.steps
        assert run.record.settled == run.record.total == steps.size
        assert run.expected in (0, len(seen))
    for number, (final, tokens) in enumerate(seen, start=1):
        assert ((steps <= number) == final).all()  # settled once, in that forward, and for good
        kept = seen[-1][1]
        assert (tokens.numpy()[final] == kept.numpy()[final]).all()
    again = studio.pipe(model)("b", method=method, num_images_per_prompt=2, seed=3)
    assert [p.tobytes() for p in pictures] == [p.tobytes() for p in again.images]


def test_drafts_are_what_the_window_holds(studio):
    most = 0
    with studio.run(asked("sjd:window=8", images=1)) as run:
        while run.step():
            count, done = int(run.record.drafts.sum()), run.partial.settled[0]
            where = np.flatnonzero(run.record.drafts[0])
            assert where.tolist() == list(range(done, done + count))  # in one piece, right behind what is settled
            most = max(most, count)
    assert 1 <= most <= 7
    with studio.run(asked("ar", images=1)) as run:
        while run.step():
            assert not run.record.drafts.any()


def test_pictures_grow(studio):
    opaque = []
    with studio.run(asked("ar", images=1)) as run:
        while run.step():
            opaque.append(int((np.array(run.shown()[0].convert("RGBA"))[..., 3] == 255).sum()))
        last = run.shown()[0]
    assert opaque == [42**2 * n for n in range(1, 37)]  # 2x2 pixels a token, each 21 pixels large
    assert (last.mode, last.size) == ("RGB", (252, 252))  # a whole number of times 12
    assert len(last.getcolors(1 << 16)) > 36 * 4  # smooth


def test_layouts():
    grid = layout(RasterSpec(3, 5, 10, 0, newline=9))
    assert grid.grid == (3, 4)
    assert grid.slots.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13]
    assert grid.squares[5].tolist() == [1, 1, 1]
    scales = layout(ScaleSpec((1, 2, 4), 10, 5))
    assert scales.grid is None
    assert len(scales.squares) == 21
    assert scales.squares[:, :2].max() < max(scales.width, scales.height)
    assert layout(ContinuousSpec(16, 3, 5)).grid == (4, 4)
    assert layout(ContinuousSpec(21, 3, 5, "scales", (1, 4, 16))).grid is None


def test_a_run_that_is_left_frees_the_model(studio):
    with studio.run(asked("ar")) as run:
        run.step()
        stream = run._stream
        assert studio.running == {run}
    assert not studio.running
    assert next(stream, None) is None  # closed: its `finally`s have run
    with pytest.raises(KeyError), studio.run(asked("ar")) as run:
        raise KeyError
    assert not studio.running


def test_a_run_ends_where_it_takes_too_long(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")
    short = Studio(("small",), Limits(seconds=1e-6), device="cpu")
    with pytest.raises(ValueError, match="a decode may take 1e-06 seconds"), short.run(asked("ar")) as run:
        run.step()
    assert not short.running


# What it refuses


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"model": "llamagen-c2i-3b-384"}, "unknown model 'llamagen-c2i-3b-384'"),
        ({"subject": "q"}, "unknown class 'q'"),
        ({"subject": "x" * 10_000}, "unknown class 'x"),
        ({"method": "sdj"}, "unknown method 'sdj'"),
        ({"method": "var"}, "does not draw with raster models"),
        ({"method": "sjd:window=0"}, "got window 0"),
        ({"method": "sjd:window=257"}, "got window 257, expected at most 256 here"),
        ({"method": "sjd:windows=2"}, "has no setting 'windows'"),
        ({"method": "speculative:length=65"}, "got length 65, expected at most 64 here"),
        ({"method": "speculative:drafter=llamagen-c2i-b-256"}, "unknown drafter 'llamagen-c2i-b-256'"),
        ({"method": "speculative-tree:tree=" + "9-" * 5000}, "got a method of 10022 characters"),
        ({"images": 5}, "got 5 images, expected 1 to 4"),
        ({"images": 0}, "got 0 images, expected 1 to 4"),
        ({"images": 1.5}, "got number of images 1.5, expected a whole number"),
        ({"seed": -1}, "got seed -1"),
        ({"seed": 2**53}, "got seed 9007199254740992"),
        ({"size": (512, 512)}, "draws no 512x512 pixels"),
        ({"size": (4000, 4000)}, "of 4000x4000 pixels"),
    ],
)
def test_bad_orders_get_one_sentence(studio, bad, sentence):
    given = {"model": "small", "subject": "b", "method": "ar", "images": 1, "seed": 0} | bad
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught, studio.run(Order(**given)):
        pass
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not studio.running


def test_prompts_are_bounded():
    studio = Studio()
    for prompt, sentence in (("  ", "got an empty prompt"), ("a" * 301, "got a prompt of 301 characters")):
        with pytest.raises(ValueError, match=sentence):
            studio.check(Order("pocket-lumina", prompt, "ar", 1, 0))
    assert not any(map(studio.loaded, POCKET))  # nothing was loaded to say so


def test_components_that_are_empty_get_a_sentence():
    with pytest.raises(ValueError, match="give a seed and a number of images"):
        order("pocket-var", "beach", "var", 1, None)
    with pytest.raises(ValueError, match="got size '96 by 64', expected one such as 96x64"):
        order("pocket-lumina", "a boat", "ar", 1, 0, "96 by 64")
    assert order("pocket-lumina", "a boat", "ar", 1, 0, "96x64").size == (64, 96)


def test_limits_are_checked():
    with pytest.raises(ValueError, match="got at most 0 images"):
        Limits(images=0)
    known = {name for method in registry.METHODS for name in controls.hints(method)}
    assert set(MOST) <= known


# What it shows


class Squares(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.counts, self.fills = {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "path":
            kind = {"vg-empty": "empty", "vg-draft": "drafts"}.get(given.get("class") or "", "settled")
            self.counts[kind] = self.counts.get(kind, 0) + (given["d"] or "").count("z")
            self.fills += [given["fill"]] if "fill" in given else []


def test_map_has_every_token_once(studio):
    with studio.run(asked("sjd:window=8", images=1)) as run:
        for _ in range(6):
            run.step()
        shown = Squares(show.token_map(run.record, 0, 20))
        done, drafts = run.record.settled, int(run.record.drafts.sum())
        assert shown.counts == {"settled": done, "drafts": drafts, "empty": 36 - done - drafts}
        assert len(set(shown.fills)) == len(shown.fills) == run.record.forwards


def test_colours_go_from_first_to_last():
    assert show.colour(2, 1) != show.colour(1, 1)
    even = [show.colour(step, 101) for step in range(2, 102, 2)]
    assert len(set(even)) == len(even)
    green = [int(code[3:5], 16) for code in even]
    assert green[-1] > green[0]
    assert show.colour(101, 101) == show.colour(501, 101)


def test_what_visitors_write_is_escaped(studio):
    with studio.run(asked("sjd:window=4", images=1)) as run:
        run.step()
        object.__setattr__(run.order, "subject", '"><script>alert(1)</script>')
        assert "<script" not in show.stage(run)
        assert "&lt;script&gt;" in show.stage(run)


@pytest.mark.parametrize("by", ["forwards", "seconds"])
def test_race_gives_both_lanes_the_same(studio, by, monkeypatch):
    monkeypatch.setattr(handlers, "EVERY", 0.0)
    lanes, shown = (asked("ar", images=1), asked("sjd-exact:window=8", images=1)), []
    for stage, slider, said in handlers.race(studio, lanes, by, slow=False):
        shown.append((stage, slider, said) if isinstance(stage, str) else ("", None, ""))
    counts = [list(map(int, re.findall(r"<dd>(\d+)[^/]*(?:</small>)?</dd><dt>forwards", stage))) for stage, *_ in shown]
    counts = [pair for pair in counts if len(pair) == 2]
    assert counts[-1][0] == 36 > counts[-1][1]
    if by == "forwards":
        assert all(one == two or two == counts[-1][1] for one, two in counts)
        assert len(counts) >= 36
    assert "The two pictures are the same." in shown[-1][2]
    assert "sjd-exact:window=8 needed" in shown[-1][2]
    assert [image.size for image in shown[-1][1]["value"]] == [(504, 504)] * 2
    assert not studio.running


def test_files_say_how_they_were_drawn(studio, tmp_path):
    *_, (stage, files, said, drawn) = handlers.draw(studio, asked("sjd:window=4"), False, str(tmp_path))
    assert [Path(name).name for name in files["value"]] == ["small-b-3.png", "small-b-4.png"]
    assert drawn is not None
    assert drawn.png == Path(files["value"][0]).read_bytes()
    with Image.open(files["value"][1]) as image:
        assert (image.format, image.size) == ("PNG", (12, 12))
        assert (image.info["seed"], image.info["method"]) == ("4", "sjd:window=4")
    assert "Drawn by sjd:window=4 in" in said
    assert "forwards an image where plain decoding takes 36: " in said
    assert re.search(r"<dd>\d+<small> of 36</small></dd><dt>forwards", stage)
    assert stage.count("<img") == 2


def test_pictures_on_the_way_are_data():
    image = Image.new("RGB", (8, 8), "red")
    html = show.picture(image, "a & b")
    assert 'alt="a &amp; b"' in html
    assert 'src="data:image/webp;base64,' in html
    data = base64.b64decode(re.findall('base64,([^"]*)"', html)[0])
    assert Image.open(io.BytesIO(data)).size == (8, 8)
