"""Small real models with random weights, for tests of the machinery."""

import torch

from vargen.models.llamagen import LlamaGen, LlamaGenConfig
from vargen.pipeline import RasterPipeline
from vargen.presets.contract import Preset, Recipe
from vargen.tokenizers.vq import VQConfig, VQTokenizer

CONFIG = LlamaGenConfig(layers=2, heads=2, width=32, side=6, vocabulary=48, classes=5)


def llamagen(config: LlamaGenConfig = CONFIG, *, scale: float = 1.5) -> LlamaGen:
    """A transformer whose laws are neither flat nor certain."""
    generator = torch.Generator().manual_seed(0)
    model = LlamaGen(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=scale / parameter.shape[-1] ** 0.5, generator=generator)
    return model.eval().requires_grad_(False)


def vq() -> VQTokenizer:
    torch.manual_seed(0)
    config = VQConfig(channels=(8, 8), layers=1, latent_channels=8, codes=CONFIG.vocabulary, code_dim=4, norm_groups=4)
    return VQTokenizer(config).eval().requires_grad_(False)


def pipeline() -> RasterPipeline:
    """12x12 pixels, 6x6 tokens."""
    pipe = RasterPipeline(llamagen(), vq(), preset=PRESETS["small"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


PRESETS = {
    "small": Preset(
        "small",
        "A small random model, for tests.",
        {"default": Recipe(guidance_scale=2.0), "plain": Recipe(image_size=20)},
        CONFIG.classes,
        lambda sources, device, dtype: pipeline(),
        lambda: ("a", "b", "c", "d", "e"),
        (0, 1, 2, 3, 4),
    )
}
