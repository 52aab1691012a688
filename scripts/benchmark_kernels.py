"""Time every kernel against its twin, plain and under torch.compile, on a GPU: python scripts/benchmark_kernels.py.

Those of the sampler are launched, those inside a forward replayed from a CUDA graph, as they are when images are drawn.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vargen.commands.flags import Parser
from vargen.commands.main import guarded
from vargen.core import noise
from vargen.core.atomic import check_writable, write_json
from vargen.core.dispatch import Kernels, triton
from vargen.core.machine import machine, versions
from vargen.core.noise import Purpose, Table, Uniforms
from vargen.core.trace import Trace
from vargen.core.types import KVCache
from vargen.core.warp import Warp
from vargen.kernels import gsd, lantern, sample, verify
from vargen.kernels.attention import Sight, attend
from vargen.kernels.norm import add_norm, rms_norm
from vargen.kernels.rope import Halves, Joined, enter, enter_joined
from vargen.kernels.silu_mul import silu_mul
from vargen.models.chameleon import HeadNorm

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
        **layers(width, device),
        "sample, law": partial(sample.law, logits, warp),
        "sample, law with top-p": partial(sample.law, logits, replace(warp, top_p=0.9)),
        "sample, draw": partial(sample.draw, logits, warp, table, slots, (0, width)),
        "verify": partial(verify.verify, drafts, q, p, uniforms),
        "shifted": lambda kernels: lantern.shifted(drafts, p, near, kernels, delta=0.1),
        "cluster": partial(gsd.cluster, drafts, q, p, codes),
    }


LAYERS = ("attention", "norm", "add_norm", "silu_mul", "rope", "rope, norms")


def layers(width: int, device: torch.device) -> dict[str, Callable[[Kernels], Any]]:
    """Kernels inside a forward, in bfloat16, in the middle of the image."""
    generator = torch.Generator(device).manual_seed(0)
    heads, dim, hidden, slots = 20, 64, 3584, 577

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).bfloat16()

    qkv, tables = normal(2, width, 3, heads, dim), normal(2, 1, width, 3, 1, dim).float()
    q, k, v = qkv.unbind(2)
    joined, halves = Joined(*tables), Halves(*tables[:, :, :, 0, :, : dim // 2])
    norms = tuple(HeadNorm(1, dim).to(device, torch.bfloat16).requires_grad_(False) for _ in range(2))
    cache = KVCache(1, 2, slots, heads, dim, dtype=torch.bfloat16, device=device)
    rows = (slots // 2 + torch.arange(width, device=device)).expand(2, -1)
    flat, x, weight = cache.flat(rows), normal(2, width, heads * dim), normal(heads * dim)

    def entering(norms: Any, kernels: Kernels) -> Any:
        cache.kernels = kernels
        if norms is None:
            return enter_joined(qkv, joined, cache, 0, flat, slots)
        return enter(q, k, v, halves, cache, 0, flat, slots, norms)

    def attending(kernels: Kernels) -> torch.Tensor:
        sight = Sight(rows, 0, slots, q.dtype, kernels=kernels)
        return attend(q, *cache.seen(0, 2, slots), sight)

    return {
        "attention": attending,
        "norm": partial(rms_norm, x, weight, 1e-5),
        "add_norm": partial(add_norm, x, normal(2, width, heads * dim), weight, 1e-5),
        "silu_mul": partial(silu_mul, *normal(2, width, 2 * hidden).chunk(2, dim=-1)),
        "rope": partial(entering, None),
        "rope, norms": partial(entering, norms),
    }


def milliseconds(name: str, run: Callable[[], Any]) -> float:
    """Of one run, as it happens where it is used."""
    if name in LAYERS:
        return round(triton.testing.do_bench_cudagraph(run, rep=50), 5)
    return round(triton.testing.do_bench(run, warmup=10, rep=50), 5)


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
                times = {way: milliseconds(name, each) for way, each in ways.items()}
                gain = min(times["eager"], times["compiled"]) / times["kernel"]
                rows.append({"kernel": name, "width": width, "ms": times, "gain": round(gain, 2)})
                print(f"{name}, width {width}: {times} ms, {gain:.2f}x, {'stays' if gain >= KEEPS else 'goes'}")
    result = {"machine": machine(Trace(versions=versions(device))), "rows": rows}
    write_json(options.json, result)


if __name__ == "__main__":
    guarded(main)
