"""What the page does when a button is pressed: decodes, shown as they go. Generators, which Gradio closes on Stop."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from vargen.core import registry
from vargen.demo import show
from vargen.demo.studio import Order, Run, Studio, enlarged

EVERY = 0.08  # seconds between two pictures
RATES = {"raster": 40.0, "next-scale": 2.5, "continuous": 12.0}  # forwards a second in slow motion


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


@dataclass(frozen=True)
class Drawn:
    """A picture that is done: what draws it again, and itself as a file."""

    order: Order
    png: bytes

    @property
    def said(self) -> str:
        """What it shows, and by what."""
        return f"{self.order.subject}, {self.order.model}, seed {self.order.seed}"


def told(run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """For programs: errors of the library as theirs."""

    @wraps(run)
    def wrapped(*given: Any) -> Iterator[Any]:
        try:
            yield from run(*given)
        except ValueError as error:
            raise gr.Error(str(error), title="Not drawn", print_exception=False) from None

    return wrapped


def staged(run: Callable[..., Iterator[Any]], rest: int) -> Callable[..., Iterator[Any]]:
    """For the page: errors are told on the stage, and leave nothing else of a run.

    Its outputs are the stage, a component that is shown at the end, a line of text, and `rest` others.
    """

    @wraps(run)
    def wrapped(*given: Any) -> Iterator[Any]:
        blank = [gr.update(value=None, visible=False), "", *[gr.skip()] * rest]
        try:
            yield from run(*given)
        except ValueError as error:
            yield [show.refused(str(error)), *blank]
        except Exception:
            yield [show.refused("Something went wrong here."), *blank]
            raise

    return wrapped


def draw(studio: Studio, asked: Order, slow: bool, cache: str) -> Iterator[tuple[Any, Any, Any, Drawn | None]]:
    """The stage and files, again and again, a line of text at the beginning and the end, and at last what was drawn.

    In between the text is left alone: what is on its way when Stop is pressed would write over what that says.
    """
    studio.check(asked)
    hidden, said = gr.update(value=None, visible=False), f"Drawing with {escape(asked.method)}…"
    yield show.empty(show.beginning(asked, studio.loaded(asked.model))), hidden, said, None
    with studio.run(asked) as run:
        pace = Pace(registry.preset(asked.model).kind, slow)
        while run.step():
            if pace.due():
                yield show.stage(run), gr.skip(), gr.skip(), None
        done = Drawn(asked, run.pngs()[0])
        yield show.stage(run), gr.update(value=files(run, cache), visible=True), show.ending(run), done


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
    order = run.order
    words = "" if order.subject == "-1" else "".join(c if c.isalnum() else " " for c in order.subject)
    subject = "-".join(words.split())[:40].rstrip("-")
    name = "-".join(filter(None, (order.model, subject, "repainted" if order.repainted else "")))
    return [save_bytes_to_cache(png, f"{name}-{order.seed + index}.png", cache) for index, png in enumerate(run.pngs())]


def race(studio: Studio, asked: tuple[Order, Order], by: str, slow: bool) -> Iterator[tuple[Any, Any, Any]]:
    """Both lanes and the slider, again and again, the text as in `draw`; whichever lane has had less goes next.

    Before anything is timed both methods have drawn, so that all that they need is loaded and warm.
    """
    for each in asked:
        studio.check(each)
    hidden = gr.update(value=None, visible=False)
    yield show.empty("Both methods warm up: what is loaded now does not count."), hidden, f"Racing by {by}…"
    for each in asked:
        yield from ((gr.skip(), gr.skip(), gr.skip()) for _ in studio.warm(each))
    with ExitStack() as open_runs:
        one, two = (open_runs.enter_context(studio.run(each)) for each in asked)
        yield from _paced((one, two), by, Pace(registry.preset(asked[0].model).kind, slow))
        ends = tuple(run.images()[0] for run in (one, two))
        slider = gr.update(value=tuple(map(enlarged, ends)), visible=True)
        yield show.lanes((one, two)), slider, verdict((one, two), ends[0] == ends[1])


def _paced(lanes: tuple[Run, Run], by: str, pace: Pace) -> Iterator[tuple[Any, Any, Any]]:
    left = list(lanes)
    while left:
        run = min(left, key=lambda one: one.seconds if by == "seconds" else one.forwards)
        if not run.step():
            left.remove(run)
            continue
        leads = run is left[-1] or by == "seconds"  # one beat for a forward of each
        if all(lane.record for lane in lanes) and leads and pace.due():
            yield show.lanes(lanes), gr.skip(), gr.skip()


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
