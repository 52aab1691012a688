"""Modules of a checkout that a user has: imported from its folder, without a trace in this process's own imports.

Checkouts call their packages `models`, `utils` or `dist`, names that others have as well: while one is imported, those
stand aside, and afterwards they are back. What was imported lives on in whoever holds it. It is code, and runs.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from vargen.core.messages import first_line


def imported(folder: Path, what: str, names: Sequence[str]) -> list[Any]:
    """Modules `names` of the checkout of `what` in `folder`.

    ValueError where it is none, lacks one of their files, or cannot be imported.
    """
    root = folder.expanduser().resolve()
    for name in names:
        file = Path(*name.split(".")).with_suffix(".py")
        if not (root / file).is_file():
            raise ValueError(f"no {file} in {folder}: expected a checkout of {what}")
    with _alone(root):
        try:
            found = [importlib.import_module(name) for name in names]
        except Exception as error:  # whatever its code raises
            why = f"{type(error).__name__}: {first_line(error)}"
            raise ValueError(f"the checkout of {what} in {folder} cannot be imported: {why}") from error
    for module in found:
        if not _inside(module, root):
            raise ValueError(f"{module.__name__} was found in {module.__file__}, expected it in {folder}")
    return found


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """`root` first among the places of modules, those with names of its own aside; afterwards all is as before."""
    own = {entry.stem for entry in root.iterdir() if entry.is_dir() or entry.suffix == ".py"}
    path, bytecode = list(sys.path), sys.dont_write_bytecode
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in own}
    others = set(sys.modules)
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True  # the folder is the user's
    importlib.invalidate_caches()
    try:
        yield
    finally:
        # Before any is gone: packages without a file look for themselves among the others, and in `sys.path`.
        theirs = [name for name in set(sys.modules) - others if _inside(sys.modules[name], root)]
        for name in theirs:
            del sys.modules[name]
        sys.path[:], sys.dont_write_bytecode = path, bytecode
        sys.modules.update(aside)
        for place in list(sys.path_importer_cache):
            if Path(place).is_relative_to(root):
                del sys.path_importer_cache[place]


def _inside(module: ModuleType, root: Path) -> bool:
    """Whether a module, or a package without a file of its own, comes from `root`."""
    about = vars(module)
    places = [about["__file__"]] if about.get("__file__") else list(about.get("__path__", ()))
    return any(Path(place).resolve().is_relative_to(root) for place in places)
