"""`vargen train-pocket` and scripts/train_pocket.py: train the models that ship, from scratch. Resumes by itself."""

from pathlib import Path

from vargen.commands.flags import Parser
from vargen.core.atomic import dumps
from vargen.pipelines.loading import find_device
from vargen.training import pocket


def parser() -> Parser:
    """The flags."""
    made = Parser(
        prog="vargen train-pocket", description="Train the models that ship, from scratch; resumes by itself."
    )
    made.add_argument(
        "name", choices=["all", *pocket.RECIPES], metavar="NAME", help=f"all, {', '.join(pocket.RECIPES)}"
    )
    made.add_argument("--work", type=Path, default=Path("out/train"), help="data and resume files")
    made.add_argument("--weights", type=Path, default=pocket.WEIGHTS, help="folder of the final weights")
    made.add_argument("--steps", type=int, help="instead of the recipe's")
    made.add_argument("--measure", action="store_true", help="only measure the weights that are there")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    return made


def command(argv: list[str]) -> None:
    """Train one model, or all in order."""
    options = parser().parse_args(argv)
    device = find_device(options.device)
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"got {options.steps} steps, expected at least 1")
    for name in pocket.RECIPES if options.name == "all" else [options.name]:
        where = {"work": options.work, "weights": options.weights, "device": device}
        if options.measure:
            figures = pocket.measure(name, **where)
        else:
            figures = pocket.train(name, seed=options.seed, steps=options.steps, **where)
        print(dumps({"model": name, **figures}))
