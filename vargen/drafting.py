"""Drafters: what proposes tokens for a large model to verify. They keep their own cache and count their forwards.

The small model that refines what a large next-scale model began (`code`) is found here by name as well.
"""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vargen import checkpoints, registry
from vargen.core import Block, Condition, Group, KVCache
from vargen.guidance import Guidance
from vargen.kernels.choice import Kernels
from vargen.kernels.sample import law
from vargen.models.contract import ContinuousModel, ContinuousSpec, RasterModel, RasterSpec, ScaleSpec, embed
from vargen.models.eagle import EagleHead
from vargen.models.prompted import Prompted
from vargen.presets.contract import Sources
from vargen.request import Method
from vargen.samplers.warp import Warp


class ModelDrafter:
    """A small model of the same vocabulary and grid, under the large one's guidance and truncation."""

    def __init__(self, model: RasterModel, condition: Condition, guidance: Guidance, warp: Warp) -> None:
        self._model, self._condition, self._guidance, self._warp = model, condition, guidance, warp
        self.forwards, self.kernels = 0, Kernels()

    def watch(self, model: RasterModel) -> RasterModel:
        """`model` as it is to be run: a small model drafts from tokens alone."""
        return model

    def reserve(self, extra: int) -> None:
        """Begin, with so many places in the cache behind the image's slots."""
        rows, front, _ = self._condition.embedding.shape
        self._cache = self._model.make_cache(rows, extra, front)
        self._cache.kernels = self.kernels
        self._model.prefill(self._condition, self._cache)
        self.forwards = 1

    def laws(self, block: Block) -> Tensor:
        """Laws (B, n, V) of the slots behind a block of tokens, which enters the drafter's cache."""
        self.forwards += 1
        logits = self._model.decode(self._guidance.spread(replace(block, moves=None)), self._cache)
        given = self._model.spec.given(self._guidance.mix(logits, block), block.slots + 1)
        return law(given, self._warp, self.kernels)


class LatentModelDrafter:
    """A small model of continuous tokens of the same layout, under the large one's guidance."""

    def __init__(self, model: ContinuousModel, condition: Condition) -> None:
        self._model, self._condition, self._cache = model, condition, model.make_cache(len(condition.embedding))
        self.forwards = 0

    def law(self, group: Group) -> tuple[Any, Any]:
        """Its head, and what that needs to draw the group."""
        self.forwards += 1
        return self._model.head, self._model.decode(self._condition, group, self._cache)


class HeadDrafter:
    """An EAGLE head on the large model itself. It keeps the state of every place: the model's where the model has run
    (`see`), its own predictions where it has not.
    """

    def __init__(self, head: EagleHead, model: Any, rows: int, guidance: Guidance, warp: Warp) -> None:
        self._head, self._model, self._rows, self._guidance, self._warp = head, model, rows, guidance, warp
        self.forwards, self.kernels = 0, Kernels()

    def watch(self, model: RasterModel) -> RasterModel:
        """`model` as it is to be run, so that its states are seen."""
        return Watched(model, self)

    def reserve(self, extra: int) -> None:
        """Begin, with so many places in the cache behind the image's slots."""
        self._cache = self._head.make_cache(self._rows, extra)
        self._cache.kernels = self.kernels
        places = 1 + self._head.spec.slots + extra  # row 0 has the state of the condition, row 1 + s that of place s
        width = self._head.config.width
        self._states = torch.zeros(self._rows, places, width, dtype=self._head.dtype, device=self._head.device)
        self.forwards = 0

    def see(self, states: Tensor, places: Tensor | None = None) -> None:
        """Keep the model's states (R, n, d) of `places` (R, n), or that of the condition."""
        self._keep(states, torch.full_like(states[..., 0], -1, dtype=torch.int64) if places is None else places)

    def laws(self, block: Block) -> Tensor:
        """Laws (B, n, V) of the slots behind a block of tokens, which enters the drafter's cache.

        Where the tokens follow one another, only the last one's state is predicted: the model has run the others.
        """
        self.forwards += 1
        rows = self._guidance.spread(block)
        if rows.moves is not None:
            source, target = rows.moves
            self._keep(self._at(source), target)
        before = rows.slots - 1 if rows.parents is None else rows.parents
        tokens = self._model.embed(rows.tokens)
        states = self._head.decode(tokens, self._at(before), replace(rows, moves=None), self._cache)
        places = rows.slots if rows.places is None else rows.places
        predicted = slice(-1, None) if rows.parents is None else slice(None)
        self._keep(states[:, predicted], places[:, predicted])
        return law(self._guidance.mix(self._model.logits(states), block), self._warp, self.kernels)

    def _at(self, places: Tensor) -> Tensor:
        """The states (R, n, d) of `places` (R, n), -1 being the condition."""
        return self._states[torch.arange(len(places), device=places.device)[:, None], places + 1]

    def _keep(self, states: Tensor, places: Tensor) -> None:
        self._states[torch.arange(len(places), device=places.device)[:, None], places + 1] = states


class Watched:
    """A raster model whose states an EAGLE head sees as it runs."""

    def __init__(self, model: Any, drafter: HeadDrafter) -> None:
        self._model, self._drafter = model, drafter
        self.spec, self.device, self.make_cache = model.spec, model.device, model.make_cache

    def prefill(self, condition: Condition, cache: KVCache) -> Tensor:
        states = self._model.prefill_states(condition, cache)
        self._drafter.see(states)
        return self._model.logits(states)

    def decode(self, block: Block, cache: KVCache) -> Tensor:
        states = self._model.decode_states(block, cache)
        self._drafter.see(states, block.slots if block.places is None else block.places)
        return self._model.logits(states)


Spec = RasterSpec | ScaleSpec | ContinuousSpec


def check(name: str, other: Spec, target: Spec) -> None:
    """ValueError where a model cannot draft, or refine, for another."""
    does = _does(target)
    if type(other) is not type(target):
        raise ValueError(f"{name} cannot {does} here: it is a {other.kind} model, not a {target.kind} model")
    first = () if isinstance(target, ContinuousSpec) else ("vocabulary",)
    for what in dict.fromkeys((*first, *asdict(target))):
        ours, theirs = getattr(other, what), getattr(target, what)
        if ours != theirs:
            raise ValueError(f"{name} cannot {does} here: {what} {ours} instead of {theirs}")


def on(module: Any, device: torch.device) -> Any:
    """A drafter on `device`. One that is there stays as it is: quantised weights cannot move while inference runs."""
    return module if module.device == device else module.to(device)


def _does(target: Spec) -> str:
    return "refine" if isinstance(target, ScaleSpec) else "draft"


def by_name(pipe: Any, name: str, given: Sources | None = None) -> nn.Module:
    """A drafter for `pipe`: `eagle`, or a model; from the files `given`. ValueError where it does not fit."""
    given, target = given or Sources(), pipe.transformer
    with torch.inference_mode(False):
        if name == "eagle":
            if not isinstance(target.spec, RasterSpec):
                raise ValueError(f"an EAGLE head drafts for raster models: {pipe.preset.name} is none")
            return load_head(pipe, given.checkpoint)
        preset = registry.preset(name)
        if (spec := preset.spec) is not None:  # before anything is downloaded
            if isinstance(target, Prompted) and isinstance(spec, RasterSpec):  # sizes are looked at in `from_model`
                spec = replace(spec, rows=target.spec.rows, columns=target.spec.columns)
            check(name, spec, target.spec)
        return from_model(pipe, name, preset.build(replace(given, drafts=True), target.device, target.dtype))


def from_model(pipe: Any, name: str, other: Any) -> nn.Module:
    """The transformer of the pipeline `other`, to draft for `pipe`. ValueError, by its name, where it cannot."""
    small, target = other.transformer, pipe.transformer
    if isinstance(small, Prompted) and isinstance(target, Prompted) and target.size in small.sizes:
        small = small.at(target.size)
    check(name, small.spec, target.spec)
    ours, theirs = (_codebook(p) for p in (pipe, other))
    if ours is not None and theirs is not None and not torch.equal(ours, theirs):
        does = _does(pipe.transformer.spec)
        raise ValueError(f"{name} cannot {does} for {pipe.preset.name}: its image tokenizer has another codebook")
    return small


def load_head(pipe: Any, path: Path | None) -> EagleHead:
    """The EAGLE head for a pipeline's model, from `path` or else the one that ships. ValueError where none fits."""
    path = path or pipe.preset.head
    if path is None:
        name = pipe.preset.name
        raise ValueError(f"{name} comes with no EAGLE head: name the file of one from scripts/train_drafter.py")
    target = pipe.transformer
    if not hasattr(target, "decode_states"):
        raise ValueError(f"an EAGLE head cannot draft for {type(target).__name__}, which does not show its states")
    with torch.device("meta"):
        head = EagleHead(target.config)
    checkpoints.load_into(head, path, dtype=target.dtype, device=target.device)
    about = checkpoints.metadata(path)
    for what, wanted in described(pipe).items():
        if about.get(what) != wanted:
            raise ValueError(f"the head {path} cannot draft here: {what} {about.get(what)} instead of {wanted}")
    return head.eval().requires_grad_(False)


def described(pipe: Any) -> dict[str, str]:
    """What a head's file says of the model that it was trained for: the layout of its images, and their codes."""
    quantizer, spec = getattr(pipe.tokenizer, "quantize", None), pipe.transformer.spec
    # The stored weights: normalised ones may differ in their last bits from device to device.
    stored = b"" if quantizer is None else quantizer.embedding.weight.detach().float().cpu().numpy().tobytes()
    digest = hashlib.sha256(stored).hexdigest()[:16]
    return {key: str(value) for key, value in asdict(spec).items()} | {"codebook": digest}


def _codebook(pipe: Any) -> Tensor | None:
    quantizer = getattr(pipe.tokenizer, "quantize", None)
    return None if quantizer is None else quantizer.codebook()


def chosen(pipe: Any, sampler: type, settings: Any) -> tuple[str, Any] | None:
    """What drafts for a method of `pipe`, and its name; None where the method drafts nothing.

    It is the one that the method names, or else the pipeline's, or else the preset's. ValueError where there is none,
    or where the name is of none that fits.
    """
    partner = getattr(sampler, "partner", None)
    if partner is None:
        return None
    name, found = getattr(settings, partner), pipe.drafter
    if not name and found is not None:
        known = [key for key, value in pipe.drafters.items() if value is found]
        return (known or [type(found).__name__])[0], found
    name = name or pipe.preset.drafter
    if name is None:
        raise ValueError(f"this method needs a {partner}, and {pipe.preset.name} has none: give one by name")
    if name not in pipe.drafters:
        pipe.drafters[name] = by_name(pipe, name)
    return name, pipe.drafters[name]


def drafter_for(pipe: Any, method: Method, inputs: tuple[Tensor, ...]) -> tuple[str, ModelDrafter | HeadDrafter] | None:
    """A fresh drafter for a batch and its name; None where the method drafts nothing. ValueError where none fits."""
    found, target = chosen(pipe, method.sampler, method.settings), pipe.transformer
    if found is None:
        return None
    name, module = found
    check(type(module).__name__, module.spec, target.spec)
    if isinstance(module, EagleHead):
        if not hasattr(target, "decode_states"):
            raise ValueError(f"an EAGLE head cannot draft for {type(target).__name__}, which does not show its states")
        _check_config("EagleHead", module, target, "width")
        head, rows = module.to(target.device, target.dtype), len(inputs[0]) * (2 if method.guidance.active else 1)
        return name, HeadDrafter(head, target, rows, method.guidance, method.warp)
    if isinstance(target, Prompted) and isinstance(module, Prompted):
        _check_words(name, module, target, inputs)
    elif not target.spec.classes:
        _check_config(type(module).__name__, module, target, "caption_width", "caption_tokens")
    model = on(module, target.device)
    return name, ModelDrafter(model, embed(model, inputs, guided=method.guidance.active), method.guidance, method.warp)


def _check_words(name: str, drafter: Prompted, target: Prompted, inputs: tuple[Tensor, ...]) -> None:
    """ValueError where a drafter cannot read the prompts, or draws no images of this size."""
    if (drafter.words, drafter.opening()) != (target.words, target.opening()):
        raise ValueError(f"{name} cannot draft here: its text vocabulary is another")
    if drafter.size != target.size:
        raise ValueError(f"{name} cannot draft here: it draws {drafter.size[1]}x{drafter.size[0]} pixels")
    drafter.checked(*inputs)


def _check_config(name: str, drafter: Any, target: Any, *keys: str) -> None:
    for key in keys:
        ours, theirs = getattr(drafter.config, key), getattr(target.config, key)
        if ours != theirs:
            raise ValueError(f"{name} cannot draft here: {key.replace('_', ' ')} {ours} instead of {theirs}")
