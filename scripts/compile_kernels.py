"""Compile every kernel for sm_80 and sm_90 without a GPU: python scripts/compile_kernels.py --json FILE."""

from pathlib import Path

from vargen.commands.flags import Parser
from vargen.commands.main import guarded
from vargen.core.atomic import check_writable, write_json
from vargen.kernels import ahead


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/kernels-compiled.json"))
    options = parser.parse_args(argv)
    check_writable([options.json])
    found = {name: [ahead.compiled(name, target) for target in ahead.TARGETS] for name in ahead.CASES}
    write_json(options.json, found)
    for name, cases in found.items():
        for case in cases:
            print(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in case.items()))


if __name__ == "__main__":
    guarded(main)
