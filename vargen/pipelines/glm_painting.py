"""Pictures of GLM-Image's codes: diffusers' GlmImagePipeline without its first stage, one image at a time."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vargen.core import pretrained
from vargen.pipelines import values
from vargen.pipelines.glm_sources import Source, painted_with, upsampled

FIRST = ("vision_language_encoder", "processor")  # of diffusers' pipeline, in whose place our loop is
PAINTER = "painter"  # the folder of the rest in a saved pipeline


def read_painter(folder: Path, dtype: torch.dtype) -> Any:
    """diffusers' pipeline in a folder, without its first stage. Only safetensors are read, and no code is run.

    ValueError where it cannot be had.
    """
    try:
        from diffusers import GlmImagePipeline as Painter
    except ImportError:
        raise ValueError("this release of diffusers has no GlmImagePipeline: install 0.37 or a later one") from None
    how: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, **dict.fromkeys(FIRST)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)  # of all releases
        return pretrained.load(Painter, folder, "the diffusion transformer", torch_dtype=dtype, **how)


@dataclass(frozen=True)
class Painting:
    """How pictures are painted; the defaults are diffusers' own."""

    num_inference_steps: int = 50
    guidance_scale: float = 1.5

    def __post_init__(self) -> None:
        values.whole(self.num_inference_steps, "num_inference_steps", least=1, most=1000)
        if not 0 <= values.number(self.guidance_scale, "guidance scale") <= 1000:
            raise ValueError(f"got guidance scale {self.guidance_scale}, expected a number from 0 to 1000")


def paint(
    painter: Any, how: Painting, size: tuple[int, int], codes: Tensor, text: str, seed: int, sources: list[Source]
) -> Tensor:
    """One image (1, 3, H, W) in [0, 1] of `size`, from the codes (rows, columns) of its full grid.

    Of `text` the painter reads words in quotes; `seed` is of its noise; `sources` are the pictures of the prompt.
    """
    painter, place = copy.copy(painter), painter._execution_device
    painter.scheduler = copy.deepcopy(painter.scheduler)  # which counts steps: other threads have theirs
    out = painter(
        prompt=text,
        height=size[0],
        width=size[1],
        prior_token_ids=upsampled(codes)[None].to(place).clone(),
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **vars(how),
        **painted_with(sources, place),
    )
    return out.images
