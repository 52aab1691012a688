"""What redraws a picture: what was drawn, with which weights, in which company. Traces and files hold it."""

import hashlib
import zlib
from collections.abc import Hashable
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from vargen.core import quantize, registry
from vargen.core.image_processor import as_mask, as_picture
from vargen.pipelines import values
from vargen.pipelines.choose_drafter import chosen

PICTURES = ("image", "mask_image")
SEEN = 512  # numbers of a tensor that are looked at to tell whether it has changed


def of(pipe: Any, method: Any, wanted: Any, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """What `wanted`, the options of a call, draws, a row of `inputs` for each image: texts, and lists of one each.

    A prompt that came encoded is not known here: whoever encoded it may add it.
    """
    rows, spec = len(inputs[0]), pipe.transformer.spec
    found: dict[str, Any] = {
        "preset": wanted.preset or next(iter(pipe.preset.recipes)),
        **with_weights(pipe, method),
        "device": pipe.transformer.device.type,
        "batch_size": min(wanted.batch_size, rows),
    }
    if pipe.decodes:
        found["size"] = "{1}x{0}".format(*pipe.size)
    others = {"image_size": wanted.image_size, "negative_prompt": _against(wanted.negative_prompt, rows)}
    others |= {"fast": None if pipe.fast == "auto" else pipe.fast, "free_size": wanted.free_size or None}
    others |= {name: digest(name, vars(wanted).get(name)) for name in PICTURES}
    found |= {key: value for key, value in others.items() if value is not None}
    if spec.classes:
        found["class"] = [-1 if label == spec.classes else label for label in inputs[0].tolist()]
    elif wanted.prompt is not None:
        texts = values.prompts(wanted.prompt)
        found["prompt"] = [text for text in texts for _ in range(rows // len(texts))]
    return found


def with_weights(pipe: Any, method: Any) -> dict[str, str]:
    """The dtype that a method draws in, and a digest of the weights that are there now."""
    weights = _fingerprint(pipe, method.sampler, method.settings, text=False)
    return {"dtype": str(pipe.dtype).removeprefix("torch."), "weights": weights}


def stamp(pipe: Any, method: Any) -> Hashable:
    """What changes when any of the weights that a method draws with do; while they live."""
    return _stamp(_states(pipe, method.sampler, method.settings, text=False))


def _against(negative: Any, rows: int) -> str | list[str] | None:
    """A negative prompt that is the same for all images, or a list of one each."""
    if negative is None or isinstance(negative, str):
        return negative
    texts = list(negative)
    return texts[0] if len(set(texts)) == 1 else [text for text in texts for _ in range(rows // len(texts))]


def digest(name: str, picture: Any) -> str | None:
    """Of the size and the pixels of an `image` or a `mask_image`, as they are read; None where it is none, or several.

    A tensor counts as the picture that it was made of, in steps of 1 / 255.
    """
    if isinstance(picture, Tensor):
        picture = to_pil_image((picture.detach().float().cpu() * 255).round().clamp(0, 255).byte())
    if not isinstance(picture, Image.Image):
        return None
    read = as_mask(picture) if name == "mask_image" else as_picture(picture)
    return hashlib.sha256(f"{read.mode} {read.size} ".encode() + read.tobytes()).hexdigest()[:16]


def fingerprint(pipe: Any, method: str, preset: str | None = None) -> str:
    """A digest that tells weights apart, a drafter's too where the method has one; the same on every device.

    It is of each tensor's first values, and of sums of it as words that say where they stand.
    """
    return _fingerprint(pipe, *registry.method(method, pipe.preset.choose(preset).settings), text=True)


def _fingerprint(pipe: Any, sampler: Any, settings: Any, *, text: bool) -> str:
    """The same; without `text` the text encoder's are left out. Taken anew when weights have changed."""
    states = _states(pipe, sampler, settings, text=text)
    key = _stamp(states)
    if pipe.fingerprints.get(text, (None, ""))[0] != key:
        pipe.fingerprints[text] = (key, _digest(states))
    return pipe.fingerprints[text][1]


def _states(pipe: Any, sampler: Any, settings: Any, *, text: bool) -> list[dict[str, Tensor]]:
    drafting = chosen(pipe, sampler, settings)
    parts = [pipe.transformer, pipe.tokenizer, pipe.text_encoder if text else None, drafting and drafting[1]]
    return [{} if part is None else dict(chain(part.named_parameters(), part.named_buffers())) for part in parts]


def _stamp(states: list[dict[str, Tensor]]) -> Hashable:
    return tuple(_version(one) for state in states for value in state.values() for one in quantize.parts(value))


def _version(value: Tensor) -> tuple[int, ...]:
    """What changes when a tensor does. What is written past autograd's eyes (`.data`) is seen on a CPU alone, and where
    any of some hundred numbers tells it.
    """
    some = 0
    if value.is_cpu and value.numel():
        spread = value.detach().reshape(-1)[:: -(-value.numel() // SEEN)].contiguous()
        some = zlib.crc32(spread.view(torch.uint8).numpy().data)
    return id(value), value.data_ptr(), 0 if value.is_inference() else value._version, some


def _digest(states: list[dict[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for key, value in ((key, one) for state in states for key, whole in state.items() for one in quantize.parts(whole)):
        words = value.detach().contiguous().flatten()
        found.update(f"{key} {tuple(value.shape)} {value.dtype} {_sums(words)}".encode())
        found.update(words[:256].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _sums(words: Tensor) -> list[int]:
    """Of a flat tensor as integers: of all, and of its rows and columns, were it 251 wide, each times its number."""
    whole = words.view(torch.int16) if words.element_size() > 1 else words.view(torch.uint8)
    width = 251  # a prime: no matrix has rows of a multiple of it by chance
    cut = len(whole) // width * width
    grid, rest = whole[:cut].view(-1, width), whole[cut:]
    sides = [grid.sum(dim, dtype=torch.int64) for dim in (1, 0)]
    parts = [rest.sum(dtype=torch.int64), *(side.sum() for side in sides)]
    parts += [(side * torch.arange(1, len(side) + 1, device=side.device)).sum() for side in (*sides, rest.long())]
    return [int(part) for part in torch.stack(parts).tolist()]
