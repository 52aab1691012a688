"""Train a head that drafts for a model, from images that the model draws: python scripts/train_drafter.py MODEL."""

from pathlib import Path

import torch

from vargen.commands.flags import Parser
from vargen.commands.main import guarded
from vargen.core.atomic import dumps
from vargen.training import drafter


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("model", help="which model it is to draft for")
    parser.add_argument("--out", type=Path, help="file of the head's weights (default: in --work)")
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="images and resume files")
    parser.add_argument("--checkpoint", type=Path, help="the model's weights, instead of the published ones")
    parser.add_argument("--prompts", type=Path, help="a prompt per line, for a model that takes prompts")
    parser.add_argument("--images", type=int, default=4000, help="how many the model draws to learn from")
    parser.add_argument("--method", default="ar", help="how it draws them")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--depth", type=int, default=3, help="tokens that are drafted in a row while training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--measure", action="store_true", help="only measure the head that is there")
    options = vars(parser.parse_args(argv))
    model, work = options.pop("model"), options.pop("work")
    out = options.pop("out") or work / f"{model}-eagle.safetensors"
    print(dumps({"model": model, "drafter": str(out), **drafter.run(model, out, work=work, **options)}))


if __name__ == "__main__":
    guarded(main)
