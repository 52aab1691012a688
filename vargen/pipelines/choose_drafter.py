"""Which drafter works for a pipeline, or which refiner: found by name, loaded, and checked against its model."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vargen.core import checkpoints, registry, weight_files
from vargen.core.messages import shown
from vargen.core.preset import Sources
from vargen.core.specs import ContinuousSpec, RasterSpec, ScaleSpec
from vargen.engine.drafters import HeadDrafter, ModelDrafter
from vargen.models.contract import embed
from vargen.models.eagle import EagleHead
from vargen.models.prompted import Prompted
from vargen.pipelines.request import Method
from vargen.samplers.contract import Sampler

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
        preset = registry.preset(name).of(replace(given, drafts=True))
        if (spec := preset.spec) is not None:  # before anything is downloaded
            if isinstance(target, Prompted) and isinstance(spec, RasterSpec):  # sizes are looked at in `from_model`
                size = {"rows": target.spec.rows, "columns": target.spec.columns}
                spec = replace(spec, **size, previews=target.spec.previews if spec.previews else ())
            if target.any_grid and isinstance(spec, ContinuousSpec):
                spec = replace(spec, slots=target.spec.slots)
            check(name, spec, target.spec)
        return from_model(pipe, name, preset.build(replace(given, drafts=True), target.device, target.dtype))


def from_model(pipe: Any, name: str, other: Any) -> nn.Module:
    """The transformer of the pipeline `other`, to draft for `pipe`. ValueError, by its name, where it cannot."""
    small: Any = other.transformer
    target: Any = pipe.transformer
    if isinstance(small, Prompted) and isinstance(target, Prompted) and target.size in small.sizes:
        small = small.at(target.size)
    if small.any_grid and target.any_grid:
        grid: Any = target.grid
        small = small.at(grid)
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
    if not target.shows_states:
        raise ValueError(f"an EAGLE head cannot draft for {type(target).__name__}, which does not show its states")
    with torch.device("meta"):
        head = EagleHead(target.config)
    checkpoints.load_into(head, path, dtype=target.dtype, device=target.device)
    about = {"previews": "()"} | weight_files.metadata(path)  # of which heads that were trained before say nothing
    for what, wanted in described(pipe).items():
        if about.get(what) != wanted:
            raise ValueError(f"the head {path} cannot draft here: {what} {shown(about.get(what))} instead of {wanted}")
    return head.eval().requires_grad_(False)


def described(pipe: Any) -> dict[str, str]:
    """What a head's file says of the model that it was trained for: the layout of its images, and their codes."""
    codes, spec = None if pipe.tokenizer is None else pipe.tokenizer.stored_codes, pipe.transformer.spec
    # As they are stored: normalised ones may differ in their last bits from device to device.
    stored = b"" if codes is None else codes.detach().float().cpu().numpy().tobytes()
    digest = hashlib.sha256(stored).hexdigest()[:16]
    return {key: str(value) for key, value in asdict(spec).items()} | {"codebook": digest}


def _codebook(pipe: Any) -> Tensor | None:
    return None if pipe.tokenizer is None else pipe.tokenizer.codebook()


def chosen(pipe: Any, sampler: type[Sampler], settings: Any) -> tuple[str, Any] | None:
    """What drafts for a method of `pipe`, and its name; None where the method drafts nothing.

    It is the one that the method names, or else the pipeline's, or else the preset's. ValueError where there is none,
    or where the name is of none that fits.
    """
    partner = sampler.partner
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
        if not target.shows_states:
            raise ValueError(f"an EAGLE head cannot draft for {type(target).__name__}, which does not show its states")
        if (ours := module.config.width) != (theirs := target.config.width):
            raise ValueError(f"EagleHead cannot draft here: width {ours} instead of {theirs}")
        head = module.to(target.device, target.dtype)
        return name, HeadDrafter(head, target, len(inputs[0]), method.guidance, method.warp)
    if isinstance(target, Prompted) and isinstance(module, Prompted):
        _check_words(name, module, target, inputs)
    elif not target.spec.classes:
        ours, theirs = module.text_shape, target.text_shape
        if ours != theirs:
            raise ValueError(f"{name} cannot draft here: it reads texts of {ours} (tokens, width) instead of {theirs}")
    model = on(module, target.device)
    return name, ModelDrafter(model, embed(model, inputs, guided=method.guidance.active), method.guidance, method.warp)


def _check_words(name: str, drafter: Prompted, target: Prompted, inputs: tuple[Tensor, ...]) -> None:
    """ValueError where a drafter cannot read the prompts, or draws no images of this size."""
    if (drafter.words, drafter.opening()) != (target.words, target.opening()):
        raise ValueError(f"{name} cannot draft here: its text vocabulary is another")
    if drafter.size != target.size:
        raise ValueError(f"{name} cannot draft here: it draws {drafter.size[1]}x{drafter.size[0]} pixels")
    drafter.checked(*inputs)
