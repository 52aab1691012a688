"""What can be asked of a pipeline, written once: calls, flags, the server's fields and the docs are made from it.

A field has its default, its words, and, where a shell or a request may set it, the type that text is read as.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from vargen.core.preset import LAW

if TYPE_CHECKING:  # torch is slow to import, and flags are made of this
    import torch
    from torch import Tensor

F = TypeVar("F", bound=Callable)
Many = Sequence[int] | int


@dataclass(frozen=True)
class About:
    """Of an option."""

    words: str
    text: type | None = None  # what a shell or a request gives; None: nothing that text can say
    many: bool = False  # whether text may have several with commas between them
    flag: str = ""  # what a shell calls it, where that is not its name
    repeat: bool = False  # whether a shell repeats it for several
    whole: bool = False  # of a call alone: a stream draws one batch, and shows its pictures itself


def option(default: Any, words: str, **rest: Any) -> Any:
    """A field of options, with what there is `About` it."""
    return field(default=default, metadata={"about": About(words, **rest)})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every pipeline takes. None is what the preset says, or nothing."""

    class_labels: Sequence[int | str] | int | str | None = option(
        None, "classes, by index or name; -1: any, if it may", text=str, flag="class", repeat=True
    )
    prompt: Sequence[str] | str | None = option(None, "what to draw, where the model takes text", text=str, repeat=True)
    negative_prompt: Sequence[str] | str | None = option(
        None, "what guidance is against, where the model reads text", text=str
    )
    prompt_embeds: Tensor | None = option(None, "a prompt that `encode_prompt` has read")
    prompt_attention_mask: Tensor | None = option(None, "its mask, from `encode_prompt` too")
    method: str | None = option(None, "a method with its settings, sjd:window=16, see vargen models", text=str)
    preset: str | None = option(None, "a published recipe of the model (default: the first)", text=str)
    num_images_per_prompt: int = option(1, "images of each class or prompt")
    guidance_scale: float | None = option(None, "classifier-free guidance; off at 1 (next-scale models: 0)", text=float)
    cfg_interval: int | None = option(None, "last token (or scale) to be guided; -1: all", text=int)
    temperature: float | Sequence[float] | None = option(
        None, "of the law; next-scale models: or a value for each scale, 1.1,1,1", text=float, many=True
    )
    top_k: Many | None = option(None, "ids kept, the likeliest; 0 is off", text=int, many=True)
    top_p: float | Sequence[float] | None = option(None, "mass of the ids kept; 1 is off", text=float, many=True)
    image_size: int | None = option(None, "resize to so many pixels a side (default: as the preset says)", text=int)
    seed: Many | None = option(None, "of the first image; image i has seed + i", text=int)
    generator: torch.Generator | Sequence[torch.Generator] | None = option(None, "in place of a seed: one, or a list")
    batch_size: int = option(16, "images decoded together", text=int, whole=True)
    return_dict: bool = option(True, "False: a tuple of the images alone, as in diffusers", whole=True)
    callback_on_step_end: Any = option(
        None,
        "called behind each step as (pipe, step of its batch, tokens settled, tensors); what it returns is not looked "
        "at, an exception ends the call",
        whole=True,
    )
    callback_on_step_end_tensor_inputs: Sequence[str] = option(("tokens",), "of tokens and settled", whole=True)
    output_type: str = option("pil", "pil, np (B, H, W, 3), pt (B, 3, H, W) in [0, 1], or latent: tokens", whole=True)

    free_size: ClassVar[bool] = False  # of raster models alone

    @property
    def law(self) -> dict[str, Any]:
        """What shapes the law, where it replaces the recipe's."""
        return {name: vars(self)[name] for name in LAW}

    @property
    def encoded(self) -> tuple[Tensor | None, Tensor | None]:
        """A prompt that was read before, and its mask."""
        return self.prompt_embeds, self.prompt_attention_mask


@dataclass(frozen=True, kw_only=True)
class RasterOptions(Options):
    """What raster pipelines take beside."""

    image: Any = option(None, "a picture to read with the prompt, or several, for each", text=Path)
    height: int | None = option(None, "of an image in pixels, for a model with several sizes", text=int)
    width: int | None = option(None, "of an image in pixels, likewise", text=int)
    free_size: bool = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        False, "let the model choose each image's size, where it can", whole=True
    )


@dataclass(frozen=True, kw_only=True)
class GlmImageOptions(RasterOptions):
    """What GLM-Image's takes beside."""

    num_inference_steps: int | None = option(None, "denoising steps of the diffusion transformer")


@dataclass(frozen=True, kw_only=True)
class ScaleOptions(Options):
    """What pipelines of next-scale models take beside."""

    image: Any = option(None, "a picture to repaint, of the model's size; or a tensor (3, H, W) in [0, 1]", text=Path)
    mask_image: Any = option(None, "where it is repainted (next-scale models): white, or its holes", text=Path)


@dataclass(frozen=True, kw_only=True)
class ContinuousOptions(Options):
    """What pipelines of continuous models take beside."""

    num_inference_steps: int | None = option(
        None, "denoising steps of a token, a scale or a cell; of methods that anneal them, in the first round"
    )
    height: int | None = option(None, "of an image in pixels, for a model with several sizes", text=int)
    width: int | None = option(None, "of an image in pixels, likewise", text=int)


KINDS = (RasterOptions, ScaleOptions, ContinuousOptions)


def about(name: str) -> About:
    """What there is to say of an option, for flags, requests and help: the words of all kinds that have it."""
    found = [each.metadata["about"] for kind in KINDS for each in fields(kind) if each.name == name]
    return replace(found[0], words="; or ".join(dict.fromkeys(each.words for each in found)))


def read(kind: type[Options], class_labels: Any, given: Mapping[str, Any], *, stream: bool) -> tuple[Any, dict]:
    """Options of a kind, and what is left of `given`: a method's settings. ValueError for what no stream takes."""
    known = {each.name: each.metadata["about"] for each in fields(kind)}
    mine = {name: value for name, value in given.items() if name in known}
    if stream and (wrong := [name for name in mine if known[name].whole]):
        raise ValueError(f"a stream draws one batch and shows its pictures itself: it takes no {wrong[0]}")
    if class_labels is not None:
        mine["class_labels"] = class_labels
    return kind(**mine), {name: value for name, value in given.items() if name not in known}


def takes(kind: type[Options], *, stream: bool = False) -> Callable[[F], F]:
    """Gives a method `(self, class_labels=None, **given)` the signature and the words of the options it takes."""
    known = [each for each in fields(kind) if not (stream and each.metadata["about"].whole)]

    def dressed(method: F) -> F:
        asked = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        for each in known:
            first = each.name == "class_labels"
            place = inspect.Parameter.POSITIONAL_OR_KEYWORD if first else inspect.Parameter.KEYWORD_ONLY
            asked.append(inspect.Parameter(each.name, place, default=each.default, annotation=each.type))
        asked.append(inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD, annotation=Any))
        returns = inspect.signature(method).return_annotation
        vars(method)["__signature__"] = inspect.Signature(asked, return_annotation=returns)
        listed = "\n".join(f"{each.name}: {each.metadata['about'].words}" for each in known)
        told = inspect.cleandoc(method.__doc__ or "")
        method.__doc__ = f"{told}\n\n{listed}\nsettings: of the method, by keyword, as after colons in its name"
        return method

    return dressed


def table(kind: type[Options]) -> str:
    """The options of a kind as a table in Markdown, for the documentation: without those that every pipeline takes."""
    shared = set() if kind is Options else {each.name for each in fields(Options)}
    own = [each for each in fields(kind) if each.name not in shared]
    rows = [f"| `{each.name}` | `{each.default!r}` | {each.metadata['about'].words} |" for each in own]
    return "\n".join(["| option | default | what it is |", "|---|---|---|", *rows]) + "\n"
