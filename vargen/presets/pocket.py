"""The transformers that ship, on pocket scenes at 64x64."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vargen.core.layout import PLAIN
from vargen.core.numbers import Numbers
from vargen.core.preset import Preset, Recipe, Sources
from vargen.models import pocket
from vargen.models.chameleon import Chameleon
from vargen.models.llama import LlamaGenConfig
from vargen.models.llamagen import LlamaGen
from vargen.models.lumina_mgpt import LuminaMGPT, spec_of
from vargen.models.mar import MAR, MARConfig
from vargen.models.var import VAR, VARConfig
from vargen.presets import fitted
from vargen.tokenizers.kl import KLTokenizer
from vargen.tokenizers.multiscale_vq import MultiScaleVQTokenizer
from vargen.tokenizers.vq import VQTokenizer

if TYPE_CHECKING:
    from vargen.pipelines.base import Pipeline

TOKENIZER = {
    "raster": "pocket-vq",
    "next-scale": "pocket-multiscale-vq",
    "continuous": "pocket-kl",
}  # by the kind of model

# The heads of continuous models were trained too briefly to undo the noise of the last timesteps, by which the first
# step of a path divides: it starts at 950, as DiSA's published code has it.
EARLIER = {"highest": 950}
READ: dict[Any, Any] = {  # shapes with the numbers of a file, by class
    LlamaGen: fitted.llamagen,
    VAR: fitted.var,
    MAR: fitted.mar,
    VQTokenizer: fitted.vq,
    MultiScaleVQTokenizer: fitted.multiscale_vq,
    KLTokenizer: fitted.kl,
}
# By the kind of model; next-scale models speckle unless the tail of a law is cut off.
RECIPES = {
    "raster": Recipe(2.0),
    "next-scale": Recipe(2.0, top_p=0.9),
    "continuous": Recipe(2.0, settings={"mar": EARLIER, "csd": EARLIER}),
}


def build(name: str, sources: Sources, device: torch.device, dtype: torch.dtype) -> "Pipeline":
    """The pipeline of a shipped model; the checkpoint may also be a folder with all of them."""
    from vargen.pipelines.continuous import ContinuousPipeline
    from vargen.pipelines.next_scale import NextScalePipeline
    from vargen.pipelines.prompted import PromptedPipeline
    from vargen.pipelines.raster import RasterPipeline

    given, config = sources.checkpoint, shapes(name, sources)
    folder, words = given if given and given.is_dir() else None, {}
    transformer = pocket.load(name, given, config=config, device=device, dtype=dtype)
    if isinstance(transformer, Chameleon):
        words = {"text_tokenizer": pocket.reader((folder or pocket.WEIGHTS) / pocket.WORDS_FILE)}
        transformer = pocket.lumina(transformer)
    assert isinstance(transformer, LlamaGen | VAR | MAR | LuminaMGPT)
    kind = transformer.spec.kind
    numbers = replace(sources.numbers, depth=None, classes=None, patch_nums=vars(config).get("sides"))
    images: Any = tokenizer(TOKENIZER[kind], sources.tokenizer_checkpoint or folder, device, numbers)
    if not words and kind != "continuous":
        fitted.check_pair(name, config.vocabulary, images.config.codes)
    made = {"raster": RasterPipeline, "next-scale": NextScalePipeline, "continuous": ContinuousPipeline}
    made = PromptedPipeline if words else made[kind]
    pipe = made(transformer, images, **words, preset=preset_of(name, config))
    pipe.nats_per_token = pocket.figures(name).get("nats_per_token") if sources.checkpoint is None else None
    return pipe


def tokenizer(name: str, checkpoint: Path | None, device: torch.device, numbers: Numbers | None = None) -> nn.Module:
    """The image tokenizer that ships, or one of the same kind with the numbers that its file has."""
    path = None if checkpoint is None else pocket.file_of(name, checkpoint)
    config = READ[pocket.MODELS[name][0]](pocket.MODELS[name][1], path, PLAIN, numbers or Numbers(), name)
    return pocket.load(name, checkpoint, config=config, device=device)


def shapes(name: str, sources: Sources) -> Any:
    """The shapes of a shipped model with the numbers of a file that is named."""
    made, usual = pocket.MODELS[name]
    if made not in READ:
        return usual
    path = None if sources.checkpoint is None else pocket.file_of(name, sources.checkpoint)
    known = {other: config for other, (kind, config) in pocket.MODELS.items() if kind is made}
    return READ[made](usual, path, PLAIN, sources.numbers, name, known)


def preset_of(name: str, config: Any) -> Preset:
    """A preset with the numbers of a file."""
    return fitted.preset(PRESETS[name], pocket.MODELS[name][1], config, pocket.MODELS[name][0])


def adapted(name: str, sources: Sources) -> Preset:
    """A preset with the numbers of the file that is named."""
    return preset_of(name, shapes(name, sources))


def _lumina() -> nn.Module:
    return pocket.lumina(Chameleon(pocket.LUMINA))


def _names() -> tuple[str, ...]:
    return tuple(pocket.CLASSES)


def _preset(
    name: str,
    summary: str,
    config: LlamaGenConfig | VARConfig | MARConfig,
    drafter: str | None,
    head: Path | None = None,
) -> Preset:
    return Preset(
        name,
        summary,
        {"default": RECIPES[config.spec.kind]},
        classes=len(pocket.CLASSES),
        build=partial(build, name),
        names=_names,
        examples=tuple(range(len(pocket.CLASSES))),
        spec=config.spec,
        drafter=drafter,
        skeleton=partial(pocket.build, name),
        reads=partial(adapted, name),
        head=head,
        scenes=True,
    )


PRESETS = {
    "pocket-llamagen": _preset(
        "pocket-llamagen",
        "LlamaGen at 3.9 M parameters on pocket scenes, 64x64.",
        pocket.LLAMAGEN,
        "eagle",
        pocket.WEIGHTS / "pocket-llamagen-eagle.safetensors",
    ),
    "pocket-llamagen-small": _preset(
        "pocket-llamagen-small",
        "LlamaGen at 0.9 M parameters on pocket scenes, 64x64: a drafter.",
        pocket.LLAMAGEN_SMALL,
        "pocket-llamagen-small",
    ),
    "pocket-var": _preset(
        "pocket-var",
        "VAR at 1.8 M parameters on pocket scenes, 64x64, ten scales.",
        pocket.VAR_LARGE,
        "pocket-var-small",
    ),
    "pocket-var-small": _preset(
        "pocket-var-small",
        "VAR at 0.4 M parameters on pocket scenes, 64x64, ten scales: a refiner.",
        pocket.VAR_SMALL,
        None,
    ),
    "pocket-mar": _preset(
        "pocket-mar",
        "MAR at 2.2 M parameters on pocket scenes, 64x64.",
        pocket.MAR_LARGE,
        "pocket-mar-small",
    ),
    "pocket-mar-small": _preset(
        "pocket-mar-small",
        "MAR at 0.5 M parameters on pocket scenes, 64x64: a drafter.",
        pocket.MAR_SMALL,
        None,
    ),
    "pocket-lumina": Preset(
        "pocket-lumina",
        "Lumina-mGPT at 3.7 M parameters from captions of pocket scenes, 64x64, 96x64 and 64x96.",
        {"default": Recipe(3.0)},
        classes=0,
        build=partial(build, "pocket-lumina"),
        spec=spec_of(pocket.LUMINA_SIZES[0], pocket.VQ.factor, pocket.VQ.codes),
        skeleton=_lumina,
        scenes=True,
    ),
}
