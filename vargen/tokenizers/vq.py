"""VQ image tokenizer: a picture to a grid of codebook ids, and back.

The architecture is LlamaGen's VQ-8 and VQ-16 (arXiv 2406.06525, after taming-transformers): a convolutional encoder
and decoder, here diffusers' blocks, around a quantiser whose low-dimensional codes live on the unit sphere. The
configuration alone tells the published tokenizers from `pocket-vq`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.checkpoints import Layout
from vargen.tokenizers import taming

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


@dataclass(frozen=True)
class VQConfig:
    """Shapes of a VQ tokenizer; the defaults are LlamaGen's VQ-16."""

    channels: tuple[int, ...] = (128, 128, 256, 256, 512)  # per level; one 2x step between neighbours
    layers: int = 2  # residual blocks per encoder level; the decoder has one more
    latent_channels: int = 256
    codes: int = 16384
    code_dim: int = 8
    norm_groups: int = 32

    @property
    def factor(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.channels) - 1)


class Quantizer(nn.Module):
    """Nearest code on the unit sphere; the stored codebook is normalised whenever it is used."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)

    def codebook(self) -> Tensor:
        """The normalised codebook, (V, D)."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, z: Tensor) -> Tensor:
        """Ids (...) of the codes nearest to `z` (..., D); on the sphere the nearest code has the largest product."""
        return (F.normalize(z, dim=-1) @ self.codebook().T).argmax(-1)


class VQTokenizer(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to ids (B, H / f, W / f) and back, f = `config.factor`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = taming.autoencoder(
            config.channels,
            layers=config.layers,
            latent_channels=config.latent_channels,
            norm_groups=config.norm_groups,
        )
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.latent_channels, 1)
        self.quantize = Quantizer(config.codes, config.code_dim)

    @property
    def device(self) -> torch.device:
        return self.quant_conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def latents(self, images: Tensor) -> Tensor:
        """Unquantised points on the sphere, (B, D, h, w), of `images` (B, 3, H, W) in [-1, 1]."""
        return F.normalize(self.quant_conv(self.encoder(images)), dim=1)

    def encode(self, images: Tensor) -> Tensor:
        """Ids (B, h, w), int64, of `images` (B, 3, H, W) in [-1, 1]. ValueError where H or W is no multiple of f."""
        f = self.config.factor
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"got images {tuple(images.shape)} {images.dtype}, expected (B, 3, H, W) in [-1, 1]")
        if images.shape[-2] % f or images.shape[-1] % f:
            raise ValueError(f"got an image of {tuple(images.shape[-2:])} pixels, expected multiples of {f}")
        return self.quantize.nearest(self.latents(images).permute(0, 2, 3, 1))

    def decode(self, ids: Tensor) -> Tensor:
        """Images (B, 3, H, W), nominally in [-1, 1] and not clamped, of `ids` (B, h, w)."""
        return self.decode_latents(F.embedding(ids, self.quantize.codebook()).permute(0, 3, 1, 2))

    def decode_latents(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) of codes `z` (B, D, h, w)."""
        return self.decoder(self.post_quant_conv(z))
