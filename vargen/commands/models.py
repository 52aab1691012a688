"""`vargen models`: names of models, their presets, and methods."""

from vargen.commands.flags import Parser
from vargen.core import registry


def parser() -> Parser:
    """No flags."""
    return Parser(prog="vargen models", description="Show models, the presets of each, and methods.")


def command(argv: list[str]) -> None:
    """Print the list."""
    parser().parse_args(argv)
    print(listing())


def listing() -> str:
    """Every model, with its presets, and every method, a line each."""
    lines = ["models, and the presets of each:"]
    for preset in map(registry.preset, registry.MODELS):
        lines.append(f"  {preset.name:24} {preset.summary} [{', '.join(preset.recipes)}]")
    lines.append("methods:")
    lines += [f"  {name:24} {registry.summary(name)}" for name in registry.METHODS]
    return "\n".join(lines)
