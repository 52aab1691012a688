"""`vargen completion`: a script that completes commands and flags in a shell."""

import importlib
from typing import Any

from vargen.commands.flags import Parser
from vargen.commands.main import COMMANDS


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
