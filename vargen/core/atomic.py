"""Writing files whole or not at all, by one process at a time; finding out early what cannot be written; JSON."""

import contextlib
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vargen.core.messages import quoted

PART, OLD = ".part", 24 * 3600  # how a folder that is being written ends, and seconds behind which nobody writes it


def dumps(content: Any, **options: Any) -> str:
    """`content` as JSON that every reader takes. ValueError for infinities and what is no number: JSON has none."""
    return json.dumps(content, allow_nan=False, **options)


def as_path(value: Any, name: str) -> Path:
    """`value` as a path. ValueError where it is none, or such as no system takes."""
    try:
        path = Path(os.fspath(value)).expanduser()
        with contextlib.suppress(FileNotFoundError):
            path.stat()
    except (TypeError, ValueError, RuntimeError, OSError):
        raise ValueError(f"got {name} {quoted(value)}, expected a path") from None
    return path


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON, written whole or not at all."""
    text = dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there: a reader never sees half a file.

    Folders are made; a link is followed, so that what it points to is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `path`, then move it there: a reader never sees half of one.

    ValueError where there is something that it would replace.
    """
    path = path.resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"cannot write the folder {path}: it is there and not empty; name a new one")
    check_writable([path / "file"])
    path.parent.mkdir(parents=True, exist_ok=True)
    front = f".{path.name[:40]}."
    for old in path.parent.glob(f"{glob.escape(front)}????????{PART}"):
        if time.time() - old.stat().st_mtime > OLD and old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)  # of a process that was killed
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=front, suffix=PART))
    try:
        write(temporary)
        temporary.chmod(0o777 & ~_umask())
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among all who lock the file `path`, which is made and stays; a lock goes with its process, however it ends.

    Where the system has no flock (Windows), nobody waits.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether `path` is this process's to write, and no other's that claims it, until the block ends or the process.

    The file beside it that stands for the claim is taken away again. Where the system has no flock, nobody is refused.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name[:200]}.claim")
    with beside.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = beside.exists() and os.path.samestat(os.fstat(file.fileno()), beside.stat())
        except OSError:  # another's, or just taken away by it
            mine = False
        try:
            yield mine
        finally:
            if mine:
                beside.unlink(missing_ok=True)
            if new:
                with contextlib.suppress(OSError):  # something was written there
                    path.parent.rmdir()


def check_writable(paths: list[Path]) -> None:
    """ValueError where files at `paths` could not all be written. Makes nothing."""
    seen: set[Path] = set()
    for path in paths:
        try:
            resolved = path.resolve()
        except (RuntimeError, OSError):  # links that go round in a circle
            raise ValueError(f"cannot write {path}: it is a link that leads nowhere") from None
        if resolved in seen:
            raise ValueError(f"cannot write {path} twice: the outputs need names of their own")
        seen.add(resolved)
    tried: set[Path] = set()
    for path in paths:
        if path.exists() and not path.is_file():
            raise ValueError(f"cannot write {path}: it is there and is no file")
        parent = next(p for p in path.resolve().parents if p.exists())
        if not parent.is_dir():
            raise ValueError(f"cannot write to {path.parent}: {parent} is no folder")
        if parent in tried:
            continue
        tried.add(parent)
        try:
            with tempfile.TemporaryFile(dir=parent):
                pass
        except OSError as error:
            raise ValueError(f"cannot write to {path.parent}: {os.strerror(error.errno or 0)}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
