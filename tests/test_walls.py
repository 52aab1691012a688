"""The walls between the wings: a planted import of each wrong kind is found; the picture of them is up to date."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from check_imports import check, mirror  # noqa: E402

LATE = "\n\ndef late():\n    {}\n"


@pytest.fixture
def house(tmp_path):
    mirror(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        (
            "core/noise.py",
            LATE.format("from vargen.commands import main"),
            "not allowed to import vargen.commands",
        ),
        ("eval/report.py", "\nimport vargen.server.errors\n", "not allowed to import vargen.server"),
        (
            "samplers/ar.py",
            "\nfrom vargen.models import contract\n",
            "not allowed to import vargen.models",
        ),
        ("engine/graphs.py", "\nfrom vargen.engine import caches\n", "No circles BROKEN"),
    ],
    ids=["upwards", "sideways", "models", "circle"],
)
def test_a_planted_import_is_found(house, file, planted, broken, capfd):
    path = house / "vargen" / file
    path.write_text(path.read_text() + planted)
    assert check(house) != 0
    assert broken in " ".join(capfd.readouterr().out.split())


def test_the_picture_shows_the_imports_that_are_there():
    shown = json.loads(Image.open(ROOT / "docs" / "imports.png").text["Imports"])  # pyright: ignore
    command = [sys.executable, ROOT / "scripts" / "draw_imports.py", "--list"]  # where nothing of it is imported yet
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown == json.loads(there), "python scripts/draw_imports.py draws it again"
