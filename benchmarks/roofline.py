"""Print the limit beside each figure of a synthetic benchmark: python benchmarks/roofline.py FILE ..."""

import json
from pathlib import Path

from vargen.commands.flags import Parser
from vargen.commands.main import guarded
from vargen.commands.synthetic import limited, table


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="written by scripts/benchmark.py --synthetic")
    parser.add_argument("--bandwidth", type=float, help="GB/s, in place of the one that was measured")
    options = parser.parse_args(argv)
    for path in options.files:
        result = json.loads(path.read_text())
        if "bytes_per_second" not in result:
            raise ValueError(f"{path} was not written by scripts/benchmark.py --synthetic")
        if options.bandwidth:
            result["bytes_per_second"] = options.bandwidth * 1e9
        print(table(limited(result)), end="\n\n")


if __name__ == "__main__":
    guarded(main)
