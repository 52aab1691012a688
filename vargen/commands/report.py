"""What `vargen sample` says of a run: what was saved, whether the law is the same, and why not more."""

import argparse
from dataclasses import replace
from typing import Any

from vargen.core import registry
from vargen.core.preset import PLAIN_METHODS
from vargen.core.specs import RasterSpec, ScaleSpec
from vargen.core.trace import Trace


def report(trace: Trace, out: str, pipe: Any, options: argparse.Namespace, plain: Trace | None = None) -> str:
    """One sentence on a run, against plain decoding if that was drawn beside it; notes on lines of their own."""
    is_plain = trace.method.split(":")[0] in PLAIN_METHODS.values()
    usual = plain.forwards_per_image if plain else None if is_plain else of_plain(_spec(pipe, options))
    seconds = trace.seconds["total"] / trace.images
    saved = [f"{trace.forwards_per_image:.0f} forwards" + ("" if usual is None else f" instead of {usual:.0f}")]
    if plain is not None:
        saved.append(f"{plain.seconds['total'] / trace.seconds['total']:.1f} times as fast")
    law = "the same law" if keeps_law(trace) else "another law, near it"
    saved.append("plain decoding" if is_plain else law)
    images = f"{trace.images} image{'s' * (trace.images > 1)} by {trace.method}"
    beside = "" if plain is None else f", by {plain.method} {plain.seconds['total'] / trace.images:.2f} s"
    lines = [f"{out}: {images}, {', '.join(saved)} ({seconds:.2f} s an image{beside})"]
    if note := narrow(trace, options.batch_size, pipe.transformer.device.type):
        lines.append(note)
    if options.verbose:
        lines += [blocks(trace), f"{trace.tokens_per_forward:.2f} tokens per forward"]
    return "\n".join(lines)


def _spec(pipe: Any, options: argparse.Namespace) -> Any:
    """The layout of what was drawn: behind a picture there is no preview."""
    spec = pipe.transformer.spec
    return replace(spec, previews=()) if options.image and isinstance(spec, RasterSpec) else spec


def of_plain(spec: Any) -> int | None:
    """Forwards that plain decoding takes for an image; None where that is a setting."""
    match spec:
        case RasterSpec():
            return spec.slots - spec.rows * (spec.newline is not None)  # newlines are known, and cost nothing
        case ScaleSpec():
            return len(spec.sides)
    return None


def keeps_law(trace: Trace) -> bool:
    """Whether a run's images follow the law of plain decoding: its method is exact, and so is the rule behind it."""
    exact = registry.sampler(trace.method.split(":")[0]).exact
    return exact and trace.settings.get("rule", "exact") == "exact"


def narrow(trace: Trace, batch: int, device: str) -> str:
    """A note where an automatic window mostly chose plain decoding; empty where it did not."""
    count, alone = sum(trace.windows.values()), trace.windows.get(1, 0)
    if trace.settings.get("window") != "auto" or 2 * alone < count:
        return ""
    why = f"in a batch of {batch} on this {device}, wider blocks were measured to cost more seconds than they save"
    return f"note: the window is auto and chose width 1, plain decoding, in {alone} of {count} steps: {why}; " + (
        "--batch-size 1 or --window 16 saves forwards" if batch > 1 else "--window 16 saves forwards"
    )


def blocks(trace: Trace) -> str:
    """How many forwards had blocks of each width."""
    return "\n".join(["width  forwards", *(f"{width:5}  {count}" for width, count in sorted(trace.windows.items()))])
