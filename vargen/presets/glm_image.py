"""GLM-Image (zai-org/GLM-Image, github.com/zai-org/GLM-Image at ac199b9): its repository, shapes and recipe.

Temperature and top-p are those of the README, for the first stage; no top-k is published. The whole repository is of
diffusers' GlmImagePipeline: `vision_language_encoder` and `processor` are ours, the rest paints.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vargen.core import hub, model_config, pretrained, safe_json, weight_files
from vargen.core.messages import quoted
from vargen.core.preset import Preset, Recipe, Sources
from vargen.core.specs import RasterSpec

if TYPE_CHECKING:
    from vargen.models.glm_image import GlmImage
    from vargen.pipelines.glm_image import GlmImagePipeline

NAME, REPOSITORY = "glm-image", "zai-org/GLM-Image"
FIRST, PROCESSOR, INDEX = "vision_language_encoder", "processor", "model_index.json"
PIPELINE = "GlmImagePipeline"
CODES, START = 16384, 16384
ROPE = ("partial_rotary_factor", "mrope_section")  # which the class would take others for where they are left out
TEXT = {  # GlmImageTextConfig as published
    "vocab_size": 168064,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "attention_bias": True,
    "rms_norm_eps": 1e-5,
    "vision_vocab_size": 16512,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [8, 12, 12],
    },
}


def build(sources: Sources, device: torch.device, dtype: torch.dtype) -> "GlmImagePipeline":
    """The pipeline from the whole repository, or from its first stage alone, which gives codes and no pictures."""
    from vargen.models import t5
    from vargen.models.glm_image import check_words
    from vargen.pipelines.glm_image import GlmImagePipeline
    from vargen.pipelines.glm_painting import read_painter
    from vargen.pipelines.glm_sources import Reader

    folder = sources.checkpoint if sources.checkpoint is not None else hub.fetch(REPOSITORY, "*", "main")
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: expected the repository {REPOSITORY}, or its {FIRST}")
    if sources.tokenizer_checkpoint is not None:
        raise ValueError(f"{NAME} has no image tokenizer in a file of its own: name no tokenizer_checkpoint")
    whole = (folder / INDEX).is_file()
    if whole:
        _check_index(folder)
    first, words = (folder / FIRST, folder / PROCESSOR) if whole else (folder, folder)
    text = t5.load_tokenizer(sources.text_encoder or str(words), REPOSITORY)
    check_words(text)
    model = _first(first)
    transformer = _transformer(model, first).to(device, dtype).eval().requires_grad_(False)
    if transformer.start != text.bos_token_id:
        raise ValueError(f"the text tokenizer of {words} starts images with another token than config.json says")
    painter = read_painter(folder, dtype).to(device) if whole and not sources.drafts else None
    reader = None if painter is None else Reader(model.model.to(device, dtype), _images(words))
    rest: dict[str, Any] = {"painter": painter, "reader": reader, "preset": PRESETS[NAME]}
    return GlmImagePipeline(transformer, None, text_tokenizer=text, **rest)


def _check_index(folder: Path) -> None:
    """ValueError where a model_index.json is of another pipeline, or parts are missing."""
    kind = safe_json.member(folder / INDEX, "_class_name")
    if kind != PIPELINE:
        raise ValueError(f"{folder / INDEX} is of {quoted(kind)}, expected a {PIPELINE}")
    for part in (FIRST, PROCESSOR):
        if not (folder / part).is_dir():
            raise ValueError(f"the folder {folder} lacks {part}, which {REPOSITORY} has")


def _images(folder: Path) -> Any:
    """transformers' image processor in a folder. ValueError where there is none."""
    from transformers import GlmImageImageProcessor

    return pretrained.load(GlmImageImageProcessor, folder, "an image processor")


def _first(folder: Path) -> Any:
    """The first stage from its folder, as transformers has it. ValueError where it is of another model, or does not say
    its positions.
    """
    from transformers import GlmImageForConditionalGeneration

    from vargen.models.wrapped import pretrained as load

    if (folder / "config.json").is_file():  # else transformers says what it misses
        found = model_config.read(folder)
        if found.get("model_type") != "glm_image":
            raise ValueError(
                f"the folder {folder} has another model (model_type {quoted(found.get('model_type'))}): "
                f"expected glm_image, of {REPOSITORY}"
            )
        rope = (found.get("text_config") or {}).get("rope_parameters") or {}
        if lacking := [key for key in ROPE if key not in rope]:
            raise ValueError(f"config.json of {folder} lacks rope_parameters.{lacking[0]}: positions would be wrong")
    weight_files.shards(folder)
    return load(GlmImageForConditionalGeneration, folder)


def _transformer(model: Any, folder: Path) -> "GlmImage":
    """The raster model around it."""
    from vargen.models import glm_image

    config, known = model.config, glm_image.sizes()
    how: dict[str, Any] = {"codes": config.vq_config.num_embeddings, "start": config.image_start_token_id}
    model_config.check_ids({"image_start_token_id": how["start"]}, config.text_config.vocab_size, str(folder))
    return glm_image.GlmImage(model.model.language_model, model.lm_head, size=glm_image.SIZE, sizes=known, **how)


def skeleton() -> "GlmImage":
    """The first stage with fresh weights, of its published shapes."""
    from torch import nn
    from transformers import GlmImageTextConfig, GlmImageTextModel

    from vargen.models import glm_image

    config = GlmImageTextConfig(**TEXT)
    head = nn.Linear(config.hidden_size, config.vision_vocab_size, bias=False)
    how: dict[str, Any] = {"codes": CODES, "start": START, "size": glm_image.SIZE, "sizes": glm_image.sizes()}
    return glm_image.GlmImage(GlmImageTextModel(config), head, **how)


PRESETS = {
    NAME: Preset(
        NAME,
        "GLM-Image 9B + 7B from text at 512 to 2048 pixels a side, by transformers and diffusers.",
        {"default": Recipe(temperature=0.9, top_p=0.75)},
        0,
        build,
        spec=RasterSpec(36, 24, CODES, 0, previews=((19, 13),)),
        skeleton=skeleton,
        repository=REPOSITORY,
        pipeline=PIPELINE,
    )
}
