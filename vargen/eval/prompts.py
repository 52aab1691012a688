"""Prompt files: COCO captions, PartiPrompts, GenEval, DPG-Bench, plain text; and the folders that two of them want."""

import csv
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vargen.core import safe_json
from vargen.core.atomic import dumps
from vargen.core.messages import quoted
from vargen.eval.images import read_image

MOST_BYTES = 512 << 20  # COCO's captions of all training images have 90 MB


@dataclass(frozen=True)
class Prompt:
    """A text, with its name in its source and whatever else that says of it."""

    text: str
    name: str
    metadata: dict[str, Any]


def read(path: Path) -> list[Prompt]:
    """Prompts of a file or folder, by its form. ValueError, by name, where it has none or is damaged.

    .txt: one a line. .tsv: PartiPrompts (column Prompt). .jsonl: GenEval (key prompt). .json: COCO captions
    (annotations with caption). A folder of .txt: DPG-Bench, one prompt a file.
    """
    if path.is_dir():
        found = [Prompt(_text(file).strip(), file.stem, {}) for file in sorted(path.glob("*.txt"))]
    elif not path.is_file():
        raise ValueError(f"no prompts {path}")
    else:
        readers = {".txt": _lines, ".tsv": _parti, ".jsonl": _geneval, ".json": _coco}
        if path.suffix not in readers:
            raise ValueError(f"got prompts {path}, expected a folder or one of {', '.join(readers)}")
        try:
            found = readers[path.suffix](path)
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise ValueError(f"the prompts {path} are damaged: {quoted(error)}") from None
    if not found or not all(isinstance(prompt.text, str) and prompt.text.strip() for prompt in found):
        raise ValueError(f"there are no prompts in {path}, or an empty one")
    return found


def _text(path: Path) -> str:
    """A file's text, without the mark that some editors put in front. ValueError, by name, where it is not UTF-8."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"the prompts {path} have {size} bytes, expected at most {MOST_BYTES}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompts {path} are not UTF-8: {error.reason}") from None


def _lines(path: Path) -> list[Prompt]:
    lines = [line.strip() for line in _text(path).split("\n")]
    return [Prompt(line, str(i), {}) for i, line in enumerate(filter(None, lines))]


def _parti(path: Path) -> list[Prompt]:
    rows = csv.DictReader(_text(path).split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE)  # its quotes are text
    return [Prompt(row["Prompt"].strip(), str(i), dict(row)) for i, row in enumerate(rows)]


def _geneval(path: Path) -> list[Prompt]:
    rows = [safe_json.parse(line) for line in _text(path).split("\n") if line.strip()]
    return [Prompt(row["prompt"], f"{i:05d}", row) for i, row in enumerate(rows)]


def _coco(path: Path) -> list[Prompt]:
    rows = safe_json.parse(_text(path))["annotations"]
    return [Prompt(row["caption"].strip(), str(row["id"]), row) for row in rows]


def export(images: list[Path], prompts: list[Prompt], layout: str, out: Path) -> None:
    """Lay the images of a run out as a benchmark's own evaluation wants them.

    geneval: `00000/metadata.jsonl` and `00000/samples/00000.png`. dpg: `NAME.png`, the images of a prompt in a grid two
    wide. Image i shows prompt i modulo their number.
    """
    if len(images) % len(prompts):
        raise ValueError(f"got {len(images)} images of {len(prompts)} prompts, expected as many of each")
    names = [prompt.name for prompt in prompts]
    if layout == "dpg" and (len(set(names)) < len(names) or not all(re.fullmatch(r"[\w-]+", name) for name in names)):
        raise ValueError("the prompts have no plain names of their own, which dpg's files are called by")
    if layout == "geneval" and not all({"tag", "include"} <= prompt.metadata.keys() for prompt in prompts):
        raise ValueError("the prompts are not GenEval's: they lack the fields tag and include that its scores need")
    for index, prompt in enumerate(prompts):
        mine = images[index :: len(prompts)]
        if layout == "geneval":
            folder = out / f"{index:05d}"
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            (folder / "metadata.jsonl").write_text(dumps(prompt.metadata) + "\n", encoding="utf-8")
            for number, path in enumerate(mine):
                shutil.copyfile(path, folder / "samples" / f"{number:05d}.png")
        elif layout == "dpg":
            out.mkdir(parents=True, exist_ok=True)
            _grid(mine, out / f"{prompt.name}.png")
        else:
            raise ValueError(f"unknown layout {layout!r}; there are geneval, dpg")


def _grid(paths: list[Path], out: Path) -> None:
    from PIL import Image

    from vargen.core.png import grid, save_picture

    save_picture(out, grid([Image.fromarray(read_image(path)) for path in paths], columns=2), {})
