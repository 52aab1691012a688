"""The frontier of quality and speed, from the repository's benchmarks: a compact copy ships with the package.

`python -m vargen.demo.frontier benchmarks` writes the copy again; a test compares it with the benchmarks.
"""

import json
import sys
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from vargen.core import registry
from vargen.core.atomic import dumps

COPY = Path(__file__).with_name("frontier.json")
TIMES = ("", "-drafted", "-abreast")  # files of seconds, the first that has a method counts: pocket-var-cpu.json, ...
COLOURS = (
    *("#4c6ef5", "#e8590c", "#2b8a3e", "#c2255c", "#0c8599", "#e0a100"),
    *("#7048e8", "#d6336c", "#74b816", "#868e96", "#22b8cf", "#a0522d"),
)
SPEEDS = {"forwards": "forwards per image", "seconds": "seconds per image"}


@dataclass(frozen=True)
class Point:
    """A method with its settings, measured."""

    model: str
    method: str
    images: int  # that quality was measured on
    fid: float
    half: float  # half of the 95% interval of fid
    forwards: float  # of the large model, per image
    seconds: float | None  # per image, one at a time on two cores of a CPU

    @property
    def family(self) -> str:
        """The method without its settings."""
        return self.method.split(":")[0]


def compact(folder: Path) -> list[Point]:
    """Every method whose quality was measured, from the files in `benchmarks/`."""
    out: dict[tuple[str, str], Point] = {}
    for path in sorted(folder.glob("quality-*.json"), key=lambda path: len(path.name)):
        for row in json.loads(path.read_text(encoding="utf-8")):
            model, method = row["model"], row["method"]
            measured = (round(row["fid"], 3), round(row["half_interval"], 3), round(row["forwards_per_image"], 1))
            point = Point(model, method, row["images"], *measured, _seconds(folder, model, method))
            out.setdefault((model, method), point)
    known = list(registry.MODELS)
    return sorted(out.values(), key=lambda point: known.index(point.model))


def _seconds(folder: Path, model: str, method: str) -> float | None:
    """Per image, of a run with batches of one in full precision."""
    for suffix in TIMES:
        path = folder / f"{model}-cpu{suffix}.json"
        found: dict[str, Any] = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": [], "batch_size": 1}
        )
        for row in found["rows"]:
            if row["method"] == method and found["batch_size"] == 1:
                return round(row["seconds_per_image"], 3)
    return None


def points() -> list[Point]:
    """The copy that ships."""
    return [Point(**row) for row in json.loads(COPY.read_text(encoding="utf-8"))]


def models() -> list[str]:
    """The models that were measured."""
    return list(dict.fromkeys(point.model for point in points()))


def measured(model: str, speed: str) -> list[Point]:
    """The points of a model that have a speed, fastest first."""
    found = [point for point in points() if point.model == model and getattr(point, speed)]
    return sorted(found, key=lambda point: getattr(point, speed))


def frame(model: str, speed: str) -> Any:
    """The points of a model as a plot takes them."""
    import pandas

    rows = [
        {"method": point.method, "family": point.family, "FID": point.fid, speed: getattr(point, speed)}
        for point in measured(model, speed)
    ]
    return pandas.DataFrame(rows)


def look(model: str, speed: str) -> dict[str, Any]:
    """Colours of the methods in a plot, and its limits."""
    found = measured(model, speed)
    families = list(dict.fromkeys(point.family for point in found))
    fids = [point.fid for point in found]
    return {
        "color_map": {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(families)},
        "x_lim": [0, round(1.05 * max(getattr(point, speed) for point in found), 2)],
        "y_lim": [round(0.85 * min(fids), 2), round(1.08 * max(fids), 2)],
    }


def best(found: list[Point]) -> set[Point]:
    """Those than which none that is faster is better; `found` is sorted by speed."""
    out, least = set(), float("inf")
    for point in found:
        if point.fid < least:
            out.add(point)
            least = point.fid
    return out


def table(model: str, speed: str) -> str:
    """HTML of the points of a model."""
    found = measured(model, speed)
    chosen, rows = best(found), []
    for point in found:
        seconds = "-" if point.seconds is None else f"{point.seconds:.2f}"
        rows.append(
            f'<tr class="{"vg-best" if point in chosen else ""}"><td><code>{escape(point.method)}</code></td>'
            f"<td>{point.forwards:g}</td><td>{seconds}</td><td>{point.fid:.2f} ± {point.half:.2f}</td></tr>"
        )
    head = "<tr><th>method</th><th>forwards</th><th>seconds</th><th>FID</th></tr>"
    return (
        f'<div class="vg-table"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="vg-note">Quality is the Fréchet distance to held-out scenes, lower being better, on '
        f"{found[0].images:,} images with half of its 95% interval; differences within it mean nothing. Seconds are "
        f"of one image at a time on two cores of a CPU. Rows in bold: nothing faster is better.</p>"
    )


def main(folder: Path) -> None:
    """Write the copy."""
    rows = [dumps(asdict(point)) for point in compact(folder)]
    COPY.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
