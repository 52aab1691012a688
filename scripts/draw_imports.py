"""The wings of the package and who imports whom, as a picture: python scripts/draw_imports.py [OUT.png | --list]

Drawn from the imports that are really there, on the floors of the contract in pyproject.toml. The PNG carries what it
shows, so that a test, by `--list`, tells when it is out of date.
"""

import json
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import grimp
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

if __package__ is None:
    sys.path.insert(0, str(Path(__file__).parent))
from check_imports import ROOT, mirror

WIDE, HIGH, GAP = 1.9, 0.62, 1.35  # of a wing, in inches, and from floor to floor
ASIDE = {"presets": 2.6, "samplers": -2.1}  # so that arrows pass them


def floors() -> list[list[str]]:
    """The wings of each floor, from the top, as the contract has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layers if layer != "__main__"]


def imports() -> dict[str, int]:
    """How many imports lead from each wing to each other, by `from>to`."""
    with tempfile.TemporaryDirectory() as folder:
        mirror(Path(folder))
        sys.path.insert(0, folder)
        try:
            graph = grimp.build_graph("vargen", cache_dir=None)
        finally:
            sys.path.remove(folder)
    found: Counter[str] = Counter()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            ours, theirs = (name.split(".")[1] if "." in name else "" for name in (module, other))
            if ours and theirs and ours != theirs and not ours.startswith("__"):
                found[f"{ours}>{theirs}"] += 1
    return dict(sorted(found.items()))


def shown(found: dict[str, int]) -> dict[str, int]:
    """The imports without those that a way over other wings implies."""
    ways: dict[str, set[str]] = {}
    for pair in found:
        ours, theirs = pair.split(">")
        ways.setdefault(ours, set()).add(theirs)

    def reached(wing: str) -> set[str]:
        return {far for near in ways.get(wing, ()) for far in (near, *reached(near))}

    out = {}
    for pair, count in found.items():
        ours, theirs = pair.split(">")
        if all(theirs not in reached(other) for other in ways[ours] - {theirs}):
            out[pair] = count
    return out


def draw(found: dict[str, int], out: Path) -> None:
    """Boxes on their floors; an arrow is as thick as there are imports."""
    levels, places = floors(), {}
    widest = max(map(len, levels))
    figure = Figure(figsize=(widest * (WIDE + 0.7), len(levels) * GAP), layout="constrained")
    axes: Any = figure.subplots()
    for level, wings in enumerate(levels):
        for index, wing in enumerate(wings):
            x = (index - (len(wings) - 1) / 2) * (WIDE + 0.7) + ASIDE.get(wing, 0)
            places[wing] = (x, -level * GAP)
            corner = (x - WIDE / 2, -level * GAP - HIGH / 2)
            axes.add_patch(FancyBboxPatch(corner, WIDE, HIGH, boxstyle="round,pad=0.04", fc="#eef3fa", ec="#4c72b0"))
            axes.text(x, -level * GAP, wing, ha="center", va="center", fontsize=13)
    for pair, count in shown(found).items():
        (x, y), (u, v) = (places[wing] for wing in pair.split(">"))
        look = {"arrowstyle": "-|>", "lw": 0.5 + count**0.5 / 3, "color": "#55585f"}
        axes.annotate("", (u, v + HIGH / 2 + 0.06), (x, y - HIGH / 2 - 0.06), arrowprops=look)
    axes.set_xlim(-widest * (WIDE + 0.7) / 2, widest * (WIDE + 0.7) / 2)
    axes.set_ylim(-(len(levels) - 0.4) * GAP, HIGH)
    axes.set_axis_off()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=64, metadata={"Imports": json.dumps(sorted(found))})


if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        print(json.dumps(sorted(imports())))
    else:
        draw(imports(), Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "imports.png")
