"""Tables and plots of many results: quality beside its price, and the published figure beside ours."""

import math
import re
from operator import itemgetter
from pathlib import Path
from typing import Any

from vargen.core import safe_json
from vargen.core.atomic import write_atomically, write_json
from vargen.core.messages import quoted

COLUMNS = {  # heading -> key of a row, format
    "model": ("model", "{}"),
    "method": ("method", "{}"),
    "preset": ("preset", "{}"),
    "settings": ("settings", "{}"),
    "images": ("images", "{:,}"),
    "forwards": ("forwards_per_image", "{:.1f}"),
    "seconds": ("seconds_per_image", "{:.3f}"),
    "FID": ("fid", "{:.3f}"),
    "±": ("half_interval", "{:.3f}"),
    "published": ("published_fid", "{:.2f}"),
    "sFID": ("sfid", "{:.2f}"),
    "IS": ("inception_score", "{:.2f}"),
    "KID x1000": ("kid_thousandths", "{:.3f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "class": ("class_agreement", "{:.3f}"),
    "caption": ("caption_agreement", "{:.3f}"),
    "CLIP": ("clip_score", "{:.2f}"),
}

_NUMBER = re.compile(r"=-?\d+(?:\.\d*)?(?=:|$)")


def load(folders: list[Path]) -> list[dict[str, Any]]:
    """Results, from folders with a `result.json` or from such files. ValueError by name where one is missing."""
    rows = []
    for folder in folders:
        path = folder / "result.json" if folder.is_dir() else folder
        if not path.is_file():
            raise ValueError(f"there is no result in {folder}: measure it first")
        try:
            rows.append(row(safe_json.read(path)))
            markdown(rows)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"the result {path} is damaged: {quoted(error)}") from None
    return rows


def timed(rows: list[dict[str, Any]], bench: Path) -> list[dict[str, Any]]:
    """`rows` with the seconds of a benchmark, by model and method; none where it has none. ValueError if damaged."""
    try:
        found = safe_json.read(bench)
        seconds = {(found["model"], each["method"]): float(each["seconds_per_image"]) for each in found["rows"]}
        timing = f"{bench.name}, batch {found['batch_size']}"
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ValueError(f"cannot read the benchmark {bench}: {quoted(error)}") from None
    out = []
    for one in rows:
        kept = {key: value for key, value in one.items() if key != "seconds_per_image"}
        known = seconds.get((one.get("model"), one.get("method")))
        out.append(kept if known is None else kept | {"seconds_per_image": known, "timing": timing})
    return out


def row(result: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of one result."""
    plan, images = result.get("plan") or {}, result["images"]
    out = {key: plan[key] for key in ("model", "method", "preset") if key in plan}
    out |= {key: result[key] for _, (key, _) in COLUMNS.items() if result.get(key) is not None}
    out |= {key: result[key] for key in ("features", "reference", "reference_sha256", "description")}
    out["warnings"] = list(result.get("warnings", []))
    changed = {**plan.get("law", {}), **{key: plan[key] for key in ("seed", "quantize") if plan.get(key)}}
    if changed:
        out["settings"] = ", ".join(f"{key} {value}" for key, value in changed.items())
    low, high = result["fid_interval"] or (math.nan, math.nan)
    if math.isfinite(high - low):
        out["half_interval"] = (high - low) / 2
    if result.get("kid") is not None:
        out["kid_thousandths"] = 1000 * result["kid"]
    if result.get("seconds_sampling") is not None:
        out["seconds_per_image"] = result["seconds_sampling"] / result.get("traced_images", images)
    return out


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table with the columns that some row fills; below it, what the figures are, and warnings."""
    used = {heading: how for heading, how in COLUMNS.items() if any(how[0] in row for row in rows)}
    lines = [f"| {' | '.join(used)} |", f"|{'---|' * len(used)}"]
    for one in rows:
        cells = [form.format(one[key]) if key in one else "" for key, form in used.values()]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *sorted({f"- {one['description']}" for one in rows})]
    lines += [f"- Seconds: {timing}." for timing in sorted({one["timing"] for one in rows if "timing" in one})]
    lines += [f"- Warning: {warning}." for warning in sorted({w for one in rows for w in one["warnings"]})]
    if len({(one["features"], one["reference_sha256"]) for one in rows}) > 1:
        lines.append("- Warning: these rows rest on different features or references and cannot be compared.")
    if len({one["images"] for one in rows}) > 1:
        lines.append("- Warning: these rows are of different numbers of images, on which a FID depends.")
    return "\n".join(lines) + "\n"


def families(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows whose methods differ in numbers only, by the name that they share: `zipar:window=2..14`."""
    out: dict[str, list[dict[str, Any]]] = {}
    for one in rows:
        out.setdefault(_NUMBER.sub("=", one.get("method", "")), []).append(one)
    return {_shared_name([one.get("method", "") for one in members]): members for members in out.values()}


def _shared_name(methods: list[str]) -> str:
    values = [
        sorted(set(column), key=lambda text: float(text[1:]))
        for column in zip(*map(_NUMBER.findall, methods), strict=True)
    ]
    ranges = iter("..".join(dict.fromkeys((some[0][1:], some[-1][1:]))) for some in values)
    return _NUMBER.sub(lambda _: f"={next(ranges)}", methods[0])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """FID against forwards and against seconds per image, with its interval, as PNG; a line for each family."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", sharey=True)
    for axis, key, label in zip(
        axes, ("forwards_per_image", "seconds_per_image"), ("forwards per image", "seconds per image"), strict=True
    ):
        for number, (name, members) in enumerate(families(rows).items()):
            timed = sorted((one for one in members if key in one and "fid" in one), key=itemgetter(key))
            style = {"fmt": "os^Dv*"[number // 10 % 6] + "-", "capsize": 2, "elinewidth": 0.6}
            values = [[one.get(field, math.nan) for one in timed] for field in (key, "fid", "half_interval")]
            axis.errorbar(*values, label=name, color=f"C{number % 10}", **style)  # ten colours
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
    axes[0].set_ylabel("FID (95% interval)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    for published in sorted({one["published_fid"] for one in rows if "published_fid" in one}):
        axes[0].axhline(published, linestyle="--", linewidth=1, color="grey")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    plt.close(figure)


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """`OUT.md`, `OUT.json` and `OUT.png`."""
    paths = [out.with_name(out.name + suffix) for suffix in (".md", ".json", ".png")]
    write_atomically(paths[0], lambda path: path.write_text(markdown(rows), encoding="utf-8"))
    write_json(paths[1], rows)
    plot(rows, paths[2])
