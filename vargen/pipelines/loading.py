"""Models and image tokenizers by name: `vargen.load`, `vargen.load_tokenizer`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vargen.core import quantize as quantized
from vargen.core import registry
from vargen.core.dispatch import Kernels
from vargen.core.numbers import Numbers
from vargen.core.preset import Sources
from vargen.pipelines import choose_drafter, keywords, named, saving, values
from vargen.pipelines.base import Pipeline


@torch.inference_mode(False)  # weights that may be changed, whoever loads them
def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    checkpoint: str | Path | None = None,
    tokenizer_checkpoint: str | Path | None = None,
    text_encoder: str | Path | None = None,
    drafter: str | None = None,
    drafter_checkpoint: str | Path | None = None,
    ema: bool = True,
    fast: str = "auto",
    quantize: str | None = None,
    classes: int | None = None,
    codebook_size: int | None = None,
    codebook_embed_dim: int | None = None,
    downsample_size: int | None = None,
    patch_nums: Sequence[int] | str | None = None,
    depth: int | None = None,
    lora: str | Path | None = None,
    **brought: Any,
) -> Pipeline:
    """A pipeline by the model's name, or from a folder that `save_pretrained` wrote.

    `name` may also be the path of published files or an id on the hub, where it is of one model alone. ValueError lists
    names, or names the file that does not load.

    `device` defaults to CUDA where there is one. `dtype` is the transformer's, cast to while loading (default: float32
    on a CPU, bfloat16 on CUDA); the image tokenizer stays in float32. The official files are downloaded (at a pinned
    revision where one is known) unless named: `checkpoint` and `tokenizer_checkpoint` are files or folders with
    them, `text_encoder` a folder or repository with a T5 encoder and its tokenizer (of models that read prompts
    themselves, a text tokenizer alone).
    `drafter`, for the methods that draft with one (and for `code`, which refines with one), is another model by name,
    of the same vocabulary, grid and image tokenizer; or `eagle`, a head on this model that was trained by
    `scripts/train_drafter.py`: the one in the file `drafter_checkpoint`, or the one that ships. MAR's files have
    averaged weights beside plain ones; `ema=False` takes the plain ones. `fast` is auto (Triton's kernels on CUDA,
    where there are any), off (plain PyTorch) or triton (kernels, or an error); the trace says which ran.
    `quantize`, int8 or int4, stores the weights of the transformer's layers so once they are loaded:
    less memory, and another law. Drafters are not quantised.

    Files that somebody trained may have other numbers than published ones, which are read from their shapes: classes
    (which then have no names), codebooks, depth. They may be said too (`classes` to `depth`), and are then held to the
    files; `downsample_size` (pixels per token, LlamaGen's) and `patch_nums` (VAR's sides) a file need not say.
    `lora` is merged, as `load_lora_weights` does it, before layers are quantised.
    `brought` are keywords of diffusers' loading: `torch_dtype`, a `device_map` of one device, what asks for nothing.
    """
    device, dtype = keywords.read(load, str(name), brought, device, dtype)
    Kernels.of(fast)
    where = find_device(device)
    kind = usual_dtype(where) if dtype is None else values.dtype(dtype)
    quantized.check(quantize, where, kind)
    if drafter is None and drafter_checkpoint is not None:
        raise ValueError("got a drafter's checkpoint and no drafter: name the model that it is of")
    text = None if text_encoder is None else str(Path(text_encoder).expanduser())
    numbers = Numbers(classes, codebook_size, codebook_embed_dim, downsample_size, patch_nums, depth)  # type: ignore[arg-type]
    given = Sources(_path(checkpoint), _path(tokenizer_checkpoint), text, values.flag(ema, "ema"), numbers=numbers)
    pipe = _built(name, given, where, kind)
    if drafter is not None:
        given = replace(given, checkpoint=_path(drafter_checkpoint), numbers=replace(numbers, depth=None))
        pipe.drafter = pipe.drafters[drafter] = choose_drafter.by_name(pipe, drafter, given)
    if lora is not None:
        pipe.load_lora_weights(lora)
    if quantize is not None:
        quantized.apply(pipe.transformer, quantize)
    pipe.fast, pipe.quantize = fast, quantize
    return pipe


def _built(name: Any, given: Sources, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """A pipeline from its folder, or from the files of a model."""
    if saving.is_folder(name) and name not in registry.MODELS:
        folder = Path(name).expanduser()
        if (theirs := named.by_index(folder)) is not None:
            return _built(theirs, replace(given, checkpoint=given.checkpoint or folder), device, dtype)
        if given != Sources(ema=given.ema):
            raise ValueError(f"{name} is a pipeline that was saved, with all its files: name no others")
        return saving.read(folder, device, dtype)
    name, given = named.understood(name, given)
    preset = registry.preset(name)
    if given.text_encoder is not None and preset.classes:
        raise ValueError(f"{name} draws classes and takes no text encoder")
    if given.numbers != Numbers():
        preset.of(given)  # before anything is downloaded
    return preset.build(given, device, dtype)


@torch.inference_mode(False)
def load_tokenizer(
    name: str,
    *,
    device: str | torch.device | None = None,
    checkpoint: str | Path | None = None,
    codebook_size: int | None = None,
    codebook_embed_dim: int | None = None,
    patch_nums: Sequence[int] | str | None = None,
) -> nn.Module:
    """An image tokenizer by name, in float32; `encode` and `decode` go between images and ids.

    Codes and levels are those of its file; what is said of them has to be so. `patch_nums` are the sides of the
    scales of a multi-scale one.
    """
    build = registry.find(registry.TOKENIZERS, name, "tokenizer")
    numbers = Numbers(None, codebook_size, codebook_embed_dim, None, patch_nums)  # type: ignore[arg-type]
    return build(name, _path(checkpoint), find_device(device), numbers)


def _path(value: str | Path | None) -> Path | None:
    if value is not None and not isinstance(value, str | Path):
        raise ValueError(f"got checkpoint {value!r}, expected a path")
    return None if value is None else Path(value).expanduser()


def usual_dtype(device: torch.device) -> torch.dtype:
    """The transformer's, unless another is asked for."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def find_device(name: str | torch.device | None) -> torch.device:
    """ValueError where there is no such device, or where it is neither CPU nor CUDA."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {str(name)!r}, expected cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name} was asked for, but torch finds {torch.cuda.device_count() or 'no'} CUDA device"
        )
    return device
