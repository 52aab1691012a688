"""Small real models with random weights, for tests of the machinery."""

from dataclasses import replace

import torch

from vargen.core.preset import Preset, Recipe
from vargen.models.llamagen import LlamaGen, LlamaGenConfig
from vargen.models.mar import MAR, MARConfig
from vargen.models.var import VAR, VARConfig
from vargen.pipelines.continuous import ContinuousPipeline
from vargen.pipelines.next_scale import NextScalePipeline
from vargen.pipelines.raster import RasterPipeline
from vargen.tokenizers.kl import KLConfig, KLTokenizer
from vargen.tokenizers.multiscale_vq import MultiScaleVQConfig, MultiScaleVQTokenizer
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


SCALES = VARConfig(2, 2, 32, sides=(1, 2, 3, 4), vocabulary=24, code_dim=4, classes=5)


def randomised(model: torch.nn.Module, seed: int, scale: float) -> torch.nn.Module:
    """`model` with random weights, those of matrices of gain `scale`."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gain = scale / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.1
        torch.nn.init.normal_(parameter, std=gain, generator=generator)
    return model.eval().requires_grad_(False)


def var(config: VARConfig = SCALES, *, seed: int = 0) -> VAR:
    """A next-scale transformer whose laws are neither flat nor certain."""
    model = randomised(VAR(config), seed, 1.0)
    assert isinstance(model, VAR)
    return model


def multiscale_vq(config: VARConfig = SCALES) -> MultiScaleVQTokenizer:
    shapes = MultiScaleVQConfig((8, 8), 1, config.code_dim, config.vocabulary, config.sides, norm_groups=4)
    model = randomised(MultiScaleVQTokenizer(shapes), 7, 1.0)
    assert isinstance(model, MultiScaleVQTokenizer)
    return model


def scale_pipeline() -> NextScalePipeline:
    """8x8 pixels, four scales; it comes with a refiner of one layer."""
    pipe = NextScalePipeline(var(), multiscale_vq(), preset=SCALE_PRESET)
    pipe.drafter = pipe.drafters["small-refiner"] = var(replace(SCALES, layers=1), seed=1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SCALE_PRESET = Preset(
    "small-scales",
    "A small random next-scale model, for tests.",
    {"default": Recipe(guidance_scale=1.5)},
    SCALES.classes,
    lambda sources, device, dtype: scale_pipeline(),
    lambda: ("a", "b", "c", "d", "e"),
    (0, 1, 2, 3, 4),
    SCALES.spec,
)
LATENTS = MARConfig(2, 2, 32, head_depth=1, head_width=32, side=4, channels=3, classes=5, buffer=4)


def mar(config: MARConfig = LATENTS, *, seed: int = 0) -> MAR:
    """A continuous model whose head moves its tokens about, but not out of all bounds."""
    model = randomised(MAR(config), seed, 0.7)
    assert isinstance(model, MAR)
    return model


def kl(config: MARConfig = LATENTS) -> KLTokenizer:
    model = randomised(KLTokenizer(KLConfig((8, 8), 1, config.channels, norm_groups=4, scale=0.1)), 3, 1.0)
    assert isinstance(model, KLTokenizer)
    return model


def latent_pipeline() -> ContinuousPipeline:
    """8x8 pixels, 4x4 tokens; it comes with a drafter of one layer."""
    pipe = ContinuousPipeline(mar(), kl(), preset=LATENT_PRESET)
    pipe.drafter = pipe.drafters["small-drafter"] = mar(replace(LATENTS, layers=1), seed=1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _latent_preset() -> Preset:
    few = {"iterations": 6, "highest": 950}
    settings = {
        "mar": {**few, "steps": 8},
        "disa": {**few, "upper": 8, "lower": 3},
        "csd": {**few, "upper": 4, "lower": 4},
    }
    return Preset(
        "small-latents",
        "A small random continuous model, for tests.",
        {"default": Recipe(2.0, settings=settings), "plain": Recipe(1.0, settings=settings)},
        LATENTS.classes,
        lambda sources, device, dtype: latent_pipeline(),
        lambda: ("a", "b", "c", "d", "e"),
        (0, 1, 2, 3, 4),
        LATENTS.spec,
    )


LATENT_PRESET = _latent_preset()
PRESETS = {
    "small-latents": LATENT_PRESET,
    "small": Preset(
        "small",
        "A small random model, for tests.",
        {"default": Recipe(guidance_scale=2.0), "plain": Recipe(image_size=20)},
        CONFIG.classes,
        lambda sources, device, dtype: pipeline(),
        lambda: ("a", "b", "c", "d", "e"),
        (0, 1, 2, 3, 4),
    ),
    "small-scales": SCALE_PRESET,
}
