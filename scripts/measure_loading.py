"""Seconds and host memory that loading takes: python scripts/measure_loading.py --model NAME --dtype bfloat16

Without --checkpoint a file of the published shapes is made (in a temporary folder) and loaded, on the CPU, in a fresh
process. Memory is what the process held at most, over what it held before it began.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vargen.commands.flags import Parser
from vargen.commands.main import guarded
from vargen.core import checkpoints
from vargen.core.atomic import dumps
from vargen.core.machine import peak_memory
from vargen.models.llamagen import LAYOUT, LlamaGen
from vargen.presets.llamagen import SHAPES


def synthesise(model: LlamaGen, path: Path) -> None:
    """A file as published, flat, in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = {key: shape for key, (_, shape) in LAYOUT.expected(model).items()}
    torch.save({key: torch.randn(shape, generator=generator) * 0.02 for key, shape in shapes.items()}, path)


def empty(name: str) -> LlamaGen:
    """The transformer of a preset on the meta device."""
    with torch.device("meta"):
        return LlamaGen(SHAPES[name])


def measure(name: str, path: Path, dtype: torch.dtype) -> dict[str, float]:
    """Load once and say what it took."""
    model, cpu = empty(name), torch.device("cpu")
    before, start = peak_memory(cpu), time.perf_counter()
    checkpoints.load_into(model, path, LAYOUT, dtype=dtype)
    seconds, size = time.perf_counter() - start, path.stat().st_size
    taken = peak_memory(cpu) - before
    return {"file_bytes": size, "seconds": seconds, "host_memory_bytes": taken, "memory_over_file": taken / size}


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llamagen-c2i-b-256", choices=SHAPES)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args(argv)
    if options.checkpoint:
        result = measure(options.model, options.checkpoint, getattr(torch, options.dtype))
        print(dumps({"model": options.model, "dtype": options.dtype, **result}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "official.pt"
        synthesise(empty(options.model), path)
        sys.exit(subprocess.run([sys.executable, __file__, *argv, "--checkpoint", str(path)]).returncode)


if __name__ == "__main__":
    guarded(main)
