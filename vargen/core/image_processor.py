"""Pictures that a model reads beside its prompt: brought to one of its sizes as Lumina-mGPT's data were."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor


def fit(picture: Any, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """(1, 3, H, W) in [-1, 1] of a PIL image: halved while it is twice too large, resized to cover, cropped.

    (H, W) is the one of `sizes` of which the least has to be cut off; the middle stays (published: a random part).
    What is transparent becomes white. ValueError where it is no picture.
    """
    if not isinstance(picture, Image.Image) or not all(picture.size):
        raise ValueError(f"got a {type(picture).__name__} for a picture, expected a PIL image")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        raise ValueError(f"got a picture of mode {picture.mode}, expected one with 8 bits a channel")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        straight = {"RGBa": "RGBA", "La": "LA"}.get(picture.mode, picture.mode)
        picture = picture.convert(straight).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")

    def kept(size: tuple[int, int]) -> float:
        high, wide = size[0] / picture.height, size[1] / picture.width
        return min(high, wide) / max(high, wide)

    height, width = max(sizes, key=kept)
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    shown = (min(width / scale, picture.width), min(height / scale, picture.height))  # rounding may make it larger
    left, top = (picture.width - shown[0]) / 2, (picture.height - shown[1]) / 2
    box = (left, top, min(left + shown[0], picture.width), min(top + shown[1], picture.height))
    return pil_to_tensor(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))[None] / 127.5 - 1


@torch.inference_mode()
def encoded(image: Any, prompts: int, tokenizer: Any, sizes: Sequence[tuple[int, int]]) -> list[list[Tensor]]:
    """Codes (h, w) of the pictures of each prompt: `image` is one for each, or a list of them for each.

    ValueError where they are not as many as prompts.
    """
    each = list(image) if isinstance(image, Sequence) else [image]
    each = [list(some) if isinstance(some, Sequence) else [some] for some in each]
    if len(each) != prompts:
        raise ValueError(f"got pictures for {len(each)} prompts and {prompts} prompts, expected one list each")
    device = next(tokenizer.parameters()).device
    return [[tokenizer.encode(fit(one, sizes).to(device))[0].cpu() for one in some] for some in each]
