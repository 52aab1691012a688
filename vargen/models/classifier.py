"""A small convolutional classifier of pocket scenes; its features and logits serve the evaluation."""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ClassifierConfig:
    channels: tuple[int, ...] = (32, 64, 96, 128)  # one 2x step each
    classes: int = 10
    norm_groups: int = 8


class Classifier(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to features (B, C) and logits (B, classes)."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = (3, *config.channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 5 if a == 3 else 3, stride=2, padding=2 if a == 3 else 1) for a, b in pairwise(widths)
        )
        self.mix = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1, groups=config.norm_groups) for c in config.channels)
        self.norms = nn.ModuleList(nn.GroupNorm(config.norm_groups, c) for c in config.channels)
        self.head = nn.Linear(config.channels[-1], config.classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w) of every level."""
        out = [images]
        for conv, norm, mix in zip(self.convs, self.norms, self.mix, strict=True):
            x = F.silu(norm(conv(out[-1])))
            out.append(x + F.silu(mix(x)))
        return out[1:]

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, C)."""
        return self.maps(images)[-1].mean((-1, -2))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.features(images))
