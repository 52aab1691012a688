"""What a decode looks like on the page: its pictures, a map of its tokens and its figures, as HTML without scripts.

Pictures on their way are data in the page: nothing is written to a disk until a picture is done.
"""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from vargen.demo.record import Layout, Record
from vargen.demo.studio import Order, Run, enlarged

RAMP = ("#5b4fd0", "#3f7fd9", "#22a3b8", "#41bd8c", "#9fce57", "#efc235")  # from the first forward to the last


def colour(step: int, total: int) -> str:
    """Of a forward, of so many in all; every other one is a little darker, so that neighbours can be told apart."""
    at = (len(RAMP) - 1) * min(1.0, (step - 1) / max(1, total - 1))
    low = min(int(at), len(RAMP) - 2)
    ends = [np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) for code in RAMP[low : low + 2]]
    mixed = (ends[0] + (at - low) * (ends[1] - ends[0])) * (0.88 if step % 2 else 1.0)
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def path(layout: Layout, chosen: np.ndarray, *, stroke: bool = False) -> str:
    """The squares that are `chosen` (n,) bool, as an SVG path; with `stroke`, each with a line across."""
    out = []
    for left, top, side in layout.squares[chosen].tolist():
        edge = f"{0.88 * side:.3g}"
        out.append(f"M{left + 0.06 * side:.4g} {top + 0.06 * side:.4g}h{edge}v{edge}h-{edge}z")
        if stroke:
            out.append(f"m0 {edge}l{edge} -{edge}")
    return "".join(out)


def token_map(record: Record, image: int, total: int) -> str:
    """SVG of one image: settled tokens in the colour of their forward, drafts hatched, the others empty."""
    layout = record.layout
    steps, drafts = record.steps[image][layout.slots], record.drafts[image][layout.slots]
    done, shown = int((steps > 0).sum()), []
    for step in np.unique(steps[steps > 0]).tolist():
        which = steps == step
        title = f"forward {step}: {which.sum()} token{'s' if which.sum() > 1 else ''}"
        newest = ' class="vg-new"' if layout.grid and step == record.forwards and done < len(steps) else ""
        shape = f'<path fill="{colour(step, total)}" d="{path(layout, which)}"{newest}>'
        shown.append(f"{shape}<title>{title}</title></path>")
    shown.insert(0, f'<path class="vg-empty" d="{path(layout, (steps == 0) & ~drafts)}"/>')
    if drafts.any():
        shown.append(f'<path class="vg-draft" d="{path(layout, drafts, stroke=True)}"/>')
    said = f"map of {len(steps)} tokens: {done} settled, {drafts.sum()} drafts"
    box = f'viewBox="-.1 -.1 {layout.width + 0.2:.4g} {layout.height + 0.2:.4g}"'
    return f'<svg class="vg-map" role="img" aria-label="{said}" {box}>{"".join(shown)}</svg>'


def data_url(image: Image.Image) -> str:
    """An image as an address that holds it."""
    out = io.BytesIO()
    image.save(out, format="WEBP", quality=90, method=1)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def picture(image: Image.Image, said: str) -> str:
    """An image as HTML."""
    return f'<img class="vg-picture" decoding="sync" alt="{escape(said)}" src="{data_url(image)}">'


def thumbnail(png: bytes, said: str, most: int = 128) -> str:
    """A finished picture as HTML, small."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB")
    small.thumbnail((most, most))
    return f'<img alt="{escape(said)}" src="{data_url(small)}">'


def kept(png: bytes, said: str) -> str:
    """A picture that was drawn before, on the stage."""
    with Image.open(io.BytesIO(png)) as image:
        return f'<div class="vg-stage"><figure class="vg-kept">{picture(enlarged(image), said)}</figure></div>'


def whole(run: Run) -> int:
    """How many forwards the colours of a decode are spread over: as many as it takes, or seems to."""
    record = run.record
    assert record is not None
    if run.done:
        return record.forwards
    return max(record.forwards, run.expected or round(record.forwards * record.total / max(1, record.settled)))


def pairs(run: Run, total: int) -> str:
    """Each picture beside its map."""
    record, out = run.record, []
    assert record is not None
    for index, image in enumerate(run.shown()):
        said = f"{run.order.subject}, seed {run.order.seed + index}, {'done' if run.done else 'in the making'}"
        out.append(f'<figure class="vg-pair">{picture(image, said)}{token_map(record, index, total)}</figure>')
    return f'<div class="vg-pairs vg-of-{len(out)}">{"".join(out)}</div>'


def figures(run: Run) -> str:
    """Forwards, tokens per forward, seconds, and how far it has come."""
    record = run.record
    assert record is not None
    each, settled = record.total // len(record.steps), record.settled / len(record.steps)
    plain = f"<small> of {run.plainly}</small>" if run.plainly > run.forwards or not run.done else ""
    tiles = (
        ("forwards", f"{run.forwards}{plain}"),
        ("tokens a forward", f"{settled / max(1, run.forwards):.2f}"),
        ("seconds", f"{run.seconds:.2f}"),
        ("tokens settled", f"{settled:.0f}<small> of {each}</small>"),
    )
    made = "".join(f'<div class="vg-tile"><dd>{value}</dd><dt>{name}</dt></div>' for name, value in tiles)
    return f'<dl class="vg-tiles">{made}</dl>'


def legend(record: Record, total: int, drafts: str = "") -> str:
    """What the colours of a map mean; `drafts` is how many there are."""
    bar = f'<i class="vg-bar" style="background:linear-gradient(90deg,{",".join(RAMP)})"></i>'
    key = f'<span><i class="vg-key vg-key-draft"></i>draft in the last window{drafts}</span>'
    return (
        f'<p class="vg-legend"><span>settled in forward 1{bar}{total}</span>{key if record.drafting else ""}'
        '<span><i class="vg-key"></i>still to come</span></p>'
    )


def stage(run: Run) -> str:
    """Everything about a decode."""
    record, total = run.record, whole(run)
    assert record is not None
    drafts = "" if run.done else f": {record.drafts.sum() / len(record.drafts):.0f}"
    return f'<div class="vg-stage">{pairs(run, total)}{legend(record, total, drafts)}{figures(run)}</div>'


def lanes(runs: tuple[Run, Run]) -> str:
    """Two decodes side by side, their maps on one scale of colours."""
    total, parts = max(whole(run) for run in runs), []
    for run in runs:
        head = f"<header><code>{escape(run.order.method)}</code>{'<b>done</b>' if run.done else ''}</header>"
        parts.append(f'<section class="vg-lane">{head}{pairs(run, total)}{figures(run)}</section>')
    record = runs[0].record
    assert record is not None
    return f'<div class="vg-stage"><div class="vg-lanes">{"".join(parts)}</div>{legend(record, total)}</div>'


def empty(text: str) -> str:
    """What stands there before anything is drawn."""
    return f'<div class="vg-stage vg-waiting"><p>{escape(text)}</p></div>'


def refused(text: str) -> str:
    """The same where something cannot be drawn: why."""
    return f'<div class="vg-stage vg-waiting vg-refused" role="alert"><p><b>Not drawn.</b> {escape(text)}</p></div>'


def beginning(order: Order, loaded: bool) -> str:
    """What is said until the first forward."""
    return f"Drawing with {order.model} begins…" if loaded else f"Loading {order.model}, which takes some seconds once…"


def ending(run: Run) -> str:
    """One line on a decode that is done."""
    assert run.partial is not None
    trace = run.partial.trace
    each, plain = trace.forwards_per_image, run.plainly
    parts = [f"Drawn by {escape(run.order.method)} in {each:g} forwards an image"]
    if plain > 1.005 * each:
        parts[0] += f" where plain decoding takes {plain}: {plain / each:.1f} times fewer"
    if trace.drafter_forwards:
        parts.append(f"{trace.drafter_forwards} forwards of the small model")
    if "calibration" in trace.seconds:
        parts.append(f"{trace.seconds['calibration']:.2f} s of it to measure which window pays")
    return ", ".join(parts) + "."
