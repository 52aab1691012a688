"""CLIP score (arXiv 2104.08718) through torchmetrics and transformers: how well an image shows its prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vargen.core import pretrained
from vargen.core.messages import shown
from vargen.eval.images import Images


def load(source: str, device: torch.device) -> tuple[Any, Any]:
    """A CLIP model and its processor from a folder or repository. ValueError where they cannot be had."""
    from transformers import CLIPModel, CLIPProcessor

    place = str(Path(source).expanduser())
    processor = pretrained.load(CLIPProcessor, place, "CLIP")
    loaded, info = pretrained.load_model(CLIPModel, place, "CLIP")
    if wrong := [*info["missing_keys"], *info["mismatched_keys"]]:
        raise ValueError(f"the CLIP model {place} lacks weights, or has them in another shape: {shown(wrong[0])}")
    return Embedder(loaded).to(device).eval().requires_grad_(False), processor


class Embedder(nn.Module):
    """A CLIP model whose two methods give tensors (B, D), as torchmetrics wants them; transformers 5 wraps them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        out = self.model.get_image_features(pixel_values)
        return getattr(out, "pooler_output", out)  # a tensor before transformers 5

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out = self.model.get_text_features(input_ids, attention_mask)
        return getattr(out, "pooler_output", out)  # a tensor before transformers 5


def score(images: Images, prompts: Sequence[str], source: str, device: torch.device, *, batch: int = 32) -> float:
    """Mean over images of 100 max(cos(image, prompt), 0)."""
    try:
        from torchmetrics.multimodal.clip_score import CLIPScore
    except ImportError:
        raise ValueError("the CLIP score needs torchmetrics: pip install 'vargen[eval]'") from None
    if len(prompts) != images.count:
        raise ValueError(f"got {len(prompts)} prompts for {images.count} images, expected one each")
    model, processor = load(source, device)
    metric = CLIPScore(lambda: (model, processor)).to(device)
    for start in tqdm(range(0, images.count, batch), desc="CLIP score", disable=None, leave=False):
        stop = min(start + batch, images.count)
        pixels = torch.from_numpy(images.read(start, stop).copy()).permute(0, 3, 1, 2)
        metric.update(list(pixels.to(device)), list(prompts[start:stop]))
    return float(metric.compute())
