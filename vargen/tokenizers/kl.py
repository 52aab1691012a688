"""KL autoencoder: a picture to a map of continuous latents, and back.

That of latent diffusion (arXiv 2112.10752) at factor 16 with 16 channels, as MAR published it and MAR, FlowAR, xAR and
Harmon share it; diffusers' `AutoencoderKL` under a key map. Transformers see the latents scaled to about unit size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vargen.core.layout import Layout
from vargen.tokenizers import taming
from vargen.tokenizers.contract import ImageTokenizer


@dataclass(frozen=True)
class KLConfig:
    """Shapes of an autoencoder; the defaults are those of MAR's KL-16."""

    channels: tuple[int, ...] = (128, 128, 256, 256, 512)  # per level; one 2x step between neighbours
    layers: int = 2  # residual blocks per encoder level; the decoder has one more
    latent_channels: int = 16
    norm_groups: int = 32
    scale: float = 0.2325  # of the latents as transformers see them

    @property
    def factor(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.channels) - 1)


def layout(config: KLConfig) -> Layout:
    """How the official file names our keys (`AutoencoderKL` in models/vae.py): the decoder's levels backwards."""
    return Layout(
        rename=((r"^model\.", ""), *taming.original(len(config.channels)), (r"\.to_([qkv])\.", r".\1.")),
        pointwise=r"\.(q|k|v|proj_out)\.weight$",
        ignored=r"loss\..*",  # the discriminator of its training
    )


class KLTokenizer(ImageTokenizer):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, C, H / f, W / f) and back, f = `config.factor`."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # slow to import

        self.config, last = config, len(config.channels) - 1
        down = tuple("AttnDownEncoderBlock2D" if i == last else "DownEncoderBlock2D" for i in range(last + 1))
        shapes: dict[str, Any] = {  # its annotations say tuples of one
            "down_block_types": down,
            "up_block_types": ("UpDecoderBlock2D",) * (last + 1),
            "block_out_channels": config.channels,
            "layers_per_block": config.layers,
            "latent_channels": config.latent_channels,
            "norm_num_groups": config.norm_groups,
            "scaling_factor": config.scale,
        }
        self.model = AutoencoderKL(**shapes)

    @property
    def factor(self) -> int:
        return self.config.factor

    @property
    def channels(self) -> int:
        """Numbers in a latent."""
        return self.config.latent_channels

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, C, h, w) of the latents of images (B, 3, H, W) in [-1, 1], not scaled."""
        law: Any = self.model.encode(images, return_dict=False)[0]
        return law.mean, law.logvar

    def encode(self, images: Tensor) -> Tensor:
        """Mean latents (B, C, h, w), scaled, of `images` (B, 3, H, W) in [-1, 1].

        ValueError where H or W is no multiple of f.
        """
        f = self.config.factor
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"got images {tuple(images.shape)} {images.dtype}, expected (B, 3, H, W) in [-1, 1]")
        if images.shape[-2] % f or images.shape[-1] % f:
            raise ValueError(f"got an image of {tuple(images.shape[-2:])} pixels, expected multiples of {f}")
        return self.moments(images)[0] * self.config.scale

    def decode(self, tokens: Tensor) -> Tensor:
        """The same as `decode_latents`: what this tokenizer encodes to are latents."""
        return self.decode_latents(tokens)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), nominally in [-1, 1] and not clamped, of scaled latents (B, C, h, w)."""
        scaled: Any = latents / self.config.scale
        return self.model.decode(scaled, return_dict=False)[0]
