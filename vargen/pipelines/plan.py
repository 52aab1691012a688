"""What a raster model will need in memory, computed from its shapes before anything is loaded: `vargen plan`."""

from dataclasses import dataclass
from typing import Any

import torch

from vargen.core import registry
from vargen.pipelines import request, values

PROMPT = 64  # tokens of a prompt, where a model takes prompts of any length
MOST_BATCH = 100_000_000  # of which a cache has fewer bytes than an int64 counts
WIDEST = 64  # tokens in a block whose width is measured


@dataclass(frozen=True)
class Memory:
    """Bytes. `str` gives them in GiB."""

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
        listed = ", ".join(f"{name} {getattr(self, name) / 2**30:.2f}" for name in parts)
        return f"{self.model}, {self.method}, batch {self.batch}: {listed} GiB"


def plan(
    name: str,
    *,
    method: str | None = None,
    batch: int = 1,
    preset: str | None = None,
    guidance_scale: float | None = None,
    dtype: torch.dtype = torch.bfloat16,
    height: int | None = None,
    width: int | None = None,
) -> Memory:
    """Memory for `batch` images of a raster model by a method, its weights in `dtype`. Nothing is loaded.

    `height` and `width` in pixels choose one of the model's own sizes. The image tokenizer, the text encoder and drafts
    of another model come on top. ValueError where the model is of another kind, or its shapes are in its files only.
    """
    from vargen.models.prompted import Prompted
    from vargen.pipelines.prompted import PromptedPipeline

    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"got dtype {dtype}, expected float32, bfloat16 or float16")
    found, batch = registry.preset(name), values.whole(batch, "batch size", least=1, most=MOST_BATCH)
    if found.skeleton is None or found.kind != "raster":
        raise ValueError(f"the memory of {name} cannot be planned: it is no raster model, or its files have its shapes")
    asked = request.method(request.named(method, found), found.choose(preset), {"guidance_scale": guidance_scale}, {})
    with torch.device("meta"):
        model = found.skeleton().to(dtype)
    if isinstance(model, Prompted):
        model = PromptedPipeline(model, None, preset=found).at(height, width).transformer
    elif (height, width) != (None, None):
        raise ValueError(f"{name} draws one size: height and width are for models with several")
    rows = batch * (2 if asked.guidance.active else 1)
    tokens = asked.sampler.block_width(asked.settings) or WIDEST
    front = PROMPT if isinstance(model, Prompted) else model.front
    cache = model.make_cache(rows, tokens, front)
    size, wide = torch.empty((), dtype=dtype).element_size(), max(front, tokens)
    shapes: Any = model.config
    each = 6 * shapes.width + 3 * shapes.hidden
    scores = shapes.heads * wide * (front + model.spec.slots) * 4
    return Memory(
        model=name,
        method=asked.name,
        batch=batch,
        weights=sum(value.numel() for value in model.parameters()) * size,
        cache=cache.bytes,
        activations=rows * (wide * each * size + scores),
        window=(rows + 6 * batch) * tokens * model.spec.vocabulary * 4,
    )
