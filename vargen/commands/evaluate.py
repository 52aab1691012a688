"""`vargen evaluate` and scripts/evaluate.py: sample, pack, measure, run, export, report."""

import argparse
from pathlib import Path

from vargen.commands import flags
from vargen.core import registry

CACHE = Path("out/evaluation-cache")


def command(argv: list[str]) -> None:
    """Run one of the commands."""
    options = parser().parse_args(argv)
    if options.act is None:
        raise ValueError("expected one of sample, run, measure, pack, export, report; each takes --help")
    registry.resolve(f"vargen.commands.evaluation:{options.act}")(options)


def parser() -> flags.Parser:
    """The flags of all of them."""
    made = flags.Parser(prog="vargen evaluate", description="Draw many images, measure them, compare runs.")
    made.set_defaults(act=None)
    commands = made.add_subparsers(parser_class=flags.Parser)
    _sample_flags(commands.add_parser("sample", help="draw many images into a folder; restarts where it stopped"))
    run = commands.add_parser("run", help="draw, measure and write the result")
    _sample_flags(run)
    _measure_flags(run)
    run.set_defaults(act="run_all")
    one = commands.add_parser("measure", help="figures of a run, a folder or an npz")
    one.add_argument("images", type=Path)
    one.add_argument("--device", help=flags.DEVICE)
    _measure_flags(one)
    one.set_defaults(act="measure_one")
    packed = commands.add_parser("pack", help="an npz in the ADM format, classes in turn")
    packed.add_argument("images", type=Path)
    packed.add_argument("out", type=Path)
    packed.set_defaults(act="pack_run")
    laid = commands.add_parser("export", help="the folders that a text-to-image benchmark's own evaluation wants")
    laid.add_argument("run", type=Path)
    laid.add_argument("--prompts", type=Path, required=True, help="the file that the run was drawn from")
    laid.add_argument("--layout", choices=["geneval", "dpg"], required=True)
    laid.add_argument("--out", type=Path, required=True)
    laid.set_defaults(act="export_run")
    table = commands.add_parser("report", help="one table and plots of many results")
    table.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    table.add_argument("--out", type=Path, default=Path("out/report"), help="OUT.md, OUT.json and OUT.png")
    table.add_argument("--seconds", type=Path, help="a benchmark's JSON: its seconds instead of the runs' own")
    table.set_defaults(act="report_all")
    return made


def _sample_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_law(parser)
    flags.add_options(parser, "method", "image_size")
    parser.add_argument("--num-images", type=int, help="in all; published FIDs are of 50,000")
    parser.add_argument("--prompts", type=Path, help="prompt file, for a model that takes text")
    parser.add_argument("--out", type=Path, help="folder of the run (default: out/evaluation/MODEL-METHOD)")
    parser.set_defaults(act="sample")


def _measure_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--features", choices=["pocket", "inception", "clip"], default="pocket")
    parser.add_argument(
        "--reference", type=Path, help="folder, npz of images or of statistics (default: pocket scenes)"
    )
    parser.add_argument("--reference-sha256", help="what the reference should be; a warning where it is another")
    parser.add_argument("--inception-weights", type=Path, help="torch-fidelity's file, instead of a download")
    parser.add_argument("--clip", help="folder or repository of a CLIP model; a run from prompts gets its CLIP score")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where painted references are kept")
    parser.add_argument("--json", type=Path, help="write the result here too")
