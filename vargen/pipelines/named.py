"""What people give for a model's name: a hub's id, or a path of published files. Which model that is, or might be."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vargen.core import registry, safe_json
from vargen.core.atomic import as_path
from vargen.core.messages import shown
from vargen.core.preset import Preset, Sources
from vargen.core.weight_files import find

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def understood(name: Any, given: Sources) -> tuple[str, Sources]:
    """A model's name and files from a name, a path or a hub's id. ValueError names the models that might be meant."""
    if isinstance(name, str) and name in registry.MODELS:
        return name, given
    if not isinstance(name, str | Path) or not str(name) or "\0" in str(name):
        raise ValueError(registry.unknown("model", str(name), list(registry.MODELS)))
    path = as_path(name, "the name of a model")
    if path.exists():
        if given.checkpoint is not None:
            raise ValueError(f"got the path {path} for a name and a checkpoint as well: give the name of the model")
        return _one(f"{path}", _of_path(path), "checkpoint=..."), replace(given, checkpoint=path)
    if isinstance(name, Path) or str(name).startswith((".", "/", "~")) or path.suffix in SUFFIXES:
        raise ValueError(f"there is no file or folder {path}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _of_repository(name), given
    raise ValueError(registry.unknown("model", name, list(registry.MODELS)))


def _presets() -> list[Preset]:
    return [registry.preset(name) for name in registry.MODELS]


def by_index(folder: Path) -> str | None:
    """The model whose repository is a pipeline of diffusers such as the one in a folder; None where none is."""
    kind = safe_json.member(folder / "model_index.json", "_class_name")
    names = [preset.name for preset in _presets() if preset.pipeline and preset.pipeline == kind]
    return names[0] if len(names) == 1 else None


def _one(place: str, names: Sequence[str], how: str) -> str:
    """The only one of `names`. ValueError lists them where there are several, or none."""
    if len(names) == 1:
        return names[0]
    if not names:
        raise ValueError(f"{place} is of no model that is known by it: give a model's name, and {how} for the path")
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise ValueError(f"{place} may be of {', '.join(names[:8])}{more}: name one of them, and {how} for the path")


def _of_repository(name: str) -> str:
    """The model of a repository on the hub. ValueError where it has several, or where it is one to be converted."""
    found = _presets()
    names = [preset.name for preset in found if preset.repository.casefold() == name.casefold()]
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(f"{name} has several models: name one of {', '.join(names)}")
    for preset in found:
        if name.casefold() in (each.casefold() for each in preset.originals):
            raise ValueError(
                f"{name} is an original repository, whose files need code of its own: {preset.name} takes the same "
                f"weights from {preset.repository}"
            )
    raise ValueError(
        f"no model here is published as {shown(name)}: {registry.unknown('model', name, list(registry.MODELS))}"
    )


def _of_path(path: Path) -> list[str]:
    """Models of which a file or folder may be: by the names of files, and by shapes where these do not tell."""
    found = _presets()
    if path.is_dir():
        there = [preset for preset in found if preset.file and (path / preset.file).is_file()]
        if not there:
            called = {path.name.casefold(), *(part.casefold() for part in path.parts if part.startswith("models--"))}
            repositories = {preset.name: preset.repository.casefold() for preset in found if preset.repository}
            return [
                name
                for name, repository in repositories.items()
                if called & {repository.split("/")[-1], f"models--{repository.replace('/', '--')}"}
            ]
    else:
        there = [preset for preset in found if preset.file == path.name]
    if len(there) == 1:
        return [there[0].name]
    fitting = [preset for preset in there or found if _fits(preset, path / preset.file if path.is_dir() else path)]
    return [preset.name for preset in fitting]


def _fits(preset: Preset, path: Path) -> bool:
    """Whether a file has the weights of a preset, by their shapes; where these are not known, whether it is there."""
    if preset.skeleton is None or preset.layout is None:
        return False
    with torch.device("meta"):
        expected = preset.layout.expected(preset.skeleton())
    try:
        shapes = find(path, preset.layout.under, expected).shapes
    except ValueError:
        return False
    return all(shapes.get(key) == shape for key, (_, shape) in expected.items())
