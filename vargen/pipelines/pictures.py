"""From tokens to pictures: what every pipeline decodes with, and how its images are given out."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from vargen.core.machine import ordinary
from vargen.core.preset import Preset
from vargen.core.weight_files import is_dense
from vargen.pipelines import request


class Pictures:
    """The part of a pipeline that knows its image tokenizer."""

    sketches: ClassVar[bool] = True  # whether pictures of images on their way cost little, and are shown
    reads_ahead: ClassVar[bool] = True  # whether `read_prompts` knows all that is drawn of a prompt
    preset: Preset
    transformer: Any
    tokenizer: Any

    @property
    def decodes(self) -> bool:
        """Whether there is what makes pictures of tokens."""
        return self.tokenizer is not None

    @property
    def image_tokenizer(self) -> Any:
        """`tokenizer`, where it is wanted. ValueError where there is none."""
        if not self.decodes:
            raise ValueError(f"{self.preset.name} has no image tokenizer here, which makes pictures of its tokens")
        return self.tokenizer

    @torch.inference_mode()
    def decode(self, tokens: Tensor, output_type: str = "pil", image_size: int | None = None) -> Any:
        """Images of tokens as a call gives them with output type latent, resized to `image_size` pixels a side if it
        is given; `output_type` is pil, np or pt. ValueError in one sentence for anything out of range.
        """
        if not isinstance(tokens, Tensor):
            raise ValueError(f"got tokens as a {type(tokens).__name__}, expected a tensor")
        if not is_dense(tokens):
            raise ValueError("got tokens that are no plain dense tensor")
        if not len(tokens.shape) or not len(tokens):
            raise ValueError(f"got tokens {tuple(tokens.shape)}, expected at least one image's")
        return self.finish(self._pixels(tokens.to(self.transformer.device)), output_type, image_size)

    def shown(self, partial: Any, output_type: str) -> Any:
        """The pictures of a batch in the making."""
        if partial.features is None:
            return self.decode(partial.tokens, output_type, partial.image_size)
        return self.finish(self.image_tokenizer.decode_latents(partial.features), output_type, partial.image_size)

    def _pixels(self, tokens: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of ids as the image tokenizer takes them. ValueError where they are none."""
        codes = len(self.image_tokenizer.stored_codes)
        if tokens.dtype != torch.int64 or int(tokens.min()) < 0 or int(tokens.max()) >= codes:
            raise ValueError(f"got tokens that are no ids, expected whole numbers from 0 to {codes - 1}")
        return self.tokenizer.decode(tokens)

    def finish(self, images: Tensor, output_type: str, image_size: int | None = None) -> Any:
        """Images (B, 3, H, W) in [-1, 1] as they are given out."""
        return self._given(images, output_type, image_size, normalised=True)

    def _given(self, images: Tensor, output_type: str, image_size: int | None, *, normalised: bool) -> Any:
        """The same, also of images in [0, 1], which are not `normalised`."""
        request.output_type(output_type, request.PICTURES)
        image_size, images = request.image_size(image_size), images.float()
        if not images.isfinite().all():
            raise ValueError("the image tokenizer gave pixels that are NaN or infinite: its weights are damaged")
        if image_size is not None and images.shape[-2:] != (image_size, image_size):
            images = F.interpolate(images, size=(image_size, image_size), mode="bicubic")  # before rounding: published
        images = images if normalised else images.clamp(0, 1)
        return ordinary(VaeImageProcessor().postprocess(images, output_type, [normalised] * len(images)))


def joined(images: list[Any], output_type: str) -> Any:
    """The images of several batches."""
    if output_type == "pil":
        return [image for part in images for image in part]
    tensors = [torch.as_tensor(part) for part in images]
    return torch.cat(tensors).numpy() if output_type == "np" else torch.cat(tensors)
