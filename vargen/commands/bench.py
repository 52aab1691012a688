"""Benchmark: several methods on one model, interleaved in one process, so that all meet the same machine."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vargen.commands import drawing, flags
from vargen.core.atomic import check_writable, write_atomically, write_json
from vargen.core.preset import PLAIN_METHODS

if TYPE_CHECKING:  # torch is slow to import
    from torch import Tensor

    from vargen.core.generation import Generation
    from vargen.core.preset import Preset
    from vargen.core.trace import Trace

DEFAULT_METHODS = {  # by the kind of model; of continuous ones, by their plan
    "raster": "ar,sjd-exact:window=16,sjd:window=32,sjd-coupled:window=16,sjd-coupled",
    "next-scale": "var,code:scales=6,code:scales=7,code:scales=8,code:scales=9",
    "masked": "mar,mar:iterations=64:steps=50,disa,csd",
    "scales": "flowar,disa",
    "cells": "xar,disa",
}


def command(argv: list[str]) -> None:
    """Run the benchmark from flags."""
    said = {word.partition("=")[0] for word in argv}
    if "--synthetic" in said and not {"--peer", "--peer-path"} & said:
        from vargen.commands import synthetic

        synthetic.command(argv)
        return
    options = parser().parse_args(argv)
    if options.synthetic is not None:
        from vargen.commands import peers

        peers.name(options)
    elif options.tokens_per_forward is not None or options.shape is not None:
        raise ValueError("got --tokens-per-forward or --shape without --synthetic: a model has its own")
    preset = flags.preset(options)
    methods = _methods(options, preset)
    flags.check(options, [(name, {}) for name in methods])
    chosen = flags.subjects(options, preset)
    written = [] if options.json is None else [options.json, options.json.with_suffix(".png")]
    if len(set(written)) < len(written):
        raise ValueError(f"got --json {options.json}, but the chart takes that name: use .json")
    for name in methods if options.synthetic is None else []:
        flags.check_memory(options, name, options.num_images)
    check_writable(written)
    result = measured(options, chosen, methods, argv)
    print(table(result))
    if written:
        write_json(written[0], result)
        chart(result, written[1])


def measured(options: argparse.Namespace, chosen: list[Any], methods: list[str], argv: list[str]) -> dict[str, Any]:
    """The result of a run, with the peer in it where that is wanted."""
    count = (options.num_images, options.batch_size, options.seed)
    if not (options.peer or options.peer_path):
        pipe = flags.load(options)
        pipe.set_progress_bar_config(disable=True)
        return described(options, pipe, run(pipe, chosen, methods, *count, flags.law(options)), argv)
    from vargen.commands import peers

    pipe = peers.pipeline(options)
    peer = peers.beside(options, pipe, methods)
    same = peers.same(peer, pipe, chosen, min(count[:2]))
    law = flags.law(options) | {"output_type": "latent"}  # peers leave images undecoded
    drawn = run(pipe, chosen, [*methods, peer.name], *count, law, {peer.name: peer})
    result = described(options, pipe, drawn, argv)
    return {**result, "model": peers.model(options), "rows": peers.told(result["rows"], peer, same)}


def _methods(options: argparse.Namespace, preset: "Preset") -> list[str]:
    """Those that are to be compared. ValueError where one is empty or stands twice."""
    usual = DEFAULT_METHODS[preset.plan]
    if not (preset.drafter or options.drafter):
        usual = usual.removesuffix(",csd")
    methods = [name.strip() for name in (options.methods or usual).split(",")]
    if not all(methods):
        raise ValueError(f"got an empty name in --methods {options.methods}")
    if len(set(methods)) < len(methods):
        raise ValueError(f"a method stands twice in --methods {options.methods}")
    return methods


def described(options: argparse.Namespace, pipe: Any, drawn: dict[str, Any], argv: list[str]) -> dict[str, Any]:
    """The result: what was compared, where, and a row for each method."""
    from vargen.core.machine import machine

    return {
        "model": options.model,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "quantize": pipe.quantize,
        "images": options.num_images,
        "batch_size": options.batch_size,
        "nats_per_token": pipe.nats_per_token,
        "machine": machine(next(iter(drawn.values()))[0]),
        "command": f"vargen bench {' '.join(argv)}",
        "rows": rows(drawn),
    }


def parser() -> flags.Parser:
    """The flags."""
    made = flags.Parser(prog="vargen bench", description="Compare methods on one model, in one process, in turn.")
    flags.add_law(made)
    made.set_defaults(batch_size=1)
    flags.add_subjects(made)
    made.add_argument("--methods", help="separated by commas, settings after colons (default: usual ones)")
    made.add_argument("--num-images", type=int, default=20, help="per method")
    made.add_argument("--json", type=Path, help="results to a file; a bar chart goes beside it as PNG")
    made.add_argument("--synthetic", help="a published shape, with random weights: flags of its own, see its --help")
    beside = made.add_argument_group("a peer beside them, on the same weights; no images are decoded then")
    beside.add_argument(
        "--peer",
        action="store_true",
        help="its own code: transformers' generate, or --peer-path; with --synthetic: janus, emu3, glm-image",
    )
    words = "with --synthetic glm-image: layers, width and ids of an image (default: 4x256x16384)"
    beside.add_argument("--shape", metavar="LxWxC", help=words)
    beside.add_argument(
        "--tokens-per-forward",
        type=float,
        help="with --synthetic, settled by every step of a Jacobi method: random weights keep hardly a draft",
    )
    words = "your checkout of LlamaGen, VAR or MAR: the code in it is run"
    beside.add_argument("--peer-path", type=Path, metavar="FOLDER", help=words)
    return made


def run(
    pipe: Any,
    chosen: list[Any],
    methods: list[str],
    images: int,
    batch: int,
    seed: int,
    law: dict[str, Any],
    others: Mapping[str, Callable[[dict[str, Any], list[int]], "Generation"]] | None = None,
) -> dict[str, tuple["Trace", "Tensor"]]:
    """Trace and tokens per method, over the same subjects and seeds; all methods draw a batch before the next.

    `others` among the methods are drawn with by what stands there, from a call's inputs and seeds.
    """
    import torch

    from vargen.core.trace import Trace

    wanted, starts = drawing.inputs(pipe, chosen), range(0, images, batch)
    warm = [(spec, start) for spec in methods for start in {0, starts[-1]}]
    bar = tqdm(total=len(warm) + len(starts) * len(methods), unit="batch", disable=None)

    def draw(spec: str, start: int) -> "Generation":
        bar.set_description(spec)
        part = range(start, min(start + batch, images))
        seeds = [seed + i for i in part]
        inputs = wanted([i % len(chosen) for i in part])
        if others and spec in others:
            made = others[spec](inputs, seeds)
        else:
            made = pipe(**inputs, method=spec, seed=seeds, batch_size=batch, **law)
        bar.update()
        return made

    for spec, start in warm:  # where a width is chosen, this measures the costs
        draw(spec, start)
    drawn: dict[str, list[Generation]] = {spec: [] for spec in methods}
    for turn, start in enumerate(starts):
        shift = turn % len(methods)  # nobody is always first
        for spec in methods[shift:] + methods[:shift]:
            drawn[spec].append(draw(spec, start))
    bar.close()
    return {
        spec: (Trace.merge([g.trace for g in parts]), torch.cat([g.tokens for g in parts]).flatten(1))
        for spec, parts in drawn.items()
    }


def rows(drawn: dict[str, tuple["Trace", "Tensor"]]) -> list[dict[str, Any]]:
    """A row per method. Against plain decoding in the same run: `speedup` in seconds, and the share of equal images."""
    plain = next((pair for spec, pair in drawn.items() if spec.split(":")[0] in PLAIN_METHODS.values()), None)
    out = []
    for spec, (trace, tokens) in drawn.items():
        seconds = trace.seconds["total"] / trace.images
        speedup = equal = None
        if plain is not None:
            speedup = round(plain[0].seconds["total"] / trace.images / seconds, 3)
            equal = round((tokens == plain[1]).all(-1).double().mean().item(), 4)
        out.append(
            {
                "method": spec,
                "forwards_per_image": round(trace.forwards_per_image, 3),
                "tokens_per_forward": round(trace.tokens_per_forward, 3),
                "seconds_per_image": round(seconds, 5),
                "speedup": speedup,
                "images_equal_to_ar": equal,
                "acceptance": round(trace.drafts_kept / trace.drafts, 4) if trace.drafts else None,
                "drafter_forwards_per_image": round(trace.drafter_forwards / trace.images, 3),
                "cache_bytes": trace.cache_bytes,
                "peak_memory_bytes": trace.peak_memory_bytes,
                "seconds": {key: round(value / trace.images, 5) for key, value in trace.seconds.items()},
                "windows": trace.windows,
            }
        )
    return out


def table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table; with a peer, whose they are, and how they stand to it."""
    beside = "by" in result["rows"][0]
    columns = ["method", "forwards per image", "seconds per image", "speedup", "acceptance"]
    columns = ["by", *columns, "against the peer", "the peer draws"] if beside else columns
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in result["rows"]:
        speedup = "" if row["speedup"] is None else f"{row['speedup']:.2f}x"
        name, forwards = row["method"], row["forwards_per_image"]
        kept = "" if row["acceptance"] is None else f"{row['acceptance']:.0%}"
        cells = [name, f"{forwards:.1f}", f"{row['seconds_per_image']:.3f}", speedup, kept]
        if beside:
            cells = [row["by"], *cells, f"{row['over_peer']:.2f}x", row.get("same", "")]
        lines.append(f"| {' | '.join(cells)} |")
    nats = result["nats_per_token"]
    note = "" if nats is None else f", {nats:.2f} nats per token"
    note += ", tokens alone: no image is decoded" if beside else ""
    stored = result.get("quantize")
    kind = f"{stored} in {result['dtype']}" if stored else result["dtype"]
    head = f"{result['model']}, {kind}, batch {result['batch_size']}, {result['images']} images{note}"
    return "\n".join([head, "", *lines])


def chart(result: dict[str, Any], path: Path) -> None:
    """Forwards and seconds per image as bars."""
    from matplotlib.figure import Figure

    rows = result["rows"][::-1]
    names = [row["method"] for row in rows]
    figure = Figure(figsize=(10, 1.2 + 0.45 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axis, key, colour in ((left, "forwards_per_image", "#4c72b0"), (right, "seconds_per_image", "#dd8452")):
        bars = axis.barh(names, [row[key] for row in rows], color=colour)
        axis.bar_label(bars, fmt="%.3g", padding=3)
        axis.margins(x=0.15)
        axis.set_xlabel(key.replace("_", " "))
    figure.suptitle(table(result).splitlines()[0])
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))
