"""VQ image tokenizer: a picture to a grid of codebook ids, and back.

A convolutional encoder and decoder (after taming-transformers, here diffusers' blocks) around a quantiser. The
configuration alone tells LlamaGen's VQ-8 and VQ-16 (arXiv 2406.06525), whose low-dimensional codes live on the unit
sphere, Chameleon's VQGAN (2405.09818), MoVQGAN (2209.09002), and `pocket-vq` from each other.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vargen.core.layout import Layout
from vargen.tokenizers import taming
from vargen.tokenizers.contract import ImageTokenizer

# The official files of VQ-8 and VQ-16 (`VQModel` in tokenizer/tokenizer_image/vq_model.py): our key to theirs.
LLAMAGEN = Layout(
    rename=(
        (r"mid_block\.resnets\.0", "mid.0"),
        (r"mid_block\.attentions\.0", "mid.1"),
        (r"mid_block\.resnets\.1", "mid.2"),
        (r"(down|up)_blocks", "conv_blocks"),
        (r"\.resnets\.", ".res."),
        (r"\.attentions\.", ".attn."),
        (r"\.to_([qkv])\.", r".\1."),
        *taming.BLOCKS,
    ),
    pointwise=r"\.(q|k|v|proj_out)\.weight$",
    ignored=r"quantize\.codebook_used",
)


def taming_layout(config: "VQConfig") -> Layout:
    """The files that have the names of taming-transformers: Chameleon's VQGAN, and MoVQGAN."""
    return Layout(
        rename=(
            *taming.original(len(config.channels)),
            (r"\.to_([qkv])\.", r".\1."),
            (r"\.spatial_norm\.", ".norm."),
        ),
        pointwise=r"\.(q|k|v|proj_out)\.weight$",
        ignored=r"(loss|ema_).*",  # of its training
    )


@dataclass(frozen=True)
class VQConfig:
    """Shapes of a VQ tokenizer; the defaults are LlamaGen's VQ-16."""

    channels: tuple[int, ...] = (128, 128, 256, 256, 512)  # per level; one 2x step between neighbours
    layers: int = 2  # residual blocks per encoder level; the decoder has one more
    latent_channels: int = 256
    codes: int = 16384
    code_dim: int = 8
    norm_groups: int = 32
    sphere: bool = True  # whether codes are normalised whenever they are used
    attends: bool = True  # whether the coarsest level does, beside the middle
    spatial: bool = False  # whether the decoder's norms take the codes as well
    truncates: bool = False  # whether pixels are cut to bytes, not rounded, as published

    @property
    def factor(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.channels) - 1)


class Quantizer(nn.Module):
    """The nearest code, on the unit sphere if the stored codebook is normalised whenever it is used."""

    def __init__(self, codes: int, dim: int, *, sphere: bool = True) -> None:
        super().__init__()
        self.embedding, self.sphere = nn.Embedding(codes, dim), sphere

    def codebook(self) -> Tensor:
        """The codes (V, D) as they are used."""
        return self.placed(self.embedding.weight)

    def placed(self, z: Tensor, dim: int = -1) -> Tensor:
        """`z` on the sphere, where the codes are."""
        return F.normalize(z, dim=dim) if self.sphere else z

    def nearest(self, z: Tensor) -> Tensor:
        """Ids (...) of the codes nearest to `z` (..., D); on the sphere the nearest code has the largest product."""
        codes = self.codebook()
        product = self.placed(z) @ codes.T
        return (product if self.sphere else 2 * product - codes.square().sum(-1)).argmax(-1)


class VQTokenizer(ImageTokenizer):
    """Images (B, 3, H, W) in [-1, 1] to ids (B, H / f, W / f) and back, f = `config.factor`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = taming.autoencoder(
            config.channels,
            layers=config.layers,
            latent_channels=config.latent_channels,
            norm_groups=config.norm_groups,
            attends=config.attends,
            spatial=config.spatial,
        )
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.latent_channels, 1)
        self.quantize = Quantizer(config.codes, config.code_dim, sphere=config.sphere)

    @property
    def factor(self) -> int:
        return self.config.factor

    @property
    def truncates(self) -> bool:
        return self.config.truncates

    @property
    def stored_codes(self) -> Tensor | None:
        return self.quantize.embedding.weight

    def codebook(self) -> Tensor:
        return self.quantize.codebook()

    @property
    def device(self) -> torch.device:
        return self.quant_conv.weight.device

    def latents(self, images: Tensor) -> Tensor:
        """Points that were not quantised, (B, D, h, w), of `images` (B, 3, H, W) in [-1, 1]."""
        return self.quantize.placed(self.quant_conv(self.encoder(images)), dim=1)

    def encode(self, images: Tensor) -> Tensor:
        """Ids (B, h, w), int64, of `images` (B, 3, H, W) in [-1, 1]. ValueError where H or W is no multiple of f."""
        f = self.config.factor
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"got images {tuple(images.shape)} {images.dtype}, expected (B, 3, H, W) in [-1, 1]")
        if images.shape[-2] % f or images.shape[-1] % f:
            raise ValueError(f"got an image of {tuple(images.shape[-2:])} pixels, expected multiples of {f}")
        return self.quantize.nearest(rearrange(self.latents(images), "b d h w -> b h w d"))

    def decode(self, tokens: Tensor) -> Tensor:
        """Images (B, 3, H, W), nominally in [-1, 1] and not clamped, of ids (B, h, w)."""
        codes = F.embedding(tokens, self.quantize.codebook())
        return self.decode_latents(rearrange(codes, "b h w d -> b d h w"))

    def decode_latents(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) of codes `z` (B, D, h, w)."""
        return self.decoder(self.post_quant_conv(z), z if self.config.spatial else None)
