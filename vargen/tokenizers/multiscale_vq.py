"""Multi-scale residual VQ image tokenizer: a picture to a pyramid of codebook ids, and back.

That of VAR (arXiv 2404.02905). An image is a map of features at the finest scale's side; each scale in turn stores the
nearest codes of what is still missing, shrunk to its side, and adds them back, enlarged and smoothed by a convolution.
The ids of all scales stand behind one another, coarsest first: S slots, S the sum of the squared sides.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vargen.core.layout import Layout
from vargen.tokenizers import taming
from vargen.tokenizers.contract import ImageTokenizer

OFFICIAL_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # at 256 pixels
SMOOTHINGS = 4  # convolutions, shared among the scales

# Which of them each of ten scales takes. Scales 2 and 7 lie half-way between two of them, where the published rule is
# decided by float noise: this is what the released weights were trained with.
TEN_SCALES = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


@dataclass(frozen=True)
class MultiScaleVQConfig:
    """Shapes of a multi-scale tokenizer; the defaults are VAR's at 256 pixels."""

    channels: tuple[int, ...] = (160, 160, 320, 320, 640)  # per level; one 2x step between neighbours
    layers: int = 2  # residual blocks per encoder level; the decoder has one more
    code_dim: int = 32
    codes: int = 4096
    sides: tuple[int, ...] = OFFICIAL_SIDES  # of the scales, in tokens
    norm_groups: int = 32

    @property
    def factor(self) -> int:
        """Pixels per token of the finest scale along one side."""
        return 2 ** (len(self.channels) - 1)

    @property
    def smoothing(self) -> tuple[int, ...]:
        """Which smoothing convolution each scale takes: that with the nearest centre, on a line from 0 to 1."""
        if len(self.sides) == len(TEN_SCALES):
            return TEN_SCALES
        centres = np.linspace(1 / 3 / SMOOTHINGS, 1 - 1 / 3 / SMOOTHINGS, SMOOTHINGS)
        places = np.arange(len(self.sides)) / max(1, len(self.sides) - 1)
        return tuple(int(np.abs(centres - place).argmin()) for place in places)


def layout(config: MultiScaleVQConfig) -> Layout:
    """How the official file names our keys (`VQVAE` in models/vqvae.py): it counts the decoder's levels backwards."""
    return Layout(
        rename=(
            *taming.original(len(config.channels)),
            (r"\.to_[qkv]\.", ".qkv."),
            (r"quantize\.smoothings", "quantize.quant_resi.qresi_ls"),
        ),
        pointwise=r"\.(qkv|proj_out)\.weight$",
        stacked=r"\.qkv\.(weight|bias)$",
        ignored=r"quantize\.ema_vocab_hit_SV",  # how often each code was used in training
    )


class ResidualQuantizer(nn.Module):
    """What each scale adds to the features (B, D, H, H), and the ids that say it."""

    def __init__(self, config: MultiScaleVQConfig) -> None:
        super().__init__()
        self.sides, self.which = config.sides, config.smoothing
        self.embedding = nn.Embedding(config.codes, config.code_dim)
        convolutions = (nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1) for _ in range(SMOOTHINGS))
        self.smoothings = nn.ModuleList(convolutions)

    def codebook(self) -> Tensor:
        """The codes, (V, D)."""
        return self.embedding.weight

    def nearest(self, z: Tensor) -> Tensor:
        """Ids (...) of the codes nearest to `z` (..., D), by Euclidean distance."""
        codes = self.embedding.weight
        points = z.flatten(0, -2)
        distance = points.square().sum(1, keepdim=True) + codes.square().sum(1)
        return distance.addmm(points, codes.T, alpha=-2).argmin(1).view(z.shape[:-1])

    def added(self, codes: Tensor, scale: int) -> Tensor:
        """What codes (B, n, D) of a scale add to the features, (B, D, H, H)."""
        side, whole = self.sides[scale], self.sides[-1]
        # rearrange would give one image other strides, convolutions another path, and features other last bits.
        h = codes.transpose(1, 2).unflatten(2, (side, side))
        if scale < len(self.sides) - 1:
            h = F.interpolate(h, size=(whole, whole), mode="bicubic")
        return h.lerp(self.smoothings[self.which[scale]](h), 0.5)

    def shrunk(self, features: Tensor, scale: int) -> Tensor:
        """Features (B, D, H, H) as a scale has them, (B, n, D): what the transformer takes, or quantisation stores."""
        if scale < len(self.sides) - 1:
            features = F.interpolate(features, size=(self.sides[scale],) * 2, mode="area")
        return rearrange(features, "b d h w -> b (h w) d")


class MultiScaleVQTokenizer(ImageTokenizer):
    """Images (B, 3, H, W) in [-1, 1] to ids (B, S) of all scales and back; H and W are `config.factor` finest sides."""

    def __init__(self, config: MultiScaleVQConfig) -> None:
        super().__init__()
        if not config.sides or list(config.sides) != sorted(set(config.sides)) or config.sides[0] < 1:
            raise ValueError(f"got sides {config.sides}, expected each scale larger than the one before")
        self.config = config
        dim = config.code_dim
        self.encoder, self.decoder = taming.autoencoder(
            config.channels, layers=config.layers, latent_channels=dim, norm_groups=config.norm_groups
        )
        self.quant_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.quantize = ResidualQuantizer(config)

    @property
    def factor(self) -> int:
        return self.config.factor

    @property
    def stored_codes(self) -> Tensor | None:
        return self.quantize.embedding.weight

    def codebook(self) -> Tensor:
        return self.quantize.codebook()

    @property
    def device(self) -> torch.device:
        return self.quant_conv.weight.device

    @property
    def sides(self) -> tuple[int, ...]:
        """Tokens along one side of each scale."""
        return self.config.sides

    @property
    def pixels(self) -> int:
        """Of an image along one side."""
        return self.config.sides[-1] * self.config.factor

    def latents(self, images: Tensor) -> Tensor:
        """Features (B, D, H, H) of `images` (B, 3, H f, H f) in [-1, 1], not quantised."""
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Tensor) -> Tensor:
        """Ids (B, S), int64, of `images` (B, 3, H, W) in [-1, 1]. ValueError where they are of another size."""
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"got images {tuple(images.shape)} {images.dtype}, expected (B, 3, H, W) in [-1, 1]")
        if images.shape[-2:] != (self.pixels, self.pixels):
            raise ValueError(f"got an image of {tuple(images.shape[-2:])} pixels, expected {self.pixels} a side")
        rest, out = self.latents(images), []
        for scale in range(len(self.config.sides)):
            out.append(self.quantize.nearest(self.quantize.shrunk(rest, scale)))
            rest = rest - self.quantize.added(F.embedding(out[-1], self.quantize.codebook()), scale)
        return torch.cat(out, dim=1)

    def pyramid(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D, H, H) of ids (B, S), and those of scales 1 on as a transformer takes them, (B, S - 1, D)."""
        building = self.begin(len(ids))
        for part in ids.split([side**2 for side in self.config.sides], dim=1):
            building.add(F.embedding(part, self.quantize.codebook()))
        return building.features, building.between(0, len(self.config.sides))

    def begin(self, batch: int) -> "Pyramid":
        """Features of `batch` images, of which nothing is drawn yet."""
        return Pyramid(self.quantize, batch)

    def decode(self, tokens: Tensor) -> Tensor:
        """Images (B, 3, H, W), nominally in [-1, 1] and not clamped, of ids (B, S)."""
        return self.decode_latents(self.pyramid(tokens)[0])

    def decode_latents(self, features: Tensor) -> Tensor:
        """Images (B, 3, H, W) of features (B, D, H, H), complete or of the first scales only."""
        return self.decoder(self.post_quant_conv(features))


class Pyramid:
    """Features (B, D, H, H) in the making, and what they look like to each scale to come, (B, n, D)."""

    def __init__(self, quantizer: ResidualQuantizer, batch: int) -> None:
        self._quantizer, dim, side = quantizer, quantizer.embedding.embedding_dim, quantizer.sides[-1]
        self.features = quantizer.embedding.weight.new_zeros(batch, dim, side, side)
        self.inputs: list[Tensor] = []  # of scales 1, 2, ... up to the one that is next

    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""
        self.features, self.inputs = self.features[rows], [part[rows] for part in self.inputs]

    def between(self, first: int, stop: int) -> Tensor:
        """What scales `first` to `stop` - 1 are given, (B, n, D); scale 0 is given nothing."""
        nothing = self.features.new_zeros(len(self.features), 0, self.features.shape[1])
        return torch.cat([nothing, *self.inputs[max(0, first - 1) : max(0, stop - 1)]], dim=1)

    def add(self, codes: Tensor) -> None:
        """The next scale's codes (B, n, D)."""
        scale = len(self.inputs)
        self.features = self.features + self._quantizer.added(codes, scale)
        if scale + 1 < len(self._quantizer.sides):
            self.inputs.append(self._quantizer.shrunk(self.features, scale + 1))
