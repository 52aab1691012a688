"""Pictures on their way out: in a grid, and as files that say how they were drawn; and PNGs looked over."""

import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vargen.core import safe_json
from vargen.core.atomic import dumps, write_atomically

if TYPE_CHECKING:  # torch is slow to import, and flags need none of it
    from vargen.core.trace import Trace

START = b"\x89PNG\r\n\x1a\n"
MOST_PIXELS = 1 << 26  # of a picture that comes in: 8192 a side, as many as `image_size` goes up to
MOST_SIDE, MOST_CHUNKS = 1 << 15, 1 << 16
COLUMNS = 10  # of a grid
SHOWN = 192  # pixels a side up to which an image is enlarged in a grid
MOST_SHOWN = 1 << 24  # pixels of a grid up to which that is done
FORMATS = {"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MOST_SIDES = {"JPEG": 65_535, "WEBP": 16_383}  # pixels along a side that a format has room for
SAVED: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
DESCRIPTION = 0x010E  # EXIF's ImageDescription
MOST_EXIF = 60_000  # bytes; a JPEG has room for 64 KB of EXIF in all
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by a PNG's colour type
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7


def grid(images: list[Any], columns: int = COLUMNS, *, large: bool = False) -> Any:
    """PIL images of one size side by side, at most `columns` in a row; if `large`, small ones are enlarged."""
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
    from torchvision.utils import make_grid

    wide, high = images[0].size
    times = enlargement(len(images), (high, wide)) if large else 1
    if times > 1:
        images = [image.resize((wide * times, high * times), Image.Resampling.BICUBIC) for image in images]
    sheet = make_grid([pil_to_tensor(image) for image in images], nrow=columns, padding=0, pad_value=255)
    return to_pil_image(sheet)


def enlargement(count: int, size: tuple[int, int]) -> int:
    """How many times as large each of several images (height, width) is shown in a grid; one alone is left as it is."""
    large, many = SHOWN // max(size), MOST_SHOWN // (count * size[0] * size[1])
    return max(1, min(large, math.isqrt(many))) if count > 1 else 1


def encode(image: Any, texts: dict[str, str], kind: str = "PNG", quality: int | None = None) -> bytes:
    """A PIL image as a file of a kind (PNG, JPEG, WEBP), with texts as a PNG's chunks or in EXIF.

    `quality`, 0 to 100, is of JPEG and WebP alone; None: 95, and without loss.
    """
    from PIL.PngImagePlugin import PngInfo

    if kind != "PNG":
        return _with_exif(image, texts, kind, SAVED[kind] if quality is None else {"quality": quality})
    info, out = PngInfo(), io.BytesIO()
    for key, value in texts.items():
        info.add_text(key, value)
    image.save(out, format="PNG", pnginfo=info)
    return out.getvalue()


def save_picture(path: Path, image: Any, texts: dict[str, str]) -> None:
    """Write a picture in the format of its suffix, whole or not at all: texts as a PNG's chunks, or in EXIF."""
    data = encode(image, texts, FORMATS[path.suffix.lower()])
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def _with_exif(image: Any, texts: dict[str, str], kind: str, how: dict[str, Any]) -> bytes:
    """A JPEG or WebP whose EXIF description is `texts` as JSON; what has no room there is left out, longest first."""
    from PIL import Image

    out, exif, kept = io.BytesIO(), Image.Exif(), dict(texts)
    while len(said := dumps(kept)) > MOST_EXIF:
        del kept[max(kept, key=lambda key: len(kept[key]))]
    exif[DESCRIPTION] = said
    image.save(out, format=kind, exif=exif, **how)
    return out.getvalue()


def read_texts(image: Any) -> dict[str, str]:
    """What an opened PIL image says of how it was drawn: a PNG's text chunks, or what EXIF has in their place.

    Empty where it says nothing.
    """
    if image.format == "PNG":
        return {key: value for key, value in image.text.items() if isinstance(value, str)}
    told = image.getexif().get(DESCRIPTION)
    try:
        found = safe_json.parse(told) if isinstance(told, str) else None
    except ValueError:
        return {}
    texts = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in texts if isinstance(value, str)}


def texts(trace: "Trace", row: int | None = None, *, alone: bool = False) -> dict[str, str]:
    """What a PNG's text chunks say of how image `row` of a trace was drawn, or the grid of all.

    `batch` is who it was drawn beside, without which its last bits do not come again; it is left out if `alone`.
    """
    seeds, drawn, size = trace.seeds, dict(trace.drawn), trace.drawn.get("batch_size", 1)
    law = {"model": trace.model, "method": trace.method, "settings": dumps(trace.settings)}
    kind = next((kind for kind in ("class", "prompt") if kind in drawn), "")
    subjects, against = drawn.pop(kind, [None] * len(seeds)), drawn.pop("negative_prompt", None)
    texts = {key: value if isinstance(value, str) else dumps(value) for key, value in drawn.items()}
    told = {key: text for key, text in texts.items() if key != "batch_size"}
    first = 0 if row is None else row // size * size
    some = slice(first, len(seeds) if row is None else min(first + size, len(seeds)))
    if against is not None:
        told |= _against(against, slice(row, row + 1) if alone and row is not None else some)
    if len(seeds[some]) > 1 and kind and not alone:
        place = {"size": size} if row is None else {"index": row - first}
        told["batch"] = dumps({**place, "seeds": seeds[some], kind: subjects[some]})
    mine = [(seed, subject) for i, (seed, subject) in enumerate(zip(seeds, subjects, strict=True)) if row in (None, i)]
    told = {kind: str(mine[0][1]), **told} if kind and len(mine) == 1 else told
    return {"seed": ",".join(str(seed) for seed, _ in mine), **law, **told}


def _against(texts: str | list[str], some: slice) -> dict[str, str]:
    """The negative prompt of `some` images; where theirs differ, each as JSON, which nobody takes for a text."""
    found = list(dict.fromkeys([texts] if isinstance(texts, str) else texts[some]))
    if found == [""]:
        return {}
    return {"negative_prompt": found[0] if len(found) == 1 and not found[0].startswith("[") else dumps(found)}


def check(data: bytes) -> None:
    """ValueError says what a PNG lacks: chunks, checksums, pixels. Pillow lets some of that pass."""
    header, parts = b"", []
    for kind, body in _chunks(data):
        if kind == b"IHDR" and not header:
            header = bytes(body)
        elif kind == b"IDAT":
            parts.append(body)
    if len(header) != 13 or header[9] not in _CHANNELS:
        raise ValueError("is damaged: it has no header")
    wide, high = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    check_pixels(wide, high)
    wanted = _pixel_bytes(wide, high, header[8] * _CHANNELS[header[9]], interlaced=header[12] != 0)
    try:
        there = _inflated(parts, wanted)
    except zlib.error:
        raise ValueError("is damaged: its pixels cannot be inflated") from None
    if there < wanted:
        raise ValueError("is damaged: it has fewer pixels than its header says")


def check_pixels(wide: int, high: int, most: int = MOST_PIXELS) -> None:
    """ValueError where a picture has more pixels than are decoded, in all or on a side."""
    if wide * high > most:
        raise ValueError(f"has {wide}x{high} pixels, expected at most {most:,} in all")
    if max(wide, high) > MOST_SIDE:
        raise ValueError(f"has {wide}x{high} pixels, expected at most {MOST_SIDE:,} on a side")


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of every chunk up to the last. ValueError where one is missing, or its checksum is wrong."""
    view, at, kind, count = memoryview(data), len(START), b"", 0
    while kind != b"IEND":
        if (count := count + 1) > MOST_CHUNKS:
            raise ValueError(f"has more than {MOST_CHUNKS:,} chunks")
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        if end + 4 > len(view):
            raise ValueError("is damaged: it ends early")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError("is damaged: a checksum is wrong")
        kind = bytes(view[at + 4 : at + 8])
        yield kind, view[at + 8 : end]
        at = end + 4


def _pixel_bytes(wide: int, high: int, bits: int, *, interlaced: bool) -> int:
    """Bytes of all rows, each with its filter in front."""
    total = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = (wide - left + across - 1) // across, (high - top + down - 1) // down
        total += rows * ((columns * bits + 7) // 8 + 1) if columns > 0 else 0
    return total


def _inflated(parts: list[memoryview], most: int) -> int:
    """How many bytes come out of a zlib stream, counted up to `most` and not kept."""
    stream, count = zlib.decompressobj(), 0
    for part in parts:
        waiting = bytes(part)
        while waiting and count < most and not stream.eof:
            count += len(stream.decompress(waiting, 1 << 20))
            waiting = stream.unconsumed_tail
    return count + len(stream.flush()) if count < most else count  # what was read, and waited for more room
