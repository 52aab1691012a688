"""Train the models that ship, from scratch: python scripts/train_pocket.py all (or one name). Resumes by itself."""

import json
from pathlib import Path

import torch

from vargen.cli import Parser, guarded
from vargen.training import pocket


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("name", choices=["all", *pocket.RECIPES], help="which model; all: in order")
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="data and resume files")
    parser.add_argument("--weights", type=Path, default=pocket.WEIGHTS, help="folder of the final weights")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--measure", action="store_true", help="only measure the weights that are there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    for name in pocket.RECIPES if options.name == "all" else [options.name]:
        where = {"work": options.work, "weights": options.weights, "device": torch.device(options.device)}
        if options.measure:
            figures = pocket.measure(name, **where)
        else:
            figures = pocket.train(name, seed=options.seed, steps=options.steps, **where)
        print(json.dumps({"model": name, **figures}))


if __name__ == "__main__":
    guarded(main)
