"""What the page does when a button is pressed: decodes, shown as they go. Generators, which Gradio closes on Stop."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from vargen.core import registry
from vargen.demo import show
from vargen.demo.studio import Order, Run, Studio

EVERY = 0.08  # seconds between two pictures
RATES = {"raster": 40.0, "next-scale": 2.5, "continuous": 12.0}  # forwards a second in slow motion
SLIDER = 512  # pixels a side


class Pace:
    """When to show a picture, and how long to wait for the next forward."""

    def __init__(self, kind: str, slow: bool) -> None:
        self._rate, self._all = RATES[kind] if slow else 0.0, kind == "next-scale"
        self._begun, self._last, self._steps = time.monotonic(), 0.0, 0

    def due(self) -> bool:
        """Whether a picture is to be shown after this forward. In slow motion it first waits for that one's time."""
        self._steps += 1
        if self._rate:
            time.sleep(max(0.0, self._begun + self._steps / self._rate - time.monotonic()))
        now = time.monotonic()
        if not self._all and now - self._last < EVERY:
            return False
        self._last = now
        return True


def told(run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Errors of the library as a sentence on the page."""

    @wraps(run)
    def wrapped(*given: Any) -> Iterator[Any]:
        try:
            yield from run(*given)
        except ValueError as error:
            raise gr.Error(escape(str(error), quote=False), title="Not drawn", print_exception=False) from None

    return wrapped


def draw(studio: Studio, asked: Order, slow: bool, cache: str) -> Iterator[tuple[Any, Any, Any]]:
    """The stage, files and a line of text, again and again."""
    studio.check(asked)
    if not studio.loaded(asked.model):
        yield gr.skip(), gr.update(visible=False), f"Loading {asked.model}…"
    with studio.run(asked) as run:
        pace = Pace(registry.preset(asked.model).kind, slow)
        while run.step():
            if pace.due():
                yield show.stage(run), gr.update(value=None, visible=False), f"Drawing with {escape(asked.method)}…"
        yield show.stage(run), gr.update(value=files(run, cache), visible=True), show.ending(run)


def answer(studio: Studio, asked: Order, cache: str) -> Iterator[tuple[Any, Any]]:
    """For programs: how far it is, again and again, and at last the files and the trace."""
    with studio.run(asked) as run:
        pace = Pace(registry.preset(asked.model).kind, slow=False)
        while run.step():
            assert run.record is not None
            if pace.due():
                yield None, {"forwards": run.forwards, "settled": run.record.settled, "tokens": run.record.total}
        assert run.partial is not None
        yield files(run, cache), json.loads(run.partial.trace.json())


def files(run: Run, cache: str) -> list[str]:
    """The images as PNG files in Gradio's folder, from which they are deleted after a while."""
    name = "-".join("".join(c if c.isalnum() else " " for c in run.order.subject).split())[:40] or "image"
    return [
        save_bytes_to_cache(png, f"{name}-{run.order.seed + index}.png", cache) for index, png in enumerate(run.pngs())
    ]


def race(studio: Studio, asked: tuple[Order, Order], by: str, slow: bool) -> Iterator[tuple[Any, Any, Any]]:
    """Both lanes, the slider and a line of text, again and again; whichever lane has had less goes next."""
    for each in asked:
        studio.check(each)
    if not studio.loaded(asked[0].model):
        yield gr.skip(), gr.update(visible=False), f"Loading {asked[0].model}…"
    with ExitStack() as open_runs:
        runs = tuple(open_runs.enter_context(studio.run(each)) for each in asked)
        assert len(runs) == 2
        lanes = (runs[0], runs[1])
        yield from _paced(lanes, by, Pace(registry.preset(asked[0].model).kind, slow))
        ends = tuple(run.images()[0] for run in lanes)
        larger = tuple(end.resize(_sized(end), Image.Resampling.NEAREST) for end in ends)
        yield show.lanes(lanes), gr.update(value=larger, visible=True), verdict(lanes, ends[0] == ends[1])


def _paced(lanes: tuple[Run, Run], by: str, pace: Pace) -> Iterator[tuple[Any, Any, Any]]:
    left, begun = list(lanes), 0
    while left:
        run = min(left, key=lambda one: one.seconds if by == "seconds" else one.forwards)
        if not run.step():
            left.remove(run)
            continue
        begun += 1
        leads = run is left[-1] or by == "seconds"  # one beat for a forward of each
        if all(lane.record for lane in lanes) and leads and pace.due():
            yield show.lanes(lanes), gr.update(value=None, visible=False), f"Racing by {by}…"


def verdict(lanes: tuple[Run, Run], same: bool) -> str:
    """Who was first, in forwards and in seconds, and whether they drew the same."""
    leads: dict[str, list[str]] = {}
    for name in ("forwards", "seconds"):
        first, last = sorted(lanes, key=lambda run: getattr(run, name))
        times = getattr(last, name) / max(1e-9, getattr(first, name))
        who = first.order.method if times > 1.005 else "both"
        leads.setdefault(who, []).append(f"{times:.2f} times fewer {name}" if who != "both" else f"as many {name}")
    parts = [f"{who} needed {' and '.join(what)}" for who, what in leads.items()]
    drawn = "The two pictures are the same." if same else "Same seed, other picture: drag the line to compare."
    return escape(f"{', '.join(parts)}. {drawn}")


def _sized(image: Image.Image) -> tuple[int, int]:
    scale = max(1, SLIDER // max(image.size))
    return image.width * scale, image.height * scale
