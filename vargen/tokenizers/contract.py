"""What an image tokenizer must offer to be drawn with."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class ImageTokenizer(nn.Module, ABC):
    """Images (B, 3, H, W), nominally in [-1, 1], to what a transformer draws, and back."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights; diffusers asks every part of a pipeline for it."""
        return next(self.parameters()).dtype

    @property
    def truncates(self) -> bool:
        """Whether pixels are cut to bytes, and not rounded, as it was published."""
        return False

    @property
    @abstractmethod
    def factor(self) -> int:
        """Pixels per token along one side."""

    @property
    def stored_codes(self) -> Tensor | None:
        """The codes (V, D) as they are stored; None where it has none."""
        return None

    def codebook(self) -> Tensor | None:
        """The codes (V, D) as they are used; None where it has none."""
        return None

    @abstractmethod
    def decode(self, tokens: Any) -> Tensor:
        """Images (B, 3, H, W), not clamped, of what the transformer draws."""
