"""Sets of pictures on disk: a folder of files, or an npz in the ADM format (OpenAI's guided-diffusion).

Everything is read in a stream, a batch at a time, and what is wrong with a file is said by its name.
"""

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vargen.core import archives
from vargen.core.atomic import write_atomically
from vargen.core.image_processor import open_picture, read_picture
from vargen.core.messages import first_line
from vargen.core.png import check_pixels

Pixels = NDArray[np.uint8]
DAMAGE = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error, MemoryError)
MOST_AT_ONCE = 1 << 30  # bytes of pixels
ARRAYS = ("arr_0", "mu", "sigma", "mu_s", "sigma_s")  # that an npz is read for; what else it holds is left alone
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Images:
    """`count` pictures of one size (height, width); `read(start, stop)` gives rows (n, H, W, 3) uint8, in order."""

    name: str
    count: int
    size: tuple[int, int]
    read: Callable[[int, int], Pixels]

    def batches(self, size: int = 64) -> Iterator[Pixels]:
        """All of them, `size` at a time; fewer where those would be more than a GiB."""
        size = max(1, min(size, MOST_AT_ONCE // (self.size[0] * self.size[1] * 3)))
        for start in range(0, self.count, size):
            yield self.read(start, min(start + size, self.count))


def open_images(path: Path) -> Images:
    """A folder of pictures (by name, in order, folders within it included), or the `arr_0` of an npz."""
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".npz":
        return _npz(path)
    raise ValueError(f"got images {path}, expected a folder or an .npz file")


def files_in(folder: Path) -> list[Path]:
    """The pictures in a folder and its folders, by name; hidden ones are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _folder(folder: Path) -> Images:
    paths = files_in(folder)
    if not paths:
        raise ValueError(f"there are no images in {folder}")
    size = read_image(paths[0]).shape[:2]

    def read(start: int, stop: int) -> Pixels:
        return np.stack([read_image(path, size) for path in paths[start:stop]])

    return Images(str(folder), len(paths), size, read)


def read_image(path: Path, size: tuple[int, ...] | None = None) -> Pixels:
    """One picture, (H, W, 3) uint8. ValueError, by its name, where it is unfit or not of `size` (height, width)."""
    pixels = np.array(read_picture(path))
    if size is not None and pixels.shape[:2] != tuple(size):
        height, width = pixels.shape[:2]
        raise ValueError(f"the image {path} is {width}x{height}, expected {size[1]}x{size[0]} as the others")
    return pixels


def is_whole_png(path: Path, size: int) -> bool:
    """Whether there is a PNG such as a run writes, RGB and of `size` pixels a side, and it can be decoded."""
    try:
        image = open_picture(path)
    except ValueError:
        return False
    return (image.format, image.mode, image.size) == ("PNG", "RGB", (size, size))


def _npz(path: Path) -> Images:
    shape, dtype = npz_shapes(path).get("arr_0", (None, None))
    if shape is None:
        raise ValueError(f"the file {path} has no images: there is no arr_0 in it")
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or min(shape) < 1:
        raise ValueError(f"arr_0 of {path} is {shape} {dtype}, expected (N, H, W, 3) uint8")
    try:
        check_pixels(shape[2], shape[1])
    except ValueError as error:
        raise ValueError(f"an image in {path} {error}") from None
    row = math.prod(shape[1:])
    member, at = _member(path, "arr_0", shape[0] * row), 0  # open, and the row it stands at: a zip is read forward

    def read(start: int, stop: int) -> Pixels:
        nonlocal member, at
        try:
            if start < at:
                member, at = _member(path, "arr_0", shape[0] * row), 0
            left = (start - at) * row
            while left and (passed := len(member.read(min(left, 1 << 24)))):
                left -= passed
            data = member.read((stop - start) * row)
        except DAMAGE as error:
            raise ValueError(f"the file {path} is damaged: {first_line(error)}") from None
        at = stop
        if len(data) != (stop - start) * row:
            raise ValueError(f"the file {path} is damaged: arr_0 ends before its {shape[0]} images")
        return np.frombuffer(data, np.uint8).reshape(stop - start, *shape[1:])

    return Images(str(path), shape[0], shape[1:3], read)


def npz_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of the `ARRAYS` in an npz, read from their headers alone. ValueError where one is damaged."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with archives.opened(path) as archive:
            held = [name for name in ARRAYS if f"{name}.npy" in archive.NameToInfo]
            return {name: _header(archive.open(f"{name}.npy"))[:2] for name in held}
    except DAMAGE as error:
        raise ValueError(f"the file {path} is damaged: {first_line(error)}") from None


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape, type, and whether the array is stored by columns."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"an array is in version {version} of the format")
    try:
        shape, fortran, dtype = readers[version](stream)
    except Exception:  # numpy hands a header to Python's tokenizer and parser, which raise what they like
        raise ValueError("the header of an array cannot be read") from None
    return shape, dtype, fortran


def _member(path: Path, name: str, size: int) -> Any:
    """An array's bytes, its header read. ValueError where they are not in order of rows, or fewer than `size`."""
    try:
        archive = archives.opened(path)
        stream = archive.open(f"{name}.npy")
        shape, _, fortran = _header(stream)
        there = archive.getinfo(f"{name}.npy").file_size - stream.tell()
    except DAMAGE as error:
        raise ValueError(f"the file {path} is damaged: {first_line(error)}") from None
    if fortran:
        raise ValueError(f"{name} of {path} is stored by columns, expected by rows")
    if there < size:
        raise ValueError(f"the file {path} is damaged: {name} ends before its {shape[0]} images")
    return stream


def pack(images: Images, path: Path, labels: list[int] | None = None) -> None:
    """Write an npz in the ADM format: `arr_0` (N, H, W, 3) uint8, and `arr_1` (N,) int64 where there are labels.

    With labels the classes take turns, so that no split of the file has more of one class than of another. ValueError
    where two images are the same, byte for byte. Written in a stream: no more than a batch is held.
    """
    order = list(range(images.count)) if labels is None else interleaved(labels)
    if len(order) != images.count:
        raise ValueError(f"got {len(order)} labels for {images.count} images")
    seen: dict[bytes, int] = {}

    def rows() -> Iterator[bytes]:
        for index in order:
            pixels = images.read(index, index + 1)
            first = seen.setdefault(hashlib.sha256(pixels.tobytes()).digest(), index)
            if first != index:
                raise ValueError(f"images {first} and {index} of {images.name} are the same")
            yield pixels.tobytes()

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                member.write(_npy_header((images.count, *images.size, 3), np.dtype(np.uint8)))
                for data in rows():
                    member.write(data)
            if labels is not None:
                with archive.open("arr_1.npy", "w") as member:
                    np.lib.format.write_array(member, np.array(labels, dtype=np.int64)[order])

    write_atomically(path, write)


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def interleaved(labels: list[int]) -> list[int]:
    """An order in which the classes take turns: all firsts of each class, then all seconds, and so on."""
    turns: dict[int, int] = {}
    keys = []
    for index, label in enumerate(labels):
        turns[label] = turns.get(label, 0) + 1
        keys.append((turns[label], label, index))
    return [index for _, _, index in sorted(keys)]
