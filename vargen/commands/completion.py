"""`vargen completion`: a script that completes commands, flags and their values in a shell."""

import argparse
import importlib
import shlex
from typing import Any

from vargen.commands.flags import Parser
from vargen.commands.main import COMMANDS
from vargen.core import registry
from vargen.scenes import CLASSES

SHELLS = ("bash", "zsh", "fish", "tcsh")


def parser() -> Parser:
    """The flags of `completion`."""
    made = Parser(prog="vargen completion", description="Print a script that completes commands, flags and values.")
    made.add_argument("shell", choices=SHELLS, help="keep what is printed in a file, which the shell reads")
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
        _offer(commands.choices[name], shell)
    print(shtab.complete(tree, shell))


def _offer(made: argparse.ArgumentParser, shell: str) -> None:
    """Give flags and names their values, which only whoever looks them up would refuse."""
    values = {
        "model": list(registry.MODELS),
        "method": list(registry.METHODS),
        "class_labels": [_quoted(name, shell) for name in CLASSES],  # of the models that ship
    }
    values |= {"drafter": [*registry.MODELS, "eagle"], "name": values["model"]}
    for action in made._actions:
        if isinstance(action.choices, dict):  # commands of a command
            for part in action.choices.values():
                _offer(part, shell)
        elif action.choices is None and action.dest in values:
            action.choices = values[action.dest]


def _quoted(name: str, shell: str) -> str:
    """A value with spaces, as the script of a shell has to hold it."""
    if shell == "fish" or " " not in name:
        return name
    escaped = name.replace(" ", "\\ ")
    return shlex.quote(escaped) if shell == "bash" else escaped
