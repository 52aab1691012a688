"""Pictures on their way out: side by side in a grid, and as PNG files that say how they were drawn."""

import io
import json
from pathlib import Path
from typing import Any

from vargen.core.atomic import write_atomically
from vargen.core.types import Trace


def grid(images: list[Any], columns: int = 10) -> Any:
    """PIL images of one size side by side, at most `columns` in a row."""
    from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
    from torchvision.utils import make_grid

    sheet = make_grid([pil_to_tensor(image) for image in images], nrow=columns, padding=0, pad_value=255)
    return to_pil_image(sheet)


def encode_png(image: Any, texts: dict[str, str]) -> bytes:
    """A PIL image as a PNG with text chunks."""
    from PIL.PngImagePlugin import PngInfo

    info, out = PngInfo(), io.BytesIO()
    for key, value in texts.items():
        info.add_text(key, value)
    image.save(out, format="PNG", pnginfo=info)
    return out.getvalue()


def save_png(path: Path, image: Any, texts: dict[str, str]) -> None:
    """Write a PNG with text chunks, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_bytes(encode_png(image, texts)))


def texts(trace: "Trace", seeds: list[int]) -> dict[str, str]:
    """What a PNG's text chunks say of how it was drawn."""
    seed = ",".join(map(str, seeds))
    return {"seed": seed, "model": trace.model, "method": trace.method, "settings": json.dumps(trace.settings)}
