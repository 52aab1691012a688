"""What a pipeline has of diffusers' beside drawing: folders, LoRA, and what it says of offload."""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from vargen.core import registry
from vargen.core.atomic import as_path
from vargen.pipelines import lora, saving

STAYS = (
    "a vargen pipeline is not offloaded: every forward of an image needs its transformer, and its tokenizer is small; "
    "dtype=torch.bfloat16 or quantize='int8' take less, and release_text_encoder() gives back what has read the prompts"
)
MERGED = "LoRA weights are merged into the model's when they are loaded: load the model anew"


class Kept(DiffusionPipeline):
    """The part of a pipeline that is kept in folders."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        saving.announce(cls)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The same as `vargen.load`: a folder that `save_pretrained` wrote, or the name of a model."""
        return registry.resolve(registry.PUBLIC["load"])(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Another pipeline of the same parts, its recipes among them; `kwargs` are parts in the place of others."""
        kind = kwargs.pop("torch_dtype", kwargs.pop("dtype", None))
        made = cls(**{**pipeline.components, **kwargs})
        return made if kind is None else made.to(kind)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # fewer options, refused in words
        self, save_directory: str | os.PathLike, **options: Any
    ) -> None:
        """Write the pipeline into a new folder, whole or not at all: safetensors, and JSON that says what they are.

        `vargen.load(folder)` and `DiffusionPipeline.from_pretrained(folder)` load it, the latter without what paints
        from GLM-Image's codes. Drafters are not saved.
        ValueError where the folder is not empty, the transformer is quantised, or another format is asked for.
        """
        harmless = {"safe_serialization": (True,), "variant": (None,), "max_shard_size": None, "push_to_hub": (False,)}
        for key, value in options.items():
            taken = harmless.get(key, ())
            if taken is not None and value not in taken:
                raise ValueError(f"got {key} {value!r}, expected nothing of the kind: weights are safetensors")
        saving.write(self, as_path(save_directory, "save_directory"))

    def write_beside(self, folder: Path) -> None:
        """Write into a folder what is no part of every pipeline."""

    @classmethod
    def read_beside(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """What `write_beside` has written, by the names of arguments."""
        return {}

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        *,
        weight_name: str | None = None,
        adapter_name: str | None = None,
        lora_scale: float = 1.0,
    ) -> None:
        """Merge LoRA weights (arXiv 2106.09685) into the transformer's, `lora_scale` times, for good.

        A safetensors file, a folder as peft or diffusers write it (in which `weight_name` may name the file), or a dict
        of tensors, with peft's names of layers as the published files have them; on LlamaGen also Llama's (`q_proj`,
        ...). `adapter_name` is not kept. ValueError, before anything is changed, where it does not fit.
        """
        if self.quantize is not None:
            raise ValueError(f"a transformer in {self.quantize} takes no LoRA: vargen.load(..., lora=) merges before")
        place = pretrained_model_name_or_path_or_dict
        lora.merge(self.transformer, place, weight_name=weight_name, scale=lora_scale)
        self.nats_per_token = None  # of another law

    def fuse_lora(self, *_: Any, lora_scale: float = 1.0, **__: Any) -> None:
        """Nothing to do: they are merged. ValueError where they should be with another scale."""
        if lora_scale != 1:
            raise ValueError(f"got lora_scale {lora_scale}: {MERGED}, with load_lora_weights(..., lora_scale=...)")

    def unload_lora_weights(self, *_: Any, **__: Any) -> None:
        """ValueError: they are merged."""
        raise ValueError(MERGED)

    def set_adapters(self, *_: Any, **__: Any) -> None:
        """ValueError: they are merged."""
        raise ValueError(MERGED)

    def enable_model_cpu_offload(self, *_: Any, **__: Any) -> None:
        """ValueError: a pipeline stays where it is."""
        raise ValueError(STAYS)

    def enable_sequential_cpu_offload(self, *_: Any, **__: Any) -> None:
        """ValueError: a pipeline stays where it is."""
        raise ValueError(STAYS)

    def enable_group_offload(self, *_: Any, **__: Any) -> None:
        """ValueError: a pipeline stays where it is."""
        raise ValueError(STAYS)
