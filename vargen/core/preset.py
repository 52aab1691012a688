"""What a preset is: a model's name, the recipes that were published for it, and how its pipeline is built."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vargen.core.messages import quoted, shown
from vargen.core.numbers import Numbers

if TYPE_CHECKING:
    import torch

    from vargen.core.layout import Layout
    from vargen.core.specs import ContinuousSpec, RasterSpec, ScaleSpec


@dataclass(frozen=True)
class Recipe:
    """How a model is sampled unless the caller says otherwise."""

    guidance_scale: float = 1.0
    cfg_interval: int = -1
    temperature: float | Sequence[float] = 1.0  # this one and the next two: of all scales, or of each
    top_k: int | Sequence[int] = 0
    top_p: float | Sequence[float] = 1.0
    top_n_sigma: float = 0.0  # raster models: see `Warp`; 0 is off
    image_size: int | None = None  # pixels along one side, resized to if need be; None: as decoded
    labels: Literal["balanced", "random"] = "balanced"  # how a sampling run chooses classes
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by method, unless they are given
    published: Mapping[str, float] = field(default_factory=dict)  # figures that the authors report under this recipe


# By the kind of model; of continuous ones, by their plan. By what is used where none is named, a seed gives its image
# again, on every path: no window is `auto`, which hangs on the clock. docs/methods.md says so to the reader.
PLAIN_METHODS = {"raster": "ar", "next-scale": "var", "masked": "mar", "scales": "flowar", "cells": "xar"}
DEFAULT_METHODS = {**PLAIN_METHODS, "raster": "sjd-exact:window=16"}
LAW = ("guidance_scale", "cfg_interval", "temperature", "top_k", "top_p")  # the fields that shape what is drawn


@dataclass(frozen=True)
class Sources:
    """Files to take instead of the published ones; None takes those, downloading them at a pinned revision."""

    checkpoint: Path | None = None
    tokenizer_checkpoint: Path | None = None
    text_encoder: str | None = None  # a folder or repository that transformers loads
    ema: bool = True  # a file that has plain and averaged weights: take the averaged
    drafts: bool = False  # it is only to draft: what reads text, and an autoencoder, the large model has
    numbers: Numbers = field(default_factory=Numbers)  # that the files are said to have


@dataclass(frozen=True)
class Preset:
    """A model by name. `recipes` are by name too, and the first is used unless another is asked for."""

    name: str
    summary: str  # one line
    recipes: Mapping[str, Recipe]
    classes: int  # 0: takes a prompt
    build: "Callable[[Sources, torch.device, torch.dtype], Any]"
    names: Callable[[], Sequence[str]] = tuple  # of the classes
    examples: tuple[int, ...] = ()  # the classes that are drawn when none is asked for
    spec: "RasterSpec | ScaleSpec | ContinuousSpec | None" = None  # the image's layout
    drafter: str | None = None  # what drafts for this one, or refines what it began, unless something else is named
    usual: str | None = None  # its method, where that is not the one of its kind
    skeleton: Callable[[], Any] | None = None  # its transformer with fresh weights, of its published shapes
    layout: "Layout | None" = None  # how its published files name the weights of `skeleton`
    repository: str = ""  # on the hub
    file: str = ""  # its name there, where it is one
    originals: tuple[str, ...] = ()  # repositories with the same weights in a form that needs code of its own
    pipeline: str = ""  # of diffusers, where its repository is one: the class that its model_index.json names
    head: Path | None = None  # weights of an EAGLE head that drafts for this one
    released: bool = True  # whether there are weights
    scenes: bool = False  # trained on pocket scenes, whose captions are drawn when no prompt is given
    reads: "Callable[[Sources], Preset] | None" = None  # this one with the numbers of files that are named

    @property
    def source(self) -> str:
        """Where its weights are; empty where none were released."""
        if not self.released:
            return ""
        if self.repository:
            return f"{self.file} of {self.repository}" if self.file else self.repository
        return f"{self.file} of the authors' own download, on no hub" if self.file else "weights in the package"

    def of(self, sources: Sources) -> "Preset":
        """This one for files that may have other numbers: their shapes are read, nothing is loaded or downloaded.

        ValueError where they are not of this model, or not what `sources.numbers` says.
        """
        if self.reads is None and sources.numbers != Numbers():
            raise ValueError(f"{self.name} takes no numbers: its files have them")
        return self if self.reads is None else self.reads(sources)

    def sized(self, spec: Any, skeleton: Callable[[], Any]) -> "Preset":
        """This one with another layout. Where that has another number of classes, they have no names."""
        found = replace(self, spec=spec, skeleton=skeleton if self.skeleton else None)
        if spec.classes == self.classes:
            return found
        examples = tuple(range(min(len(self.examples), spec.classes)))
        return replace(found, classes=spec.classes, names=tuple, examples=examples)

    @property
    def kind(self) -> str:
        """Which methods draw with it."""
        return "raster" if self.spec is None else self.spec.kind

    @property
    def plan(self) -> str:
        """The same, but of continuous models the plan."""
        return self.kind if self.spec is None else self.spec.plan

    @property
    def method(self) -> str:
        """The method that is used unless another is named."""
        return self.usual or DEFAULT_METHODS[self.plan]

    @property
    def recipe(self) -> Recipe:
        """The first one."""
        return next(iter(self.recipes.values()))

    def choose(self, recipe: str | None) -> Recipe:
        """A recipe by name. ValueError lists the names."""
        if recipe is not None and (not isinstance(recipe, str) or recipe not in self.recipes):
            raise ValueError(
                f"{self.name} has no preset {quoted(recipe)}; there are {', '.join(map(shown, self.recipes))}"
            )
        return self.recipe if recipe is None else self.recipes[recipe]


def custom(transformer: Any) -> Preset:
    """Of a model that somebody put together: no guidance, no truncation, classes by number."""

    spec = transformer.spec
    recipe = Recipe(guidance_scale=0.0 if spec.kind == "next-scale" else 1.0)  # off
    return Preset("custom", "", {"default": recipe}, spec.classes, _unnamed, spec=spec)


def _unnamed(*_: Any) -> Any:
    raise ValueError("a custom pipeline is not loaded by name")
