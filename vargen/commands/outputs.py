"""Where `vargen sample` writes: folders, patterns, formats, and names that nothing has yet."""

import re
import string
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vargen.commands.flags import home
from vargen.core import png
from vargen.core.atomic import check_writable, claimed

NAME = "sample.png"  # of the grid, where a folder is named
OF_ALL = ("model", "method", "preset")
OF_EACH = ("seed", "index")
MOST_SHEET = 1 << 29  # pixels of all images in a grid, which are held until it is written: 512 of 1024 a side


@dataclass(frozen=True)
class Outputs:
    """Files to be written; `stale` are an earlier run's images that would stand among these."""

    grid: Path | None  # None: each image has a name of its own, and there is no grid
    singles: list[Path]  # none where the grid is the only image
    trace: Path | None
    stale: list[Path]

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [path for path in (self.grid, *self.singles, self.trace) if path is not None]

    @property
    def taken(self) -> bool:
        """Whether any of the names is an earlier run's."""
        return bool(self.stale) or any(path.is_file() for path in self.paths)

    @property
    def shown(self) -> str:
        """What to call them in a report."""
        last = f" to {self.singles[-1]}" if len(self.singles) > 1 else ""
        return str(self.grid or f"{self.singles[0]}{last}")


def check(out: str) -> str:
    """The pattern that --out stands for: a folder's has a name added. ValueError where it is none."""
    text = str(home(out + NAME if out.endswith("/") else out))
    try:
        used = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError:
        raise ValueError(f"got --out {out}, expected braces in pairs with a field between them") from None
    if wrong := [field for field in used if field not in OF_ALL + OF_EACH]:
        known = ", ".join(f"{{{field}}}" for field in OF_ALL + OF_EACH)
        raise ValueError(f"got {{{wrong[0]}}} in --out {out}, expected fields among {known}")
    if Path(text).suffix.lower() not in png.FORMATS:
        raise ValueError(f"got --out {out}, expected a name that ends in .png, .jpg, .jpeg or .webp")
    return text


@contextmanager
def choose(
    out: str, about: dict[str, str], seeds: list[int], trace: Path | None, *, overwrite: bool
) -> Iterator[Outputs]:
    """Names for images of these seeds. Where a run's names are taken, all of its names get the next free number:
    sample.png and sample-0.png, then sample_2.png and sample_2-0.png. With `overwrite` they are taken again.

    Taken is also what another process draws just now: the first name stands for all, until the block ends.
    """
    number, found = 1, _numbered(out, about, seeds, trace, 1)
    while True:
        if overwrite or not found.taken:
            check_writable(found.paths)
            with nullcontext(True) if overwrite else claimed(found.paths[0]) as mine:
                found = _numbered(out, about, seeds, trace, number)  # what is there now
                if overwrite or (mine and not found.taken):
                    yield found
                    return
        number += 1
        found = _numbered(out, about, seeds, trace, number)


def _numbered(out: str, about: dict[str, str], seeds: list[int], trace: Path | None, number: int) -> Outputs:
    text, known = check(out), {key: re.sub(r"[^\w.=+-]", "-", value) for key, value in about.items()}
    each = any(field in OF_EACH for _, field, _, _ in string.Formatter().parse(text))
    told = _marked(trace, number) if trace else None
    try:
        paths = [Path(text.format(seed=seed, index=i, **known)) for i, seed in enumerate(seeds if each else seeds[:1])]
    except (ValueError, TypeError) as error:
        raise ValueError(f"got --out {out} with a format that does not fit: {error}") from None
    paths = [_marked(path, number) for path in paths]
    if each:
        return Outputs(None, paths, told, [])
    (grid,) = paths
    if len(seeds) == 1:
        return Outputs(grid, [], told, [])
    suffix = grid.suffix or ".png"
    singles = [grid.with_name(f"{grid.stem}-{i}{suffix}") for i in range(len(seeds))]
    return Outputs(grid, singles, told, _later(grid, suffix, len(seeds)))


def _marked(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")


def _later(grid: Path, suffix: str, count: int) -> list[Path]:
    """Images beside a grid whose numbers go on where those of its run end."""
    if not grid.parent.is_dir():
        return []
    numbered = re.compile(rf"{re.escape(grid.stem)}-(\d{{1,9}}){re.escape(suffix)}")
    named = [(path, numbered.fullmatch(path.name)) for path in grid.parent.iterdir()]
    return sorted(path for path, match in named if match and int(match[1]) >= count)


def check_grid(grid: Path | None, count: int, size: tuple[int, int]) -> None:
    """ValueError where images of `size` (height, width) are too many for a grid, or for its format."""
    if grid is None:
        return
    times = png.enlargement(count, size)
    high, wide = -(-count // png.COLUMNS) * size[0] * times, min(count, png.COLUMNS) * size[1] * times
    kind = png.FORMATS[grid.suffix.lower()]
    most: Any = png.MOST_SIDES.get(kind)
    if most is not None and max(high, wide) > most:
        raise ValueError(f"got a grid of {wide}x{high} pixels, expected at most {most} a side in {kind}: write a PNG")
    if high * wide > MOST_SHEET:
        raise ValueError(
            f"got a grid of {count} images of {size[1]}x{size[0]}, expected at most {MOST_SHEET} pixels in all: "
            "lower --num-images, or name each image with {index} in --out, which makes no grid"
        )


def kept(paths: list[Path]) -> list[str]:
    """What is said of pictures that stay when a run is stopped: nothing where there is none."""
    several = f" to {paths[-1]}" if len(paths) > 1 else ""
    return [f"{len(paths)} image{'s' * (len(paths) > 1)} kept: {paths[0]}{several}"] if paths else []
