"""Keywords that a call does not take: what it takes instead, also of what people bring from diffusers."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vargen.core import registry

REASONS = {
    "num_inference_steps": "it draws tokens, and there is nothing to denoise",
    "eta": "the noise of a diffusion head is its temperature",
    "latents": "noise is a function of the seed: give a seed",
    "strength": "repainting keeps what the mask keeps: give image and mask_image",
    "cross_attention_kwargs": "layers are the model's own",
    "guidance_rescale": "guidance is mixed in logits",
    "clip_skip": "there is no CLIP",
    "callback": "it is callback_on_step_end",
    "callback_steps": "it is callback_on_step_end, called behind every step",
    "num_images": "it is num_images_per_prompt",
    "cfg_scale": "it is guidance_scale",
    "cfg": "it is guidance_scale",
}


def check(name: str, method: str, settings: Mapping[str, Any], kind: Any) -> None:
    """ValueError where a keyword is neither an option of a call to the model `name` nor a setting of the method."""
    chosen = method.split(":")[0]
    if chosen not in registry.METHODS:
        return  # which is complained of elsewhere
    own = [field.name for field in registry.settings_of(chosen)]
    for word in settings:
        if word in own:
            continue
        if word in REASONS:
            raise ValueError(f"got {word}, which {name} does not take: {REASONS[word]}")
        options = [field.name for field in fields(kind)]
        like = difflib.get_close_matches(word, [*options, *own], n=1)
        hint = f"; is it {like[0]}?" if like else ""
        listed = ", ".join(own) or "none"
        raise ValueError(
            f"got {word!r}, which is no option of a call to {name} and no setting of {chosen} ({listed}){hint}"
        )
