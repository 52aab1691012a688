"""The command line, `vargen COMMAND [flags]`; the scripts are doors to the same functions."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from vargen import __version__
from vargen.flags import Parser

COMMANDS = {  # name -> the module that has `command(argv)` and its `parser()`, and what it does
    "sample": ("vargen.drawing", "draw images"),
    "bench": ("vargen.bench", "compare methods in seconds, in one process"),
    "evaluate": ("vargen.eval.command", "draw many images, measure them, compare runs"),
    "demo": ("vargen.demo.command", "a page to play with, in the browser"),
    "serve": ("vargen.server.command", "an image server"),
    "models": ("vargen.listing", "names of models and methods"),
    "plan": ("vargen.memory", "memory that a model will need, before anything is loaded"),
    "train-pocket": ("vargen.training.command", "train the models that ship, from scratch"),
    "completion": ("vargen.cli", "a script that completes all this in bash, zsh or tcsh"),
}


def guarded(run: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends it with one sentence and status 2, Ctrl-C with status 130."""
    try:
        run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a reader that has gone shows here, and not where nobody catches it
    except BrokenPipeError:  # the reader of our output has gone; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"vargen: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("vargen: stopped; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None


def usage() -> str:
    """Every command, a line each."""
    lines = [f"  {name:14} {does}" for name, (_, does) in COMMANDS.items()]
    return "\n".join(["usage: vargen COMMAND [flags]; each command takes --help", "", *lines])


def parser() -> Parser:
    """The flags of `completion`."""
    made = Parser(prog="vargen completion", description="Print a script that completes commands and flags.")
    made.add_argument(
        "shell", choices=["bash", "zsh", "tcsh"], help="keep what is printed in a file, which the shell reads"
    )
    return made


def command(argv: list[str]) -> None:
    """Print a completion script, made by shtab from the commands' own parsers."""
    import shtab

    shell = parser().parse_args(argv).shell
    tree: Any = Parser(prog="vargen")
    commands = tree.add_subparsers()
    for name, (module, does) in COMMANDS.items():
        commands.add_parser(name, help=does)
        commands.choices[name] = importlib.import_module(module).parser()
    print(shtab.complete(tree, shell))


def main() -> None:
    """The console script."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"

    def run(argv: list[str]) -> None:
        if name in ("-h", "--help"):
            print(usage())
        elif name == "--version":
            print(__version__)
        elif name in COMMANDS:
            importlib.import_module(COMMANDS[name][0]).command(argv)
        else:
            raise ValueError(f"unknown command {name!r}; there are {', '.join(COMMANDS)}")

    guarded(run, sys.argv[2:])
