"""The house itself: links at the root, no package that hides another, no work at import, files that stay short."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKS = ("tokenizers", "samplers", "kernels", "eval")


@pytest.mark.parametrize("name", LINKS)
def test_links_resolve_into_the_package_and_hold_no_init(name):
    link = ROOT / name
    assert link.is_symlink()
    assert not Path(link.readlink()).is_absolute()
    assert link.resolve() == ROOT / "vargen" / name
    assert not (link / "__init__.py").exists()


def test_links_do_not_hide_hugging_face_packages():
    code = "from transformers import PreTrainedTokenizerFast; import tokenizers; print(tokenizers.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_import_does_no_work():
    names = "sys, vargen, vargen.commands.main, vargen.core.registry"
    code = f"import {names}; print(sorted({{'torch', 'diffusers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_files_are_short_and_the_tree_is_small():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: the tracked files are unknown")
    files = [path for name in listed.stdout.split("\n") if name and (path := ROOT / name).is_file()]
    long = [str(f) for f in files if f.suffix == ".py" and f.read_text().count("\n") > 300]
    assert not long
    assert sum(f.stat().st_size for f in files) < 50 << 20
    weights = [f for f in files if f.parent.name == "weights" and f.suffix == ".safetensors"]
    assert sum(f.stat().st_size for f in weights) <= 38e6
