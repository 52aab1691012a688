"""What a call of transformers' `generate` asks for, where images are drawn by our loop: prompts, and the law.

The law is that of the call's GenerationConfig as transformers resolves it: the model's, the one that is passed, and
keywords. What cannot be carried over is refused by name before anything is drawn.
"""

import inspect
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.messages import quoted
from vargen.pipelines import values

CARRIED = {"do_sample", "temperature", "top_k", "top_p", "guidance_scale", "num_return_sequences", "max_length"}
CARRIED |= {"max_new_tokens", "return_dict_in_generate", "bos_token_id", "pad_token_id", "eos_token_id"}
INDIFFERENT = {  # to what is drawn: how keys are kept, how text is compiled, what beams and assistants look at
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
    *("compile_config", "disable_compile", "continuous_batching_config", "transformers_version"),
    *("renormalize_logits", "length_penalty", "early_stopping", "decoder_start_token_id"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "max_matching_ngram_size"),
}
NEUTRAL = {  # beside None, False and nothing, which are so everywhere
    **dict.fromkeys(("num_beams", "num_beam_groups", "repetition_penalty", "encoder_repetition_penalty"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("diversity_penalty", "penalty_alpha"), 0),
}
SAMPLING = {"typical_p": 1, "min_p": 0, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}  # greedy looks at none
BACK = "which vargen does not carry over when it draws images: leave it out, or vargen.release the model"


@dataclass(frozen=True)
class Asked:
    """A call, checked."""

    ids: Tensor  # (B, T), as they were given
    seen: Tensor  # (B, T) bool, padding on the left
    config: Any  # transformers' GenerationConfig, resolved
    law: dict[str, Any]  # as our pipelines take it
    given: Mapping[str, Any]  # every argument by its name

    @property
    def each(self) -> int:
        """Images of each prompt."""
        return _each(self.config)

    @property
    def drawn(self) -> bool:
        """Whether chance has a part."""
        return _samples(self.config)


def arguments(generate: Any, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a class's `generate` by name. TypeError as the method itself says it."""
    signature = inspect.signature(generate)
    bound = signature.bind(model, *args, **kwargs).arguments
    own, *_ = signature.parameters
    return {name: value for name, value in bound.items() if name not in (own, "kwargs")} | bound.get("kwargs", {})


def read(model: Any, given: Mapping[str, Any], takes: tuple[str, ...], guidance: float = 1.0) -> Asked:
    """A call for images of a model with such arguments, of which the kind of model `takes` some beside prompts and law.

    `guidance` is the scale where none is set. ValueError names what cannot be carried over.
    """
    from transformers import GenerationConfig  # slow to import

    named = {"inputs", "generation_config", *takes, *inspect.signature(type(model).generate).parameters}
    others = {name: value for name, value in given.items() if name not in named}
    passed = given.get("generation_config")
    if not isinstance(passed, GenerationConfig | None):
        raise ValueError(f"got generation_config {quoted(passed)}, expected a GenerationConfig of transformers")
    config, rest = model._prepare_generation_config(passed, **others)
    known = {"inputs", "input_ids", "attention_mask", "generation_config", *takes}
    beside = {name: value for name, value in given.items() if name in named} | rest
    for name, value in beside.items():
        if name not in known and not _nothing(value):
            raise ValueError(f"got {name}, {BACK}")
    _check(config)
    ids = _prompts(given)
    return Asked(ids, _seen(ids, given.get("attention_mask"), config), config, _law(config, guidance), given)


def _nothing(value: Any) -> bool:
    empty = isinstance(value, Sized) and not isinstance(value, Tensor) and len(value) == 0
    return value is None or value is False or empty


def _check(config: Any) -> None:
    """ValueError names a setting that changes the law, or what is given back, in a way that is not ours."""
    sampling, usual = SAMPLING if _samples(config) else {}, type(config)()
    for name in vars(usual):  # a model's own entries beside are nobody's law
        value = vars(config).get(name)
        if name.startswith("_") or name in CARRIED | INDIFFERENT or (name in SAMPLING and not sampling):
            continue
        if not _nothing(value) and value != {**NEUTRAL, **sampling}.get(name):
            raise ValueError(f"got {name} {quoted(value)}, {BACK}")
    values.whole(_each(config), "num_return_sequences", least=1, most=values.MOST_IMAGES)


def _samples(config: Any) -> bool:
    """Whether a call samples: transformers asks whether `do_sample` is true, which 1 is as well."""
    return bool(config.do_sample)


def _each(config: Any) -> Any:
    return 1 if config.num_return_sequences is None else config.num_return_sequences


def _law(config: Any, guidance: float) -> dict[str, Any]:
    scale = guidance if config.guidance_scale is None else values.number(config.guidance_scale, "guidance_scale")
    if not scale >= 1:
        raise ValueError(f"got guidance_scale {scale}, expected 1 (off) or more")
    if not _samples(config):
        return {"guidance_scale": scale, "temperature": 1.0, "top_k": 1, "top_p": 1.0}
    usual = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    found = {name: vars(config)[name] for name in usual if vars(config)[name] is not None}
    return {"guidance_scale": scale, **usual, **found}


def _prompts(given: Mapping[str, Any]) -> Tensor:
    ids: Any = given.get("inputs")
    if ids is not None and given.get("input_ids") is not None:
        raise ValueError("got both inputs and input_ids, expected one of them")
    ids = given.get("input_ids") if ids is None else ids
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64) or not ids.numel():
        found = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else quoted(ids)
        raise ValueError(f"got input_ids {found}, expected token ids (B, T)")
    return ids


def _seen(ids: Tensor, mask: Any, config: Any) -> Tensor:
    """The mask (B, T) of prompts; where none is given, as transformers infers it from padding."""
    if mask is not None:
        return checked_mask(ids, mask, "attention_mask")
    pad, eos = config.pad_token_id, config.eos_token_id
    ends = eos if isinstance(eos, list | tuple) else [eos]
    seen = torch.ones_like(ids, dtype=torch.bool) if pad is None or pad in ends else ids != pad
    return checked_mask(ids, seen, "attention_mask, inferred from padding,")


def checked_mask(ids: Tensor, mask: Any, name: str) -> Tensor:
    """`mask` (B, T) as bool. ValueError where it is none of `ids`, or where padding is not on the left."""
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else quoted(mask)
        raise ValueError(f"got {name} {found}, expected 0 and 1 of the shape {tuple(ids.shape)} of the ids")
    seen = mask.to(ids.device) != 0
    if not ((mask == 0) | (mask == 1)).all() or not seen[:, -1].all() or (seen[:, :-1] & ~seen[:, 1:]).any():
        raise ValueError(f"got {name} that is not of padding on the left and words behind it, as generate wants it")
    return seen


def negatives(asked: Asked) -> tuple[Tensor, Tensor]:
    """What guidance is against, ids and mask for each image, as UnbatchedClassifierFreeGuidanceLogitsProcessor has it:
    the negative prompts, or else the last token of each prompt. ValueError where they are of another number.
    """
    ids = asked.given.get("negative_prompt_ids")
    if ids is None and asked.given.get("negative_prompt_attention_mask") is not None:
        raise ValueError("got negative_prompt_attention_mask and no negative_prompt_ids, expected both or none")
    if ids is None:
        ids = asked.ids[:, -1:]
        ids = ids.repeat_interleave(asked.each, 0)
        return ids, torch.ones_like(ids, dtype=torch.bool)
    count = len(asked.ids)
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) not in (count, count * asked.each) or not ids.numel():
        found = tuple(ids.shape) if isinstance(ids, Tensor) else quoted(ids)
        raise ValueError(f"got negative_prompt_ids {found}, expected token ids of {count} prompts, one each")
    mask = asked.given.get("negative_prompt_attention_mask")
    seen = checked_mask(ids, torch.ones_like(ids) if mask is None else mask, "negative_prompt_attention_mask")
    each = count * asked.each // len(ids)
    return ids.repeat_interleave(each, 0), seen.repeat_interleave(each, 0)


def words_first(parts: tuple[Tensor, Tensor], longest: int) -> tuple[Tensor, Tensor]:
    """Left-padded ids and mask (B, T) as our models take them: words first, `longest` places."""
    ids, seen = parts
    place, count = torch.arange(ids.shape[1], device=ids.device), seen.sum(1, keepdim=True)
    turned = ids.gather(1, (place - count) % ids.shape[1]).long()
    more = (0, longest - ids.shape[1])
    return F.pad(turned, more), F.pad(place < count, more)


def pairs(prompts: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Ids (B, 2, T) and their mask, words first, of left-padded prompts and of what guidance is against."""
    longest = max(prompts[0].shape[1], others[0].shape[1])
    (ids, seen), (against, there) = (words_first(parts, longest) for parts in (prompts, others))
    return torch.stack([ids, against], 1), torch.stack([seen, there], 1)
