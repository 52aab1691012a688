"""What the documentation tells a reader to run: the Python of all pages and the `sh` blocks of docs/. Blocks called
`text` or `console` need downloads or a server, and are not run here.
"""

import re
import runpy
import shlex
import sys
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from vargen.core import registry
from vargen.core.trace import Trace
from vargen.pipelines.options import ContinuousOptions, GlmImageOptions, Options, RasterOptions, ScaleOptions, table

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python(page, tmp_path, monkeypatch):
    program = written(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))  # a page may add one
    exec(compile(program, page.name, "exec"), {"__name__": page.stem})
    assert program or page.name in (
        "batch_jobs.md",
        "reproduce.md",
        "serving.md",
        "methods.md",
        "models.md",
        "results.md",
    )


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


def test_the_readme_saves_what_it_says(tmp_path, monkeypatch, capsys):
    """Its Python prints the figure beside it, up to rounding; its `vargen sample` lines save more than half."""
    text = (ROOT / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(compile(written(ROOT / "README.md", tmp_path), "README.md", "exec"), {})
    (told,) = re.findall(r"# (\d+) forwards instead of 256", text)
    (saved,) = re.findall(r"^(\d+) forwards instead of 256$", capsys.readouterr().out, re.MULTILINE)
    assert abs(int(saved) - int(told)) <= 3
    lines = [line for block in blocks(text, "sh") for line in block.splitlines() if line.startswith("vargen sample")]
    (command,) = entry_points(group="console_scripts", name="vargen")
    assert len(lines) == 3
    for line in lines:
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        command.load()()
        said = capsys.readouterr().out
        ((took, plain),) = re.findall(r"(\d+) forwards instead of (\d+)", said)
        assert 2 * int(took) < int(plain)
        assert "the same law" in said
        assert ("times as fast" in said) == ("--compare" in line)
        assert ("byte for byte" in said) == ("--like" in line)


def test_commands_are_spelled_in_one_way():
    """As the installed command: scripts of that name are for a checkout."""
    doors = "sample|benchmark|evaluate|serve|demo|train_pocket"
    pages = [ROOT / "README.md", *PAGES, *(ROOT / "vargen").rglob("README.md")]
    found = [
        (page.name, line) for page in pages for line in re.findall(rf"python scripts/(?:{doors})\.py", page.read_text())
    ]
    assert found == []


def test_the_package_s_readme_works_without_a_checkout():
    """On an index: pictures and pages by address. The address is a placeholder until a release."""
    text = runpy.run_path(str(ROOT / "setup.py"))["readme"]()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 15
    assert all(target.startswith(("https://", "#")) for target in targets)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures
    assert all(picture.startswith("https://REPOSITORY/raw/main/docs/") for picture in pictures)


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
    kinds = (Options, RasterOptions, GlmImageOptions, ScaleOptions, ContinuousOptions)
    assert all(table(kind) in page for kind in kinds)


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *PAGES, *(ROOT / "vargen").rglob("README.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_every_method_is_named(page):
    text = (ROOT / page).read_text()
    assert all(f"`{name}`" in text for name in registry.METHODS)
