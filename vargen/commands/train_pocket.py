"""`vargen train-pocket` and scripts/train_pocket.py: train the models that ship, from scratch. Resumes by itself."""

import argparse
from pathlib import Path

from vargen.commands.flags import DEVICE, Parser
from vargen.core import registry
from vargen.core.atomic import dumps


def parser() -> Parser:
    """The flags."""
    made = Parser(
        prog="vargen train-pocket", description="Train the models that ship, from scratch; resumes by itself."
    )
    made.add_argument("name", metavar="NAME", help="all, or one that ships: pocket-llamagen, pocket-vq and so on")
    made.add_argument("--work", type=Path, default=Path("out/train"), help="data and resume files")
    made.add_argument("--weights", type=Path, help="folder of the final weights (default: the package's)")
    made.add_argument("--steps", type=int, help="so many (default: the recipe's)")
    made.add_argument("--measure", action="store_true", help="only measure the weights that are there")
    made.add_argument("--seed", type=int, default=0, help="of weights and batches")
    made.add_argument("--device", help=DEVICE)
    return made


def command(argv: list[str]) -> None:
    """Train one model, or all in order."""
    options = parser().parse_args(argv)
    from vargen.pipelines.loading import find_device  # torch is slow to import, and flags are made without it
    from vargen.training import pocket

    find_device(options.device)
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"got {options.steps} steps, expected at least 1")
    names = ["all", *pocket.RECIPES]
    if options.name not in names:
        raise ValueError(registry.unknown("name", options.name, names))
    for name in pocket.RECIPES if options.name == "all" else [options.name]:
        figures = _act(name, options, {"work": options.work, "weights": options.weights or pocket.WEIGHTS})
        print(dumps({"model": name, **figures}))


def _act(name: str, options: argparse.Namespace, where: dict[str, Path]) -> dict[str, float]:
    """Train a model, or only measure it; who stops that hears where it goes on from."""
    from vargen.pipelines.loading import find_device
    from vargen.training import pocket

    device = find_device(options.device)
    if options.measure:
        return pocket.measure(name, **where, device=device)
    try:
        return pocket.train(name, **where, seed=options.seed, steps=options.steps, device=device)
    except KeyboardInterrupt:
        kept = options.work / f"{name}.pt"
        words = [f"{kept} is kept, from which the same command goes on"] if kept.exists() else []
        raise KeyboardInterrupt(*words) from None
