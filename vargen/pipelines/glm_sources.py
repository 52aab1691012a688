"""Pictures that GLM-Image reads beside a prompt: their codes for the first stage, their pixels for the painter.

diffusers 0.42 with transformers 5.24 fails to read them itself, since the features come one by one. So they are read
here, by transformers' encoder, and handed to the painter with their codes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vargen.core.image_processor import as_picture
from vargen.core.messages import first_line
from vargen.models.glm_image import ASPECT, FACTOR

SIDES = (512, 2048)  # pixels of a side, as transformers' image processor bounds them


@dataclass(frozen=True)
class Source:
    """A picture as the painter takes it, where one paints, and its codes (h, w)."""

    picture: Image.Image | None
    codes: Tensor


class Reader:
    """Codes of pictures, by transformers' GlmImageModel (of which the language model is not used) and its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @torch.inference_mode()
    def read(self, picture: Any) -> Source:
        """A PIL image, resized to sides that both stages take. ValueError where it is none, or longer than 4 to 1."""
        fitted = fit(as_picture(picture))
        try:
            found = self.processor(images=[fitted], return_tensors="pt")
            grids, device = found["image_grid_thw"], next(self.model.visual.parameters()).device
            features = self.model.get_image_features(found["pixel_values"].to(device), grids.to(device)).pooler_output
            codes = self.model.get_image_tokens(features)
        except (TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"this release of transformers reads pictures otherwise: {first_line(error)}") from None
        rows, columns = fitted.height // FACTOR, fitted.width // FACTOR
        if codes.numel() != rows * columns:
            raise ValueError(f"got {codes.numel()} codes of a picture of {rows} by {columns}: the processor is another")
        return Source(fitted, codes.reshape(rows, columns).cpu())


def fit(picture: Image.Image) -> Image.Image:
    """A picture with sides that are multiples of 32 within `SIDES`. ValueError where it is too long for that."""
    short, long = sorted(picture.size)
    if long > ASPECT * short:
        raise ValueError(f"got a picture of {picture.width}x{picture.height}, expected at most {ASPECT} to 1")
    scale = max(1.0, SIDES[0] / short)
    scale = min(scale, SIDES[1] / long)
    wide, high = (max(FACTOR, round(side * scale / FACTOR) * FACTOR) for side in picture.size)
    size = (min(max(wide, SIDES[0]), SIDES[1]), min(max(high, SIDES[0]), SIDES[1]))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def upsampled(codes: Tensor) -> Tensor:
    """Codes (h, w) as the painter has them, each four times: (4 h w,)."""
    return codes.repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()


def painted_with(sources: list[Source], device: torch.device) -> dict[str, Any]:
    """What diffusers' pipeline is told of the pictures of one prompt."""
    if not sources:
        return {}
    grids = torch.tensor([[1, 2 * each.codes.shape[0], 2 * each.codes.shape[1]] for each in sources], device=device)
    prior = torch.cat([upsampled(each.codes) for each in sources]).to(device)
    pictures = [each.picture for each in sources]
    return {"image": pictures, "prior_token_image_ids": [prior], "source_image_grid_thw": [grids]}
