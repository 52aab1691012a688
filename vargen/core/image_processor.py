"""Pictures on their way in: the one reader of files and PIL images, for pictures and for masks; and fitting them.

A file is opened as it is, by its content, which is of one of `FORMATS`; of an animation the first frame counts.
Refused, with one reason: what is no plain file, what is damaged, more than 67,108,864 pixels or 32,768 on a side, JPEGs
of over 100 scans, and modes other than these. EXIF orientation is applied. 16 bits of grey are scaled to 8, and
palettes, grey and CMYK converted as Pillow does; colour profiles are left alone. Pictures are laid over white where
they are transparent. In a mask, white is repainted; but where a mask has an alpha channel that is not opaque
everywhere, what is transparent is repainted, as in OpenAI's edits.
"""

import io
import stat
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, UnidentifiedImageError
from torch import Tensor

from vargen.core import png

MOST_BYTES = 1 << 30  # of a file
MOST_SCANS = 100  # of a JPEG file
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others start programs (EPS), or hold pictures within
ORIENTATION = 0x0112
TURNED = {  # EXIF's orientations, and what makes them upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CONVERTED = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBA", "RGBa")


def open_picture(path: Path) -> Image.Image:
    """A picture's file, decoded and not yet converted. ValueError, by its name, with the one reason against it."""
    try:
        return decoded(_content(path))
    except ValueError as error:
        raise ValueError(f"cannot read a picture: {path} {error}") from None


def _content(path: Path) -> bytes:
    """A file's bytes. ValueError where it is none, or too long: pipes and devices are not opened at all."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is no plain file")
        if found.st_size > MOST_BYTES:
            raise ValueError(f"has {found.st_size:,} bytes, expected at most {MOST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be opened: {error.strerror}") from None


def decoded(data: bytes, formats: tuple[str, ...] = FORMATS, most: int = png.MOST_PIXELS) -> Image.Image:
    """A picture from a file's bytes, of at most so many pixels, not yet converted. ValueError with the one reason.

    Nothing is decoded before it is known to be whole and not too large.
    """
    if data.startswith(png.START):
        png.check(data)
    elif data.startswith(b"\xff\xd8") and (scans := data.count(b"\xff\xda")) > MOST_SCANS:  # each takes a pass over all
        raise ValueError(f"has {scans:,} scans, expected at most {MOST_SCANS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound here is lower
            image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise ValueError(f"has too many pixels, expected at most {most:,}") from None
    except UnidentifiedImageError:
        raise ValueError(f"is in no format that is read here, expected {', '.join(formats)}") from None
    except Exception as error:  # Pillow's many formats raise what they like
        raise ValueError(f"is damaged: {error}") from None
    png.check_pixels(*image.size, most)
    try:
        image.load()
    except Exception as error:  # the same
        raise ValueError(f"is damaged: {error}") from None
    return image


def read_picture(path: Path) -> Image.Image:
    """A picture's file in RGB. ValueError by its name."""
    return _named(path, as_picture)


def read_mask(path: Path) -> Image.Image:
    """A mask's file in grey: white is repainted. ValueError by its name."""
    return _named(path, as_mask)


def _named(path: Path, convert: Callable[[Any], Image.Image]) -> Image.Image:
    image = open_picture(path)
    try:
        return convert(image)
    except ValueError as error:
        raise ValueError(f"cannot read a picture: {path}: {error}") from None


def as_picture(image: Any) -> Image.Image:
    """A PIL image upright, in RGB, over white where it is transparent. ValueError for other modes."""
    upright, alpha = _parts(image)
    colours = upright.convert("RGB")
    if alpha is not None:
        colours.putalpha(alpha)
        colours = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return _plain(colours)


def as_mask(image: Any) -> Image.Image:
    """A PIL image upright, in grey: white, or what is transparent where anything is, is repainted."""
    upright, alpha = _parts(image)
    if alpha is not None and alpha.getextrema()[0] != 255:
        return _plain(ImageChops.invert(alpha))
    return _plain(upright.convert("L"))


def opaque(image: Image.Image) -> bool:
    """Whether nothing of a PIL image is transparent."""
    _, alpha = _parts(image)
    return alpha is None or alpha.getextrema()[0] == 255


def _plain(image: Image.Image) -> Image.Image:
    """The same without its metadata, by which it would be turned again."""
    image.info = {}
    return image


def _parts(image: Any) -> tuple[Image.Image, Image.Image | None]:
    """A PIL image upright, with 8 bits a channel; and its alpha, if it has one."""
    if not isinstance(image, Image.Image) or not all(image.size):
        raise ValueError(f"got a {type(image).__name__} for a picture, expected a PIL image")
    wide = image.mode.startswith("I;16")
    if not wide and image.mode not in CONVERTED:
        raise ValueError(f"got a picture of mode {image.mode}, expected one with 8 bits a channel, or 16 of grey")
    turn, clear = TURNED.get(_orientation(image)), image.info.get("transparency")
    upright = image.copy() if turn is None else image.transpose(turn)
    if wide:
        values = np.asarray(upright).astype(np.uint32)
        upright = Image.fromarray(((values * 255 + 32895) >> 16).astype(np.uint8))  # rounded, as libpng scales
        return upright, None if clear is None else Image.fromarray((values != clear).astype(np.uint8) * 255)
    if isinstance(clear, tuple) and max(clear) > 255:
        raise ValueError("got a picture whose transparent colour has 16 bits, expected 8")
    if clear is None and image.mode not in ("LA", "PA", "La", "RGBA", "RGBa"):
        return upright, None
    straight = upright.convert({"RGBa": "RGBA", "La": "LA"}.get(image.mode, image.mode)).convert("RGBA")
    return straight.convert("RGB"), straight.getchannel("A")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, ZeroDivisionError, struct.error):
        return 1  # what EXIF says cannot be made out: the picture is whole all the same


def fit(picture: Any, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """(1, 3, H, W) in [-1, 1] of a PIL image: halved while it is twice too large, resized to cover, cropped.

    (H, W) is the one of `sizes` of which the least has to be cut off; the middle stays (published: a random part).
    ValueError where it is no picture.
    """
    from torchvision.transforms.v2.functional import pil_to_tensor  # takes its time, and most readers want no tensor

    picture = as_picture(picture)

    def kept(size: tuple[int, int]) -> float:
        high, wide = size[0] / picture.height, size[1] / picture.width
        return min(high, wide) / max(high, wide)

    height, width = max(sizes, key=kept)
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    return pil_to_tensor(covering(picture, (height, width)))[None] / 127.5 - 1


def covering(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A PIL image resized (bicubic) to height and width `size`; what is over at its sides is cut off."""
    height, width = size
    scale = max(width / picture.width, height / picture.height)
    shown = (min(width / scale, picture.width), min(height / scale, picture.height))  # rounding may make it larger
    left, top = (picture.width - shown[0]) / 2, (picture.height - shown[1]) / 2
    box = (left, top, min(left + shown[0], picture.width), min(top + shown[1], picture.height))
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box)


def listed(image: Any, prompts: int) -> list[list[Any]]:
    """The pictures of each prompt: `image` is one for each, or a list of them for each.

    ValueError where they are not as many as prompts.
    """
    each = [_several(some) for some in _several(image)]
    if len(each) != prompts:
        raise ValueError(f"got pictures for {len(each)} prompts and {prompts} prompts, expected one list each")
    return each


def _several(image: Any) -> list[Any]:
    return list(image) if isinstance(image, Sequence) and not isinstance(image, str | bytes) else [image]


@torch.inference_mode()
def encoded(image: Any, prompts: int, tokenizer: Any, sizes: Sequence[tuple[int, int]]) -> list[list[Tensor]]:
    """Codes (h, w) of the pictures of each prompt, as `listed` has them."""
    each = listed(image, prompts)
    device = next(tokenizer.parameters()).device
    return [[tokenizer.encode(fit(one, sizes).to(device))[0].cpu() for one in some] for some in each]
