"""`vargen plan`: the memory that a model will need, before anything is loaded."""

import torch

from vargen.commands import flags
from vargen.commands.flags import DEFAULT_MODEL, Parser
from vargen.pipelines.plan import plan


def parser() -> Parser:
    """The flags of `vargen plan`."""
    made = Parser(
        prog="vargen plan", description="Memory for a batch of images, computed from a raster model's shapes."
    )
    made.add_argument("--model", default=DEFAULT_MODEL, help="name of a raster model, see vargen models")
    made.add_argument("--method", help="with its settings (default: the model's)")
    flags.add_options(made, "batch_size", default=1)
    flags.add_options(made, "preset")
    made.add_argument("--guidance-scale", type=float, help="off at 1: half of the cache")
    made.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    flags.add_options(made, "height", "width")
    return made


def command(argv: list[str]) -> None:
    """Print the plan of a model."""
    options = vars(parser().parse_args(argv))
    batch, dtype = options.pop("batch_size"), getattr(torch, options.pop("dtype"))
    print(plan(options.pop("model"), batch=batch, dtype=dtype, **options))
