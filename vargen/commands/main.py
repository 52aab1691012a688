"""The command line, `vargen COMMAND [flags]`; the scripts are doors to the same functions."""

import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from vargen.core.messages import escaped
from vargen.core.version import __version__

COMMANDS = {  # name -> the module that has `command(argv)` and its `parser()`, and what it does
    "sample": ("vargen.commands.sample", "draw images"),
    "bench": ("vargen.commands.bench", "compare methods in seconds, in one process"),
    "evaluate": ("vargen.commands.evaluate", "draw many images, measure them, compare runs"),
    "demo": ("vargen.commands.demo", "a page to play with, in the browser"),
    "serve": ("vargen.commands.serve", "an image server"),
    "models": ("vargen.commands.models", "names of models and methods"),
    "plan": ("vargen.commands.plan", "memory that a model will need, before anything is loaded"),
    "train-pocket": ("vargen.commands.train_pocket", "train the models that ship, from scratch"),
    "completion": ("vargen.commands.completion", "a script that completes all this in bash, zsh, fish or tcsh"),
}
STOPPED = 130  # the status of a process that Ctrl-C ended
NO_MEMORY = (
    "out of memory",  # CUDA's
    "can't allocate memory",  # a CPU's
    "not enough memory",  # a CPU's on Windows
    "ALLOC_FAILED",  # cuBLAS's and cuDNN's
    "Storage size calculation overflowed",  # before an allocator is asked
)


def guarded(run: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input or too little memory ends it with one sentence and status 2, Ctrl-C with 130."""
    try:
        run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a reader that has gone shows here, and not where nobody catches it
    except BrokenPipeError:  # the reader of our output has gone; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:  # who kept something says so in it
        _stopped(*stop.args)
    except Exception as error:
        if _heard:  # a library that was stopped while it was imported may call it by another name
            _stopped()
        if is_out_of_memory(error):
            error = "out of memory: lower --batch-size, or the number or the size of images, or name a smaller model"
        elif not isinstance(error, ValueError | OSError):
            raise
        print(f"vargen: {escaped(str(error))}", file=sys.stderr)  # nothing that a file says may look like our words
        raise SystemExit(2) from None


def _stopped(*words: object) -> NoReturn:
    print("; ".join(["vargen: stopped", *map(escaped, map(str, words))]), file=sys.stderr)
    raise SystemExit(STOPPED) from None


_heard: list[int] = []  # signals


def door(name: str, argv: Sequence[str] | None = None) -> None:
    """Run the command `name` as a process of its own does: Ctrl-C stops it, a second one at once."""

    def stop(number: int, frame: Any) -> None:
        _heard.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        while frame is not None:
            if "importlib" in frame.f_code.co_filename:  # libraries do not take it well, and nothing is kept yet
                os.write(2, b"vargen: stopped\n")
                os._exit(STOPPED)
            frame = frame.f_back
        raise KeyboardInterrupt

    for stream in ("stdout", "stderr"):
        if vars(sys)[stream] is None:  # a shell closed it, >&-
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that a terminal has no letters for is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    # GNU's threads wait by spinning, beside another busy process for longer than they work; torch brings them.
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    before = signal.signal(signal.SIGINT, stop)
    try:
        guarded(lambda words: importlib.import_module(COMMANDS[name][0]).command(words), argv)
    finally:
        if not _heard:
            signal.signal(signal.SIGINT, before)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator has failed: Python's, numpy's, or one of torch's, which are told by their words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    )


def usage() -> str:
    """Every command, a line each."""
    lines = [f"  {name:14} {does}" for name, (_, does) in COMMANDS.items()]
    return "\n".join(["usage: vargen COMMAND [flags]; each command takes --help", "", *lines])


def main() -> None:
    """The console script."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"

    def other(argv: list[str]) -> None:
        if name in ("-h", "--help"):
            print(usage())
        elif name == "--version":
            print(__version__)
        else:
            from vargen.core.registry import unknown

            raise ValueError(unknown("command", name, list(COMMANDS)))

    door(name, sys.argv[2:]) if name in COMMANDS else guarded(other, sys.argv[2:])
