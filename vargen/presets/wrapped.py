"""Emu3 and Janus-Pro through transformers: their repositories and recipes, with their sources.

Emu3's recipe is that of its model card, Janus's that of its official repository (the whole softmax at temperature 1).
Neither repository is known to us at a revision.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vargen.core import hub, model_config, safe_json, weight_files
from vargen.core.messages import quoted
from vargen.core.preset import Preset, Recipe, Sources
from vargen.core.specs import RasterSpec
from vargen.models import emu3, t5

if TYPE_CHECKING:
    from vargen.models.wrapped import Wrapped
    from vargen.pipelines.raster import RasterPipeline

REPOSITORIES = {
    "emu3-gen": "BAAI/Emu3-Gen-hf",
    "janus-1.3b": "deepseek-community/Janus-1.3B",
    "janus-pro-1b": "deepseek-community/Janus-Pro-1B",
    "janus-pro-7b": "deepseek-community/Janus-Pro-7B",
}
ORIGINALS = {  # the same weights in files that need code of their own
    "emu3-gen": "BAAI/Emu3-Gen",
    "janus-1.3b": "deepseek-ai/Janus-1.3B",
    "janus-pro-1b": "deepseek-ai/Janus-Pro-1B",
    "janus-pro-7b": "deepseek-ai/Janus-Pro-7B",
}
SPECS = {"emu3": RasterSpec(90, 91, 32769, 0, newline=32768), "janus": RasterSpec(24, 24, 16384, 0)}
RECIPES = {"emu3": Recipe(3.0, top_k=2048), "janus": Recipe(5.0)}
SUMMARIES = {
    "emu3-gen": "Emu3-Gen 8B from text at about 720x720 pixels, by transformers.",
    "janus-1.3b": "Janus 1.3B from text at 384 pixels, by transformers.",
    "janus-pro-1b": "Janus-Pro 1B from text at 384 pixels, by transformers.",
    "janus-pro-7b": "Janus-Pro 7B from text at 384 pixels, by transformers.",
}


def build(name: str, sources: Sources, device: torch.device, dtype: torch.dtype) -> "RasterPipeline":
    """The pipeline of a preset, from the official files or from a folder with a copy of them."""
    from vargen.models.wrapped import Images, pretrained
    from vargen.pipelines.prompted import PromptedPipeline

    repository, given = REPOSITORIES[name], sources.checkpoint
    folder = given if given is not None else hub.fetch(repository, "*", "main")
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: expected one with config.json, weights and tokenizer of {name}")
    _check_form(name, folder)
    weight_files.shards(folder)
    if sources.tokenizer_checkpoint is not None:
        raise ValueError(f"{name} has its image tokenizer in its own files: name no tokenizer_checkpoint")
    text = t5.load_tokenizer(sources.text_encoder or str(folder), repository)
    transformer, vqmodel, factor = (_emu3 if name.startswith("emu3") else _janus)(folder, text, pretrained)
    transformer.to(device, dtype).eval().requires_grad_(False)
    janus = not name.startswith("emu3")
    images = Images(vqmodel, factor, flat=janus, sphere=janus, **normalised(folder)).to(device)
    return PromptedPipeline(transformer, images, text_tokenizer=text, preset=PRESETS[name])


def _check_form(name: str, folder: Path) -> None:
    """ValueError where a folder is an original repository, or one of another model."""
    if not (folder / "config.json").is_file():
        return  # transformers says what it misses
    kind, wanted = model_config.read(folder).get("model_type"), name.split("-")[0]
    wanted = "emu3" if wanted.startswith("emu") else wanted
    if kind != wanted:
        original = kind in ("multi_modality", "Emu3")
        what = f"the original form of {ORIGINALS[name]}, which needs code of its own" if original else "another model"
        raise ValueError(f"the folder {folder} has {what} (model_type {quoted(kind)}): take {REPOSITORIES[name]}")


def normalised(folder: Path) -> dict[str, float]:
    """Mean and deviation that the image processor of a folder normalises by; ValueError where channels differ."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    try:
        found = safe_json.read(path)
        pairs = {key: set(found.get(f"image_{key}") or [0.5]) for key in ("mean", "std")}
        (mean,), (std,) = pairs["mean"], pairs["std"]
        law = {"mean": float(mean), "std": float(std)}
        if not 0 < law["std"] < 1e3 or not abs(law["mean"]) < 1e3:
            raise ValueError("no picture is normalised so")
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise ValueError(f"cannot read {path}: expected one image_mean and image_std for all channels") from None
    return law


def _emu3(folder: Path, text: Any, pretrained: Any) -> "tuple[Wrapped, Any, int]":
    from transformers import Emu3ForConditionalGeneration

    from vargen.models.emu3 import Emu3

    model = pretrained(Emu3ForConditionalGeneration, folder)
    sizes, names = emu3.sizes(), model.config.vocabulary_map
    for name in (emu3.START, emu3.IMAGE):
        if text.get_vocab().get(name) != names.get(name) or name not in names:
            raise ValueError(f"the text tokenizer and the vocabulary_map of {folder} disagree on {name}")
    inner = model.model
    model_config.check_ids(names, model.config.text_config.vocab_size, f"the vocabulary_map of {folder}")
    ids = emu3.codes(names)
    return Emu3(inner.text_model, model.lm_head, ids, size=sizes[0], sizes=sizes), inner.vqmodel, emu3.FACTOR


def _janus(folder: Path, text: Any, pretrained: Any) -> "tuple[Wrapped, Any, int]":
    from transformers import JanusForConditionalGeneration

    from vargen.models.janus import Janus

    model = pretrained(JanusForConditionalGeneration, folder)
    how = model.generation_config
    # Only configs that Janus wrote have it: transformers' own know no such field.
    begin = (getattr(how, "generation_kwargs", None) or {}).get("boi_token_id")
    begin = text.get_vocab().get("<begin_of_image>") if begin is None else begin
    start = text.bos_token_id if how.bos_token_id is None else how.bos_token_id
    nothing = text.pad_token_id if how.pad_token_id is None else how.pad_token_id
    ids = {"the begin of an image": begin, "the begin of a text": start, "padding": nothing}
    if None in ids.values():
        raise ValueError(f"{folder} does not say which ids begin a text and an image, and which one pads")
    model_config.check_ids(ids, model.config.text_config.vocab_size, str(folder))
    made = Janus(model.model, begin=begin, start=start, nothing=nothing)
    return made, model.model.vqmodel, made.size[0] // made.spec.rows


def _preset(name: str) -> Preset:
    family = name.split("-")[0]
    make = partial(build, name)
    how: Any = {"repository": REPOSITORIES[name], "originals": (ORIGINALS[name],)}
    return Preset(name, SUMMARIES[name], {"default": RECIPES[family]}, 0, make, spec=SPECS[family], **how)


PRESETS = {name: _preset(name) for name in REPOSITORIES}
