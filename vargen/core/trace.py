"""What a run did."""

from dataclasses import asdict, dataclass, field
from typing import Any

from vargen.core.atomic import dumps


@dataclass
class Trace:
    """What a run did: everything that a figure needs to be trusted. Seconds are wall time on this machine."""

    model: str = ""
    method: str = ""
    images: int = 0
    forwards: int = 0  # calls of the large model, the prefill included
    drafter_forwards: int = 0  # calls of the small model, where one drafts or refines
    drafts: int = 0  # tokens that the small model drafted for unfinished images, and that were verified
    drafts_kept: int = 0  # of these, those that stand in the images
    cached_tokens: int = 0  # of prompts and of what guidance is against: not read, since they had been read before
    forwards_per_image: float = 0.0  # mean over images of the calls during which that image was being decoded
    tokens_per_forward: float = 0.0  # tokens of an image over its forwards, mean over images
    seconds: dict[str, float] = field(default_factory=dict)  # total, model, sampler, decode; text, head, calibration
    peak_memory_bytes: int = 0
    cache_bytes: int = 0  # the most that keys and values took at a time
    seeds: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)  # what else redraws the images, see `pipelines/drawn.py`
    windows: dict[int, int] = field(default_factory=dict)  # width of the block -> forwards that had it
    kernels: dict[str, str] = field(default_factory=dict)  # operation -> triton or torch, whichever ran
    versions: dict[str, str] = field(default_factory=dict)

    def json(self) -> str:
        """The trace as JSON text."""
        return dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def merge(cls, traces: "list[Trace]") -> "Trace":
        """One trace for several batches of one run: sums, and means weighted by images."""
        first, total = traces[0], sum(trace.images for trace in traces)
        out = cls(first.model, first.method, total, settings=first.settings, versions=first.versions)
        out.drawn = dict(first.drawn)
        for key in [key for key, value in first.drawn.items() if isinstance(value, list)]:
            out.drawn[key] = [value for each in traces for value in each.drawn[key]]
        for trace in traces:
            out.forwards += trace.forwards
            out.drafter_forwards += trace.drafter_forwards
            out.drafts, out.drafts_kept = out.drafts + trace.drafts, out.drafts_kept + trace.drafts_kept
            out.cached_tokens += trace.cached_tokens
            out.forwards_per_image += trace.forwards_per_image * trace.images / total
            out.tokens_per_forward += trace.tokens_per_forward * trace.images / total
            out.peak_memory_bytes = max(out.peak_memory_bytes, trace.peak_memory_bytes)
            out.cache_bytes = max(out.cache_bytes, trace.cache_bytes)
            out.seeds = out.seeds + trace.seeds
            out.seconds = _added(out.seconds, trace.seconds)
            out.windows, out.kernels = _added(out.windows, trace.windows), out.kernels | trace.kernels
        return out


def _added(a: dict, b: dict) -> dict:
    return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}
