"""The walls between the wings, checked by import-linter: python scripts/check_imports.py

The contracts are in pyproject.toml. Folders of the package have no `__init__.py` (tests/test_layout.py says why), and
import-linter sees only folders that have one: so it looks at a copy in which each has.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def mirror(target: Path) -> None:
    """A copy of the package's Python files in `target`, every folder with an `__init__.py`."""
    shutil.copytree(ROOT / "vargen", target / "vargen", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    for folder in (target / "vargen").rglob("*/"):
        (folder / "__init__.py").touch()


def check(folder: Path) -> int:
    """Status 0 where all contracts hold in the copy in `folder`."""
    command = [Path(sys.executable).parent / "lint-imports", ROOT / "pyproject.toml", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment).returncode


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        mirror(Path(made))
        raise SystemExit(check(Path(made)))
