"""What a call gives: images, how they came about, their tokens. It shows itself in a notebook, indexes, and saves."""

import io
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vargen.core.atomic import as_path, check_writable
from vargen.core.png import FORMATS, grid, save_picture, texts
from vargen.core.trace import Trace


@dataclass(frozen=True, repr=False)
class Generation:
    """Images, how they came about, and their tokens: ids (B, rows, columns), or (B, slots) of all scales, or vectors
    (B, slots, channels). `out[i]` is an image, `len(out)` how many there are.
    """

    images: Any  # a list of PIL images, or a tensor or array, as `output_type` asks
    tokens: Any  # a tensor; a list of them where images differ in size
    trace: Trace

    def __len__(self) -> int:
        return len(self.images) if isinstance(self.images, Sized) else self.trace.images

    def __getitem__(self, index: Any) -> Any:
        """Image i, or a field by name as diffusers' outputs have it."""
        return vars(self)[index] if isinstance(index, str) else self.images[index]

    def to_tuple(self) -> tuple[Any, Any, Trace]:
        """The fields in order."""
        return self.images, self.tokens, self.trace

    def __repr__(self) -> str:
        trace = self.trace
        seconds = f", {trace.seconds['total']:.2f} s" if "total" in trace.seconds else ""
        spent = f"{trace.forwards_per_image:.1f} forwards an image{seconds}"
        return f"Generation({len(self)} images of {trace.model} by {trace.method}: {spent})"

    def _repr_png_(self) -> bytes | None:
        """The images side by side, for a notebook; None where they are no PIL images of one size."""
        sizes = {image.size if isinstance(image, Image.Image) else None for image in self.images}
        if len(sizes) != 1 or None in sizes:
            return None
        out = io.BytesIO()
        grid(self.images, large=True).save(out, format="PNG")
        return out.getvalue()

    def save(self, folder: str | Path) -> list[Path]:
        """Write each image as a PNG that says how it was drawn, MODEL-SEED.png; the paths.

        `folder` may also be the name of a file, such as beach.png, .jpg or .webp. Where a name is taken, by a file or
        by an image before, a number follows: MODEL-SEED_2.png. ValueError where they are no PIL images.
        """
        if not all(isinstance(image, Image.Image) for image in self.images):
            raise ValueError("got images that are no PIL images, expected output_type pil: only these are saved")
        place, paths = as_path(folder, "folder"), []
        named = bool(place.suffix) and place.suffix.lower() in FORMATS and not place.is_dir()
        check_writable([(place if named else place / "image").with_stem("image")])
        for row, (image, seed) in enumerate(zip(self.images, self.trace.seeds, strict=True)):
            paths.append(_free(place if named else place / f"{self.trace.model}-{seed}.png"))
            save_picture(paths[-1], image, texts(self.trace, row))
        return paths


def _free(path: Path) -> Path:
    """`path`, or with the first number behind its name that no file has."""
    tried, number = path, 2
    while tried.exists():
        tried, number = path.with_stem(f"{path.stem}_{number}"), number + 1
    return tried
