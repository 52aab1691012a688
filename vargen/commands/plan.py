"""`vargen plan`: the memory that a model will need, before anything is loaded."""

from vargen.commands import flags
from vargen.commands.flags import DEFAULT_MODEL, Parser


def parser() -> Parser:
    """The flags of `vargen plan`."""
    made = Parser(prog="vargen plan", description="Memory for a batch of images, computed from a model's shapes.")
    made.add_argument("--model", default=DEFAULT_MODEL, help=flags.MODEL)
    flags.add_options(made, "method", "preset", "guidance_scale", "height", "width")
    flags.add_options(made, "batch_size", default=1)
    made.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16", help="of the weights")
    return made


def command(argv: list[str]) -> None:
    """Print the plan of a model."""
    options = vars(parser().parse_args(argv))
    from vargen.pipelines.plan import plan  # slow: help and complaints need none of it

    print(plan(options.pop("model"), batch=options.pop("batch_size"), **options))
