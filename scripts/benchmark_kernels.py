"""Time every kernel against its twin, plain and under torch.compile, on a GPU: python scripts/benchmark_kernels.py."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vargen import core, noise
from vargen.bench import machine
from vargen.cli import Parser, guarded
from vargen.core import Trace
from vargen.files import check_writable, write_atomically
from vargen.kernels import relax, sample, verify
from vargen.kernels.choice import Kernels, triton
from vargen.noise import Purpose, Table, Uniforms
from vargen.samplers.warp import Warp

VOCABULARY = 16384  # LlamaGen's
KEEPS = 1.2  # a kernel stays where it is so many times as fast as torch.compile of its twin


def cases(width: int, device: torch.device) -> dict[str, Callable[[Kernels], Any]]:
    """Every kernel at the shapes of LlamaGen-XL with guidance, 384 pixels, batch 1, `width` tokens in a block."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    logits, warp = 3 * normal(1, width, VOCABULARY), Warp(top_k=2000)
    p, q = logits.softmax(-1), (3 * normal(1, width, VOCABULARY)).softmax(-1)
    drafts, codes = q[0].multinomial(1, generator=generator).T, normal(VOCABULARY, 8)
    seeds, slots = torch.zeros(1, dtype=torch.int64, device=device), torch.arange(width, device=device)[None]
    table, uniforms = Table(noise.gumbel, seeds, Purpose.TOKEN, size=VOCABULARY), Uniforms(seeds, 64)
    near = torch.randint(VOCABULARY, (VOCABULARY, 1000), generator=generator, device=device)

    return {
        "sample, law": partial(sample.law, logits, warp),
        "sample, law with top-p": partial(sample.law, logits, replace(warp, top_p=0.9)),
        "sample, draw": partial(sample.draw, logits, warp, table, slots, (0, width)),
        "verify": partial(verify.verify, drafts, q, p, uniforms),
        "shifted": lambda kernels: relax.shifted(drafts, p, near, kernels, delta=0.1),
        "cluster": partial(relax.cluster, drafts, q, p, codes),
    }


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/kernels.json"))
    options = parser.parse_args(argv)
    check_writable([options.json])
    if triton is None or not torch.cuda.is_available():
        raise ValueError("kernels are timed on a CUDA device with Triton, and there is none here")
    device, rows = torch.device("cuda"), []
    with torch.inference_mode():
        for width in (1, 32):
            for name, run in cases(width, device).items():
                torch.compiler.reset()  # or all after the eighth would run as they are
                plain, compiled = partial(run, Kernels("torch")), torch.compile(partial(run, Kernels("torch")))
                ways = {"kernel": partial(run, Kernels("triton")), "eager": plain, "compiled": compiled}
                times = {way: round(triton.testing.do_bench(each, warmup=10, rep=50), 5) for way, each in ways.items()}
                gain = min(times["eager"], times["compiled"]) / times["kernel"]
                rows.append({"kernel": name, "width": width, "ms": times, "gain": round(gain, 2)})
                print(f"{name}, width {width}: {times} ms, {gain:.2f}x, {'stays' if gain >= KEEPS else 'goes'}")
    result = {"machine": machine(Trace(versions=core.versions(device))), "rows": rows}
    write_atomically(options.json, lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))


if __name__ == "__main__":
    guarded(main)
