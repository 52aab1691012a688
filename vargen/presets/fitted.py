"""Shapes of a family with the numbers of a checkpoint: what each one's files say of classes, codes, grids and depth."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from vargen.core.held import Held, fitted
from vargen.core.layout import Layout
from vargen.core.numbers import Numbers, sides
from vargen.core.preset import Preset
from vargen.models.flow import BackboneConfig
from vargen.models.flowar import FlowARConfig
from vargen.models.llama import LlamaGenConfig
from vargen.models.mar import MARConfig
from vargen.models.var import VARConfig
from vargen.tokenizers.kl import KLConfig
from vargen.tokenizers.multiscale_vq import MultiScaleVQConfig
from vargen.tokenizers.vq import VQConfig

B = TypeVar("B", bound=BackboneConfig)
Sizes = Mapping[str, Any]  # of a family: shapes by name


def only(name: str, numbers: Numbers, *taken: str) -> None:
    """ValueError where a number is given that a family does not have."""
    for key, value in vars(numbers).items():
        if value is not None and key not in taken:
            words = ", ".join(taken).replace("_", " ") or "none"
            raise ValueError(f"got {key.replace('_', ' ')} {value} for {name}, whose files have other numbers: {words}")


def _same_width(name: str, width: int | None, known: Sizes, place: Path | None) -> None:
    """ValueError where a file is of another published size by its width."""
    if width is None or name not in known or known[name].width == width:
        return
    if like := [other for other, config in known.items() if config.width == width]:
        raise ValueError(f"the weights file {place} is of another size than {name} by its shapes: name {like[0]}")


def llamagen(
    config: LlamaGenConfig, path: Path | None, layout: Layout, numbers: Numbers, name: str, known: Sizes
) -> LlamaGenConfig:
    """Of a LlamaGen; heads cannot be read, and stay."""
    text, table = config.caption_width > 0, "cls_embedding.embedding_table.weight"
    only(name, numbers, "codebook_size", "codebook_embed_dim", "depth", *["classes"] * (not text))
    held = Held(path, layout, "tok_embeddings.weight", "output.weight", table)
    _same_width(name, held.side("tok_embeddings.weight", 1), known, path)
    found = {"vocabulary": held.side("tok_embeddings.weight", 0), "layers": held.count("layers.{}.ffn_norm.weight")}
    given = {"vocabulary": numbers.codebook_size, "layers": numbers.depth}
    if text:
        found["caption_tokens"] = held.side("cls_embedding.uncond_embedding", 0)
        found["caption_width"] = held.side("cls_embedding.uncond_embedding", 1)
    else:
        found["classes"], given["classes"] = held.side(table, 0, 1), numbers.classes
    return fitted(config, held, found, given, name)


def var(config: VARConfig, path: Path | None, layout: Layout, numbers: Numbers, name: str, known: Sizes) -> VARConfig:
    """Of a VAR: all of it, the sides of its scales where they are among those known, or beside the weights."""
    only(name, numbers, "classes", "codebook_size", "codebook_embed_dim", "patch_nums", "depth")
    held = Held(path, layout, "positions", "head.weight", "inward.weight")
    _same_width(name, held.side("head.weight", 1), known, path)
    found = {
        "classes": held.side("classes.weight", 0, 1),
        "vocabulary": held.side("head.weight", 0),
        "code_dim": held.side("inward.weight", 1),
        "layers": held.count("layers.{}.ffn.fc1.weight"),
        "heads": held.side("layers.0.attention.temperature", 1),
        "width": held.side("head.weight", 1),
        "shared": held.has("shared.weight") if held.has("head.weight") else None,
        "sides": _sides(config, held, numbers),
    }
    given = {
        "classes": numbers.classes,
        "vocabulary": numbers.codebook_size,
        "code_dim": numbers.codebook_embed_dim,
        "layers": numbers.depth,
        "sides": numbers.patch_nums,
    }
    return fitted(config, held, found, given, name)


def _sides(config: VARConfig, held: Held, numbers: Numbers) -> tuple[int, ...] | None:
    """Sides of the scales: from the level of each slot where the file has them, or those known of so many slots.

    None where the file says nothing. ValueError where it does not say which.
    """
    slots, scales = held.side("positions", 1), held.side("levels.weight", 0)
    if slots is None or scales is None:
        return None

    def fits(each: tuple[int, ...]) -> bool:
        return len(each) == scales and sum(side**2 for side in each) == slots

    levels = held.raw("lvl_1L")
    if isinstance(levels, torch.Tensor) and levels.dtype == torch.int64 and levels.numel() == slots:
        counts = torch.bincount(levels.flatten().clamp(0, scales), minlength=scales).tolist()
        read = tuple(math.isqrt(count) for count in counts)
        if fits(read) and list(read) == sorted(set(read)):
            return read
    if numbers.patch_nums is not None and fits(numbers.patch_nums):
        return numbers.patch_nums
    known = (each for each in (config.sides, *map(sides, ("256", "512", "1024"))) if fits(each))
    if (found := next(known, None)) is None:
        asked = "" if numbers.patch_nums is None else f", not {numbers.patch_nums}"
        raise ValueError(f"{held.path} has {scales} scales of {slots} tokens in all{asked}: give patch_nums (--pn)")
    return found


def mar(config: MARConfig, path: Path | None, layout: Layout, numbers: Numbers, name: str, known: Sizes) -> MARConfig:
    """Of a MAR: also its head's, which its scripts set apart from its size. Heads cannot be read, and stay."""
    only(name, numbers, "classes", "depth")
    held = Held(path, layout, "mask", "inward.weight", "classes.weight")
    _same_width(name, held.side("mask", 2), known, path)
    slots, rows = held.side("diffusion_positions", 1), held.side("encoder_positions", 1)
    side = math.isqrt(slots or 0)
    found = {
        "classes": held.side("classes.weight", 0),
        "layers": held.count("encoder_blocks.{}.norm1.weight"),
        "head_depth": held.count("head.blocks.{}.norm.weight"),
        "head_width": held.side("head.input_proj.weight", 0),
        "channels": held.side("inward.weight", 1),
        "side": side if slots and side**2 == slots else None,
        "buffer": rows - slots if rows and slots and rows > slots else None,
    }
    return fitted(config, held, found, {"classes": numbers.classes, "layers": numbers.depth}, name)


def flow(config: B, path: Path | None, layout: Layout, numbers: Numbers, name: str, known: Sizes) -> B:
    """Of a FlowAR or an xAR."""
    only(name, numbers, "classes", "depth")
    held = Held(path, layout, "classes.weight", "inward.weight")
    _same_width(name, held.side("inward.weight", 0), known, path)
    found = {
        "classes": held.side("classes.weight", 0, 1),
        "layers": held.count("encoder_blocks.{}.attn.qkv.weight"),
        "channels": held.side("inward.weight", 1),
    }
    if isinstance(config, FlowARConfig):
        found["head_depth"] = held.count("head.blocks.{}.attn.qkv.weight")
        found["head_width"] = held.side("head.input_proj.weight", 0)
    return fitted(config, held, found, {"classes": numbers.classes, "layers": numbers.depth}, name)


def _levels(config: VQConfig | MultiScaleVQConfig | KLConfig, held: Held, front: str = "") -> dict[str, Any]:
    """Channels of each level and blocks in a level, where they are such as can be built."""
    key = f"{front}encoder.down_blocks.{{}}.resnets.0.conv1.weight"
    channels = tuple(held.side(key.format(i), 0) or 0 for i in range(held.count(key) or 0))
    if not channels or any(width == 0 or width % config.norm_groups for width in channels):
        return {}
    blocks = held.count(f"{front}encoder.down_blocks.0.resnets.{{}}.conv1.weight")
    return {"channels": channels, "layers": blocks}


def vq(config: VQConfig, path: Path | None, layout: Layout, numbers: Numbers, name: str) -> VQConfig:
    """Of a VQ tokenizer; how many levels it has is how many pixels a token has."""
    held = Held(path, layout, "quantize.embedding.weight")
    found = {
        **_levels(config, held),
        "codes": held.side("quantize.embedding.weight", 0),
        "code_dim": held.side("quantize.embedding.weight", 1),
        "latent_channels": held.side("quant_conv.weight", 1),
    }
    return fitted(config, held, found, _codes(numbers), name)


def multiscale_vq(
    config: MultiScaleVQConfig, path: Path | None, layout: Layout, numbers: Numbers, name: str
) -> MultiScaleVQConfig:
    """Of a multi-scale tokenizer, but for the sides of its scales, which its files do not say."""
    held = Held(path, layout, "quantize.embedding.weight")
    found = {
        **_levels(config, held),
        "codes": held.side("quantize.embedding.weight", 0),
        "code_dim": held.side("quantize.embedding.weight", 1),
    }
    return fitted(config, held, found, _codes(numbers) | {"sides": numbers.patch_nums}, name)


def kl(config: KLConfig, path: Path | None, layout: Layout, numbers: Numbers, name: str) -> KLConfig:
    """Of an autoencoder, but for the scale of its latents, which its files do not say."""
    only(name, numbers)
    held = Held(path, layout, "model.post_quant_conv.weight")
    found = {**_levels(config, held, "model."), "latent_channels": held.side("model.post_quant_conv.weight", 0)}
    return fitted(config, held, found, {}, name)


def _codes(numbers: Numbers) -> dict[str, int | None]:
    return {"codes": numbers.codebook_size, "code_dim": numbers.codebook_embed_dim}


def preset(usual: Preset, shapes: Any, config: Any, made: Any) -> Preset:
    """A family's preset for the shapes of a file, where these are not the published `shapes`; `made` is its class."""
    return usual if config == shapes else usual.sized(config.spec, partial(made, config))


def check_pair(name: str, ours: int, theirs: int, what: str = "codes") -> None:
    """ValueError where a transformer and its image tokenizer have different numbers of something."""
    if ours != theirs:
        raise ValueError(f"the transformer and the image tokenizer of {name} do not fit: {what} {ours} and {theirs}")
