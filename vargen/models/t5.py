"""Text for LlamaGen: a T5 encoder (transformers') whose states, padded on the left, condition the image.

Published with flan-t5-xl, 120 tokens, captions cleaned as DeepFloyd IF and PixArt do (language/ in the official
repository). Any T5 encoder of the width that the image model expects will do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vargen.core import model_config, pretrained
from vargen.core.machine import ordinary
from vargen.core.messages import first_line, shown

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model")
REPOSITORY, REVISION = "google/flan-t5-xl", "7d6315df2c2fb742f0f5b556879d730926ca9001"


def clean(caption: str) -> str:
    """A caption without links, markup, emoji, CJK and file names, in lower case; cleaned twice, as published."""
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline as PixArt

    for _ in range(2):
        caption = PixArt._clean_caption(PixArt, caption)  # pyright: ignore[reportArgumentType]  # reads one regex
    return caption


def load(source: str | None, width: int, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Encoder and tokenizer from a folder or repository, the published ones by default.

    The encoder runs in float32 beside a float32 transformer and in bfloat16 else: T5 overflows in float16. ValueError
    where it cannot be had, lacks weights or its tokenizer, or where its states are not `width` wide.
    """
    place, revision = (REPOSITORY, REVISION) if source is None else (source, "main")
    tokenizer = load_tokenizer(source, place, "a text encoder", revision=revision)
    encoder = load_encoder(place, device, dtype, revision=revision)
    if encoder.config.d_model != width:
        raise ValueError(f"the text encoder {place} gives states of width {encoder.config.d_model}, expected {width}")
    return encoder, tokenizer


def load_encoder(place: str, device: torch.device, dtype: torch.dtype, *, revision: str = "main") -> Any:
    """A T5 encoder from a folder or repository. ValueError where it cannot be had, or lacks weights."""
    from transformers import T5EncoderModel

    precision = torch.float32 if dtype == torch.float32 else torch.bfloat16
    encoder, info = pretrained.load_model(T5EncoderModel, place, "a text encoder", revision=revision, dtype=precision)
    if wrong := [*info["missing_keys"], *info["mismatched_keys"]]:
        raise ValueError(f"the text encoder {place} lacks weights, or has them in another shape: {shown(wrong[0])}")
    return encoder.to(device).eval().requires_grad_(False)


def load_tokenizer(
    source: str | None, published: str, what: str = "a text tokenizer", *, revision: str = "main"
) -> Any:
    """A text tokenizer from a folder or repository, by default `published`. ValueError where it cannot be had."""
    from transformers import AutoTokenizer

    if source is not None:
        check_folder(source)
    found = pretrained.load(AutoTokenizer, source or published, what, revision=revision)
    try:
        found("a", truncation=False)
    except Exception as error:  # whatever a config may make of it
        raise ValueError(f"the text tokenizer {source or published} reads no text: {first_line(error)}") from None
    return found


def check_folder(source: str) -> None:
    """ValueError where `source` is meant as a folder and is none, has no tokenizer's files, or a wrong config.json."""
    folder = Path(source)
    if not folder.is_dir() and source.startswith((".", "/", "~")):
        raise ValueError(f"no text encoder in {source}: there is no such folder")
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"the text encoder {source} has no tokenizer: expected one of {', '.join(TOKENIZER_FILES)}")
    if (folder / "config.json").is_file():
        model_config.read(folder)


@torch.inference_mode()
def encode(captions: Sequence[str], encoder: nn.Module, tokenizer: Any, tokens: int) -> tuple[Tensor, Tensor]:
    """States (B, tokens, C), zero where there is no word, and the mask (B, tokens) of the words, which stand last.

    A caption is cut at `tokens`, its end-of-text token included.
    """
    text = tokenizer(
        [clean(caption) for caption in captions],
        max_length=tokens,
        padding="max_length",
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    device = next(encoder.parameters()).device
    mask = text.attention_mask.to(device)
    states = encoder(input_ids=text.input_ids.to(device), attention_mask=mask).last_hidden_state
    states, words = left_padded(states, mask)
    return ordinary(states), ordinary(words)


def left_padded(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, T, C) and mask (B, T) with the words first, rotated so that they stand last; the rest is zero."""
    count = mask.sum(1, keepdim=True)  # (B, 1)
    place = torch.arange(mask.shape[1], device=mask.device)
    index = (place + count) % mask.shape[1]  # (B, T)
    turned = states.gather(1, index[..., None].expand_as(states))
    words = place >= mask.shape[1] - count
    return turned * words[..., None], words
