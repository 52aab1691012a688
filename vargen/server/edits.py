"""Pictures that come in with a request: a form as OpenAI's clients send it, read and made to fit the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from starlette.datastructures import FormData, UploadFile

from vargen.core import image_processor
from vargen.server.errors import Refusal
from vargen.server.orders import Card

FORMATS = ("PNG", "JPEG", "WEBP")
PICTURES, MASK = ("image", "image[]"), "mask"
MOST = 16  # pictures of one request, as of OpenAI's


@dataclass(frozen=True)
class Given:
    """Pictures and a mask, decoded."""

    pictures: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None

    def fitting(self, card: Card, size: tuple[int, int], *, strict: bool) -> dict[str, Any]:
        """What an order has of them, for images of `size`. Refusal where the model cannot do anything with them.

        Where a picture is repainted, it is resized to cover the image, and what is over at the sides is cut off.
        """
        try:
            return self._fitting(card, size, strict=strict)
        except ValueError as error:
            raise Refusal(400, str(error), param="image") from None

    def _fitting(self, card: Card, size: tuple[int, int], *, strict: bool) -> dict[str, Any]:
        if card.edits is None:
            raise Refusal(400, f"{card.model} takes no pictures: ask /v1/images/generations", param="model")
        if card.edits == "read":
            if self.mask is not None:
                raise Refusal(400, f"{card.model} reads pictures with a prompt and takes no mask", param="mask")
            return {"pictures": tuple(image_processor.as_picture(one) for one in self.pictures)}
        if len(self.pictures) > 1:
            raise Refusal(400, f"got {len(self.pictures)} pictures, and {card.model} repaints one", param="image")
        picture, mask = next(iter(self.pictures)), self.mask
        if mask is None:
            if image_processor.opaque(picture):
                raise Refusal(400, "got no mask, and a picture without transparent parts: one says where", param="mask")
            mask = picture
        picture, mask = image_processor.as_picture(picture), image_processor.as_mask(mask)
        if mask.size != picture.size:
            raise Refusal(400, f"got a mask {_said(mask)} of a picture {_said(picture)}", param="mask")
        if strict and picture.size != size[::-1]:
            raise Refusal(400, f"got a picture {_said(picture)}, expected {size[1]}x{size[0]}", param="image")
        return {"pictures": (image_processor.covering(picture, size),), "mask": image_processor.covering(mask, size)}


NOTHING = Given()


def fields(form: FormData) -> tuple[dict[str, str], list[tuple[str, UploadFile]]]:
    """The texts of a form, and its files in order. Refusal names what is wrong."""
    texts, files = dict[str, str](), list[tuple[str, UploadFile]]()
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in (*PICTURES, MASK):
                raise Refusal(400, f"got a file as {name[:100]}, expected image, image[] or mask", param=name[:100])
            files.append((name, value))
        elif name in (*PICTURES, MASK):
            raise Refusal(400, f"{name}: got text, expected a file", param=name)
        elif name in texts:
            raise Refusal(400, f"{name[:100]}: got several, expected one", param=name[:100])
        else:
            texts[name] = value
    masks = sum(name == MASK for name, _ in files)
    if len(files) == masks:
        raise Refusal(400, "got no image: a file that is to be edited", param="image")
    if len(files) - masks > MOST or masks > 1:
        message = f"got {len(files) - masks} images and {masks} masks, expected at most {MOST} and one"
        raise Refusal(400, message, param="image")
    return texts, files


def read(files: Sequence[tuple[str, UploadFile]], most_pixels: int) -> Given:
    """The pictures of a form, of so many pixels together. Refusal where one is none. It takes its time."""
    found = list[tuple[str, Image.Image]]()
    for name, file in files:
        left = most_pixels - sum(one.width * one.height for _, one in found)
        found.append((name, _decoded(file, name, left)))
    masks = [one for name, one in found if name == MASK]
    return Given(tuple(one for name, one in found if name != MASK), masks[0] if masks else None)


def _decoded(file: UploadFile, name: str, most: int) -> Image.Image:
    try:
        return image_processor.decoded(file.file.read(), FORMATS, most)
    except ValueError as error:
        raise Refusal(400, f"{name}: the file {error}", param=name) from None


def _said(picture: Image.Image) -> str:
    return f"of {picture.width}x{picture.height}"
