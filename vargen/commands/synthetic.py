"""What a forward costs at published shapes, with random weights and an imposed acceptance, and what the limit is.

`vargen bench --synthetic llamagen-xl`. Nothing is downloaded. Random weights say nothing of how many drafts are kept,
so that number is a setting; everything else of a step is run. The limit is the time to read the weights, and the keys
and values in use, once. Models that are no raster models draw whole images; their limit is of the backbone's weights.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vargen.commands import flags
from vargen.core import registry
from vargen.core.atomic import check_writable, write_json
from vargen.core.dispatch import Kernels
from vargen.core.machine import machine, versions
from vargen.core.trace import Trace
from vargen.core.warp import Warp
from vargen.engine import loops
from vargen.engine.guidance import Guidance
from vargen.engine.replayed import Replayed
from vargen.engine.runners import Runners
from vargen.engine.threads import Threads
from vargen.models.contract import embed
from vargen.models.prompted import Prompted
from vargen.pipelines.continuous import ContinuousPipeline
from vargen.pipelines.loading import find_device
from vargen.pipelines.next_scale import NextScalePipeline
from vargen.samplers.contract import Task
from vargen.samplers.sjd import CoupledJacobi, CoupledSettings
from vargen.tokenizers.multiscale_vq import MultiScaleVQConfig, MultiScaleVQTokenizer

MOST = 1_000_000  # images decoded together, tokens in a block, steps
MODELS = {
    "llamagen-b": "llamagen-c2i-b-256",
    "llamagen-l": "llamagen-c2i-l-256",
    "llamagen-xl": "llamagen-c2i-xl-384",
    "llamagen-3b": "llamagen-c2i-3b-384",
    "lumina-7b": "lumina-mgpt-7b-768",
    "var-d30": "var-d30",
    "mar-huge": "mar-huge",
    "pocket": "pocket-llamagen",
    "pocket-var": "pocket-var",
    "pocket-mar": "pocket-mar",
}
WHOLE = {  # what is drawn whole with other kinds of model, by their kind
    "next-scale": ("var",),
    "continuous": ("mar:iterations=64:steps=50", "disa:iterations=64:upper=50:lower=5"),
}
WARM = 4  # steps before those that are timed: something is compiled or allocated in them
PROMPT = 64  # tokens, where a model reads prompts
Mode = Literal["off", "auto", "compile"]  # plain PyTorch; kernels; torch.compile alone


@dataclass(frozen=True)
class Imposed:
    """How many tokens a step settles."""

    tokens: float
    steps: int


class ImposedJacobi(CoupledJacobi):
    """Coupled speculative Jacobi decoding whose steps settle as many tokens as they are told to.

    It jumps to the middle of the image at once: what stands before it in the cache is nothing, and takes as long.
    """

    def __init__(self, window: int, task: Task, imposed: Imposed) -> None:
        super().__init__(CoupledSettings(window=window), task)
        self._imposed, self._taken = imposed, 0

    def _advance(self, revised: Tensor, moved: Tensor) -> None:
        each, steps, slots = self._imposed.tokens, self._imposed.steps, self._task.spec.slots
        each = each if self.widest > 1 else 1
        if self._taken == 0:
            count = max(1, (slots - round(each * steps)) // 2)
        else:
            count = int(self._taken * each) - int((self._taken - 1) * each)
        self._taken += 1
        super()._advance(revised, torch.full_like(moved, count))


def parser() -> flags.Parser:
    """The flags."""
    parser = flags.Parser(prog="vargen bench --synthetic", description="Time published shapes with random weights.")
    parser.add_argument("--synthetic", required=True, choices=list(MODELS), help="whose shapes")
    parser.add_argument("--widths", default="1,8,16,32,64", help="tokens in a block, separated by commas")
    parser.add_argument("--batches", default="1", help="images decoded together, separated by commas")
    parser.add_argument("--modes", default="off,auto", help="off: plain PyTorch; auto: kernels; compile: torch.compile")
    parser.add_argument("--tokens-per-forward", type=float, default=3.0, help="settled by every step of drafts")
    parser.add_argument("--steps", type=int, default=20, help="timed, of each width, batch and mode")
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--json", type=Path, help="results to a file")
    return parser


def command(argv: list[str]) -> None:
    """Run the benchmark from flags."""
    options = parser().parse_args(argv)
    widths, batches = (_numbers(getattr(options, name), name) for name in ("widths", "batches"))
    modes = options.modes.split(",")
    if wrong := [mode for mode in modes if mode not in ("off", "auto", "compile")]:
        raise ValueError(f"got mode {wrong[0]!r}, expected off, auto or compile")
    if not options.tokens_per_forward >= 1 or not 1 <= options.steps <= MOST:
        raise ValueError(f"got tokens per forward below 1, or {options.steps} steps, expected 1 to {MOST}")
    check_writable([options.json] if options.json else [])
    device, guidance, warp = find_device(options.device), Guidance(options.guidance_scale), Warp(top_k=options.top_k)
    model, speed = build(options.synthetic, device, getattr(torch, options.dtype)), bandwidth(device)
    imposed = Imposed(options.tokens_per_forward, options.steps + WARM)
    if model.spec.kind == "raster":
        cases = [(b, mode, w) for b in batches for mode in modes for w in widths]
        rows = [measure(model, b, w, mode, imposed, guidance, warp) for b, mode, w in tqdm(cases, disable=None)]
    elif "compile" in modes:
        raise ValueError(f"got mode 'compile' for {options.synthetic}, expected off or auto")
    else:
        drawn = [(b, method, mode) for b in batches for method in WHOLE[model.spec.kind] for mode in modes]
        rows = [whole(options.synthetic, model, *case) for case in tqdm(drawn, disable=None)]
    result = limited(
        {
            "model": MODELS[options.synthetic],
            "dtype": options.dtype,
            "guidance_scale": options.guidance_scale,
            "top_k": options.top_k,
            "tokens_per_forward": options.tokens_per_forward,
            "bytes_per_second": round(speed),
            "machine": machine(Trace(versions=versions(device))),
            "command": f"vargen bench {' '.join(argv)}",
            "rows": rows,
        }
    )
    print(table(result))
    if options.json:
        write_json(options.json, result)


def _numbers(text: str, name: str) -> list[int]:
    found = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(found) < 1 or max(found) > MOST:
        raise ValueError(f"got {name} {text!r}, expected whole numbers from 1 to {MOST} with commas between them")
    return found


def build(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of published shapes with random weights, the same ones every time."""
    skeleton = registry.preset(MODELS[name]).skeleton
    assert skeleton is not None
    return _filled(skeleton, device, dtype)


def _filled(skeleton: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        model = skeleton().to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02, generator=generator) if parameter.dim() > 1 else nn.init.ones_(parameter)
    for buffer in model.buffers():
        buffer.zero_()
    return model


@torch.inference_mode()
def bandwidth(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes that a copy reads and writes in a second, the best of several."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(6):
        clock = loops.Clock(device)
        target.copy_(source)
        clock.lap("copy")
        times.append(clock.seconds()["copy"])
    return 2 * size / min(times)


def read(model: Any, rows: int, tokens: int) -> int:
    """Bytes that a forward must read: weights but for tables of which it takes rows, and `tokens` keys and values."""
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    weights = sum(value.numel() for value in model.parameters() if id(value) not in tables)
    for name, part in model.named_modules():
        if name.endswith("lm_head"):  # only the image's rows of it are computed
            weights -= max(0, part.out_features - model.spec.vocabulary) * part.in_features
    size = torch.empty((), dtype=model.dtype).element_size()
    cache = model.make_cache(1, 0, 1)
    of_one = cache.bytes // cache.keys.shape[2]
    return weights * size + rows * tokens * of_one


@torch.inference_mode()
def measure(
    model: Any, batch: int, width: int, mode: Mode, imposed: Imposed, guidance: Guidance, warp: Warp
) -> dict[str, Any]:
    """Milliseconds a step, of the model and of the sampler, at a width and batch: medians."""
    device, rows = model.device, batch * (2 if guidance.active else 1)
    inputs: tuple[Tensor, ...] = (torch.zeros(batch, dtype=torch.int64, device=device),)
    if isinstance(model, Prompted):
        ids = torch.zeros(batch, 2, PROMPT, dtype=torch.int64, device=device)
        inputs = (ids, torch.ones_like(ids, dtype=torch.bool))
    condition = embed(model, inputs, guided=guidance.active)
    kernels = Kernels("torch" if mode == "compile" else Kernels.of(mode).impl)
    task = Task(model.spec, torch.arange(batch, device=device), warp, kernels=kernels)
    clock, counts = loops.Clock(device), loops.Counts(kernels=kernels)
    runner = Runners().of("model", model, "off" if mode == "compile" else mode)
    task = replace(task, late=isinstance(runner, Replayed))
    if mode == "compile":
        vars(model)["decode"] = torch.compile(model.decode)
    try:
        sampler: Any = ImposedJacobi(width, task, imposed)
        for stepped, _ in enumerate(loops.raster(runner, condition, sampler, guidance, clock, counts, Threads(model))):
            if stepped == imposed.steps:
                break
    finally:
        vars(model).pop("decode", None)
    laps, half = clock.laps(), model.spec.slots // 2
    ran = laps["model"][1:][WARM:]
    drew = [a + b for a, b in zip(laps["sampler"][1::2], laps["sampler"][2::2], strict=True)][WARM:]
    return {
        "batch": batch,
        "width": width,
        "mode": mode,
        "model_ms": round(1e3 * statistics.median(ran), 4),
        "sampler_ms": round(1e3 * statistics.median(drew), 4),
        "tokens_per_forward": 1.0 if width == 1 else imposed.tokens,
        "kernels": dict(kernels.ran),
        "bytes": read(model, rows, condition.embedding.shape[1] + half),
    }


def whole(name: str, model: Any, batch: int, method: str, fast: str) -> dict[str, Any]:
    """Milliseconds a forward, of the backbone and of what draws behind it: means over whole images.

    It is the third time that they are drawn: in the first two, graphs are captured (`engine/runners.py`).
    """
    preset = registry.preset(MODELS[name])
    if model.spec.kind == "next-scale":
        images = MultiScaleVQConfig(
            sides=model.config.sides, codes=model.config.vocabulary, code_dim=model.config.code_dim
        )
        pipe = NextScalePipeline(model, _filled(lambda: MultiScaleVQTokenizer(images), model.device, torch.float32))
    else:
        pipe = ContinuousPipeline(model, None, preset=preset)
    pipe.set_progress_bar_config(disable=True)
    pipe.fast = fast
    how = {"method": method, "guidance_scale": 2.0, "output_type": "latent", "batch_size": batch, "seed": 0}
    out = [pipe([0] * batch, **how) for _ in range(3)][-1]
    drawing = model.head if model.spec.kind == "continuous" else nn.Module()
    trace, head = out.trace, sum(p.numel() for p in drawing.parameters())
    steps = trace.seconds.get("head", trace.seconds["sampler"])
    size, counted = torch.empty((), dtype=model.dtype).element_size(), sum(p.numel() for p in model.parameters())
    return {
        "batch": batch,
        "width": round(model.spec.slots / trace.forwards),
        "mode": f"{method}, {fast}",
        "model_ms": round(1e3 * trace.seconds["model"] / trace.forwards, 4),
        "sampler_ms": round(1e3 * steps / trace.forwards, 4),
        "tokens_per_forward": round(model.spec.slots / trace.forwards, 3),
        "kernels": trace.kernels,
        "bytes": (counted - head) * size,
    }


def limited(result: dict[str, Any]) -> dict[str, Any]:
    """The same, each row with the milliseconds in which the device could read its bytes."""
    speed = result["bytes_per_second"]
    rows = [{**row, "limit_ms": round(row["bytes"] / speed * 1e3, 4)} for row in result["rows"]]
    return {**result, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table, each beside the limit and against plain decoding in the same mode and batch."""
    lines = [
        f"{result['model']}, {result['dtype']}, {result['tokens_per_forward']:g} tokens a forward imposed, "
        f"{result['bytes_per_second'] / 1e9:.1f} GB/s in a copy",
        "",
        "| batch | mode | width | model, ms | limit, ms | of the limit | sampler, ms | of the step | against width 1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    alone = {(row["batch"], row["mode"]): row for row in result["rows"] if row["width"] == 1}
    for row in result["rows"]:
        step, first, model = _step(row), alone.get((row["batch"], row["mode"])), row["model_ms"]
        gain = f"{_step(first) * row['tokens_per_forward'] / step:.2f}x" if first else ""
        lines.append(
            f"| {row['batch']} | {row['mode']} | {row['width']} | {model:.3f} | {row['limit_ms']:.3f} | "
            f"{row['limit_ms'] / model:.0%} | {row['sampler_ms']:.3f} | {row['sampler_ms'] / step:.0%} | {gain} |"
        )
    return "\n".join(lines)


def _step(row: dict[str, Any]) -> float:
    return row["model_ms"] + row["sampler_ms"]
