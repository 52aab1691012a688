"""What a model will need in memory, computed from its shapes before anything is loaded: `vargen plan`."""

from dataclasses import dataclass
from typing import Any

import torch

from vargen.core import registry
from vargen.core.preset import Preset
from vargen.core.specs import RasterSpec, ScaleSpec
from vargen.models.prompted import Prompted
from vargen.pipelines import request, values

PROMPT = 64  # tokens of a prompt, where a model takes prompts of any length
MOST_BATCH = 100_000_000  # of which a cache has fewer bytes than an int64 counts
WIDEST = 64  # tokens in a block whose width is measured


@dataclass(frozen=True)
class Memory:
    """Bytes. `str` gives them in GiB, or in MiB where they are less than one."""

    model: str
    method: str
    batch: int
    weights: int  # of the transformer
    cache: int  # keys and values, of unconditional rows as well
    activations: int  # of the larger of prefill and one forward: an estimate
    window: int  # laws, scores and noise of the tokens in a block: an estimate

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.activations + self.window

    def __str__(self) -> str:
        parts = ("weights", "cache", "activations", "window", "total")
        unit, of = ("GiB", 1 << 30) if self.total >= 1 << 30 else ("MiB", 1 << 20)
        listed = ", ".join(f"{name} {getattr(self, name) / of:.2f}" for name in parts)
        return f"{self.model}, {self.method}, batch {self.batch}: {listed} {unit}"


def plan(
    name: str,
    *,
    method: str | None = None,
    batch: int = 1,
    preset: str | None = None,
    guidance_scale: float | None = None,
    dtype: torch.dtype | str = torch.bfloat16,
    height: int | None = None,
    width: int | None = None,
) -> Memory:
    """Memory for `batch` images of a model by a method, its weights in `dtype`. Nothing is loaded.

    `height` and `width` in pixels choose one of the model's own sizes. The image tokenizer, the text encoder and drafts
    of another model come on top, of Harmon the keys of prompts too. ValueError where its shapes are in its files only.
    """
    dtype = values.dtype(dtype)
    found, batch = registry.preset(name), values.whole(batch, "batch size", least=1, most=MOST_BATCH)
    if found.skeleton is None:
        raise ValueError(f"the memory of {name} cannot be planned: its shapes are in its files")
    law, named = {"guidance_scale": guidance_scale}, method or found.method
    asked = request.asked(named, found.choose(preset), law, {}, found.spec)
    model = _built(found, dtype, height, width)
    rows = batch * (2 if _guided(asked) else 1)
    tokens, seen, cache = _shape(model, asked, rows)
    size, config = torch.empty((), dtype=dtype).element_size(), model.config
    drawn = model.spec.channels if found.kind == "continuous" else model.spec.vocabulary
    return Memory(
        model=name,
        method=asked.name,
        batch=batch,
        weights=sum(value.numel() for value in model.parameters()) * size,
        cache=cache,
        activations=rows * tokens * ((6 * config.width + 3 * config.hidden) * size + config.heads * seen * 4),
        window=(rows + 6 * batch) * tokens * drawn * 4,
    )


def _built(found: Preset, dtype: torch.dtype, height: int | None, width: int | None) -> Any:
    """The transformer, without its numbers, for images of a size."""
    assert found.skeleton is not None
    with torch.device("meta"):
        model = found.skeleton().to(dtype)
    if (height, width) == (None, None):
        return model
    if not isinstance(model, Prompted):
        raise ValueError(f"{found.name} draws one size: height and width are for models with several")
    from vargen.pipelines.prompted import PromptedPipeline  # diffusers is slow to import

    return PromptedPipeline(model, None, preset=found).at(height, width).transformer


def _guided(asked: Any) -> bool:
    return asked.guidance > 1 if isinstance(asked, request.LatentMethod) else asked.guidance.active


def _shape(model: Any, asked: Any, rows: int) -> tuple[int, int, int]:
    """Tokens in the widest block, places that it sees, and bytes of keys and values."""
    spec = model.spec
    if isinstance(spec, RasterSpec):
        tokens = asked.sampler.block_width(asked.settings) or WIDEST
        front = PROMPT if isinstance(model, Prompted) else model.front
        return max(front, tokens), front + spec.slots, model.make_cache(rows, tokens, front).bytes
    if isinstance(spec, ScaleSpec):
        return spec.sides[-1] ** 2, spec.slots, model.make_cache(rows, spec.start(len(spec.sides) - 1)).bytes
    cache = model.make_cache(rows)
    return max(spec.groups or (spec.slots,)), spec.slots, 0 if cache is None else cache.bytes
