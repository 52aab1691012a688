"""Pipelines as folders: a model_index.json that says what is in it, and a folder for each part.

`transformer/` and `tokenizer/` are as `parts.py` has them, `text_encoder/` and `text_tokenizer/` as transformers does.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch

from vargen.core import atomic, registry, safe_json
from vargen.core.messages import first_line, quoted, shown
from vargen.core.preset import Preset, Recipe, custom
from vargen.core.version import __version__
from vargen.models import t5
from vargen.pipelines import parts, request, values

INDEX = "model_index.json"
LONGEST = 200  # characters of a class's name
HERE = parts.__name__  # the module in which diffusers' loader finds our parts
NAMES = {  # in diffusers' namespace, where `DiffusionPipeline.from_pretrained` looks for them
    "VargenRasterPipeline": "vargen.pipelines.raster:RasterPipeline",
    "VargenPromptedPipeline": "vargen.pipelines.prompted:PromptedPipeline",
    "VargenGlmImagePipeline": "vargen.pipelines.glm_image:GlmImagePipeline",
    "VargenNextScalePipeline": "vargen.pipelines.next_scale:NextScalePipeline",
    "VargenContinuousPipeline": "vargen.pipelines.continuous:ContinuousPipeline",
}


def announce(made: type) -> None:
    """Let diffusers find a class of pipelines under its name in folders."""
    name = f"Vargen{made.__name__}"
    if name in NAMES and NAMES[name].startswith(f"{made.__module__}:"):
        setattr(diffusers, name, made)


def write(pipe: Any, folder: Path) -> None:
    """A pipeline as a folder, whole or not at all. ValueError where a part of it cannot be saved."""
    name = f"Vargen{type(pipe).__name__}"
    if name not in NAMES:
        raise ValueError(f"a {type(pipe).__name__} is not saved: expected one of vargen's own pipelines")
    if pipe.quantize is not None:
        raise ValueError(f"a transformer in {pipe.quantize} is not saved: save it before it is quantised")
    index: dict[str, Any] = {
        "_class_name": name,
        "_diffusers_version": diffusers.__version__,
        "_vargen_version": __version__,
    }
    for part in ("transformer", "tokenizer", "text_encoder", "text_tokenizer"):
        module = getattr(pipe, part)
        where = "transformers" if part.startswith("text") else HERE
        index[part] = [None, None] if module is None else [where, type(module).__name__]
    index["preset"] = described(pipe.preset)
    atomic.write_folder(folder, lambda temporary: _fill(pipe, temporary, index))


def _fill(pipe: Any, folder: Path, index: dict[str, Any]) -> None:
    for part in ("transformer", "tokenizer"):
        if getattr(pipe, part) is not None:
            parts.write(getattr(pipe, part), folder / part)
    for part in ("text_encoder", "text_tokenizer"):
        if getattr(pipe, part) is not None:
            getattr(pipe, part).save_pretrained(folder / part)
    pipe.write_beside(folder)
    atomic.write_json(folder / INDEX, index)


def is_folder(place: Any) -> bool:
    """Whether a name or path is of a folder with a pipeline, whoever saved it."""
    try:
        return isinstance(place, str | Path) and (Path(place).expanduser() / INDEX).is_file()
    except (OSError, ValueError, RuntimeError):  # no system has such a name
        return False


def read(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline in a folder. ValueError, of one sentence, where it is damaged or none of ours."""
    index = _index(folder)
    found = {}
    for part in ("transformer", "tokenizer", "text_encoder", "text_tokenizer"):
        where, name = index[part]
        if name is None:
            continue
        place = folder / part
        if not place.is_dir():
            raise ValueError(f"the folder {folder} lacks {part}, which its {INDEX} names")
        if part == "text_encoder":
            found[part] = t5.load_encoder(str(place), device, dtype)
        elif part == "text_tokenizer":
            found[part] = t5.load_tokenizer(str(place), str(place))
        else:
            found[part] = parts.read(place, device, dtype if part == "transformer" else torch.float32)
        if where == HERE and type(found[part]).__name__ != name:
            raise ValueError(
                f"{place} holds a {type(found[part]).__name__}, and {INDEX} says that it is a {shown(name)}"
            )
    made = registry.resolve(NAMES[index["_class_name"]])
    found |= made.read_beside(folder, device, dtype)
    transformer, images = found.pop("transformer"), found.pop("tokenizer", None)
    try:
        return made(transformer, images, **found, preset=index["preset"])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"the parts in {folder} make no {made.__name__}: {first_line(error)}") from None


def _index(folder: Path) -> dict[str, Any]:
    """What a model_index.json says. ValueError where it is none of ours."""
    path = folder / INDEX
    try:
        index = safe_json.read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {first_line(error)}") from None
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(kind, str) or kind not in NAMES:
        raise ValueError(f"{folder} holds a {quoted(kind)}, which is no pipeline of vargen's: {', '.join(NAMES)}")
    for part in ("transformer", "tokenizer", "text_encoder", "text_tokenizer"):
        entry, where = index.get(part, [None, None]), "transformers" if part.startswith("text") else HERE
        said = isinstance(entry, list) and len(entry) == 2 and all(each is None or type(each) is str for each in entry)
        if not said or entry[0] not in (None, where) or (part == "transformer" and entry[1] is None):
            raise ValueError(f"{path} has {quoted(entry)} for {part}, expected [{where!r}, a class]")
        index[part] = entry
    if not isinstance(index.get("preset"), dict):
        raise ValueError(f"{path} has a damaged preset {quoted(index.get('preset'))}, expected an object")
    return index


def described(preset: Preset) -> dict[str, Any]:
    """A preset as JSON: its name, its recipes, and what its classes are called."""
    recipes = {name: asdict(recipe) for name, recipe in preset.recipes.items()}
    return {"name": preset.name, "recipes": recipes, "names": list(preset.names()), "method": preset.usual}


def preset_of(found: Any, transformer: Any) -> Preset:
    """The preset that a folder describes, for its transformer. ValueError where it is damaged."""
    if found is None or isinstance(found, Preset):
        return found or custom(transformer)
    try:
        name, names, usual = found["name"], _names(found["names"], transformer.spec), found["method"]
        recipes = {key: Recipe(**_as_recipe(value)) for key, value in found["recipes"].items()}
        known = isinstance(name, str) and name in registry.MODELS
        preset = registry.preset(name) if known else replace(custom(transformer), name=shown(name))
        if (preset.plan, preset.classes > 0) != (transformer.spec.plan, transformer.spec.classes > 0):
            raise ValueError(f"{shown(name)} is another kind of model")
        if not recipes or not (usual is None or isinstance(usual, str)):
            raise ValueError("expected recipes, and the name of a method or none")
        for recipe in recipes.values():
            _check(recipe, usual or preset.method, transformer.spec)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"got a damaged preset: {first_line(error)}") from None
    spec = transformer.spec
    if spec.classes and spec != preset.spec:
        preset = preset.sized(spec, partial(type(transformer), transformer.config))
    return replace(preset, recipes=recipes, usual=usual, names=partial(tuple, names))


def _names(found: Any, spec: Any) -> tuple[str, ...]:
    """What classes are called, from JSON: nothing, or a text each."""
    if not isinstance(found, list) or not all(isinstance(name, str) and len(name) <= LONGEST for name in found):
        raise ValueError(f"got names {quoted(found)}, expected a list of texts of at most {LONGEST} characters")
    if len(found) not in (0, spec.classes):
        raise ValueError(f"got {len(found)} names of {spec.classes} classes")
    return tuple(found)


def _check(recipe: Recipe, method: str, spec: Any) -> None:
    """ValueError or TypeError where nothing can be drawn by a recipe."""
    settings = recipe.settings
    if not isinstance(settings, dict) or not all(isinstance(each, dict) for each in settings.values()):
        raise ValueError(f"got settings {quoted(settings)} of a recipe, expected an object of objects")
    if recipe.labels not in ("balanced", "random") or not isinstance(recipe.published, dict):
        raise ValueError("got a recipe whose labels are neither balanced nor random, or whose published are no object")
    values.number(recipe.top_n_sigma, "top_n_sigma")
    request.image_size(recipe.image_size)
    for name in settings:
        registry.method(name, settings)
    if spec.kind == "continuous":  # whose methods also ask for the image's size, which may not be the recipe's
        for key in ("guidance_scale", "temperature"):
            values.number(getattr(recipe, key), key)
    else:
        request.asked(method, recipe, {}, {}, spec)


def _as_recipe(found: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields from JSON, in which tuples are lists."""
    known = {field.name for field in fields(Recipe)}
    if wrong := sorted(found.keys() - known):
        raise ValueError(f"unknown {quoted(wrong[0])} of a recipe")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
