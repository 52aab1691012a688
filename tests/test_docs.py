"""What the documentation tells a reader to run: the Python of all pages and the `sh` blocks of docs/. Blocks called
`text` or `console` need downloads or a server, and are not run here.
"""

import re
import shlex
import sys
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from vargen.core import registry
from vargen.core.types import Trace
from vargen.pipelines.options import ContinuousOptions, Options, RasterOptions, ScaleOptions, table

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def written(page: Path, folder: Path) -> str:
    """The page's Python as one program; a block that begins with a file's name is that file."""
    program = []
    for block in blocks(page.read_text(), "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            (folder / name[1]).write_text(block)
        else:
            program.append(block)
    return "\n".join(program)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_python(page, tmp_path, monkeypatch):
    program = written(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))  # a page may add one
    exec(compile(program, page.name, "exec"), {"__name__": page.stem})
    assert program or page.name in ("reproduce.md", "serving.md", "methods.md", "models.md", "results.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page, tmp_path, monkeypatch):
    """In this process, which has PyTorch already, by what the package declares as its command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (command,) = entry_points(group="console_scripts", name="vargen")
    for block in blocks(page.read_text(), "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
            assert sys.argv[0] == "vargen", line
            command.load()()


def test_pages_say_all():
    trace = (ROOT / "docs" / "trace.md").read_text()
    assert all(f"`{field.name}`" in trace for field in fields(Trace))
    kernels = (ROOT / "vargen" / "kernels" / "README.md").read_text()
    others = {"hashed", "ahead"}
    assert all(
        f"`{file.name}`" in kernels for file in (ROOT / "vargen/kernels").glob("*.py") if file.stem not in others
    )


def test_options_are_those_of_the_code():
    page = (ROOT / "docs" / "options.md").read_text()
    assert all(table(kind) in page for kind in (Options, RasterOptions, ScaleOptions, ContinuousOptions))


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *PAGES, *(ROOT / "vargen").rglob("README.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_every_method_is_named(page):
    text = (ROOT / page).read_text()
    assert all(f"`{name}`" in text for name in registry.METHODS)
