"""LlamaGen as published: every size, its files at a pinned revision, and its recipes with their sources.

Models are `llamagen-c2i-SIZE-PIXELS` and `llamagen-t2i-xl-PIXELS`; a shape that was never released needs a checkpoint.
Sizes are those of `GPT_models` in autoregressive/models/gpt.py of the official repository (commit ce98ec41).
"""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vargen.core import checkpoints, hub
from vargen.core.numbers import Numbers
from vargen.core.preset import Preset, Recipe, Sources
from vargen.models import llamagen, t5
from vargen.models.llamagen import LlamaGen, LlamaGenConfig
from vargen.presets import fitted
from vargen.tokenizers import vq
from vargen.tokenizers.vq import VQConfig, VQTokenizer

if TYPE_CHECKING:
    from vargen.pipelines.raster import RasterPipeline

HUB = {  # kind -> repository, revision
    "c2i": ("FoundationVision/LlamaGen", "81e41139272c038412e4fe8f1c52a51ebbf95b8b"),
    "t2i": ("peizesun/llamagen_t2i", "276f5c5a3d915b922899a03f1912605531574747"),
}
SIZES = {  # layers, heads, width
    "b": (12, 12, 768),
    "l": (24, 16, 1024),
    "xl": (36, 20, 1280),
    "xxl": (48, 24, 1536),
    "3b": (24, 32, 3200),
    "xxxl": (48, 40, 2560),  # this one and the next two were never released
    "1b": (22, 32, 2048),
    "7b": (32, 32, 4096),
}
PIXELS = (256, 384, 512)
FILES = {
    "llamagen-c2i-b-256": "c2i_B_256.pt",
    "llamagen-c2i-b-384": "c2i_B_384.pt",
    "llamagen-c2i-l-256": "c2i_L_256.pt",
    "llamagen-c2i-l-384": "c2i_L_384.pt",
    "llamagen-c2i-xl-384": "c2i_XL_384.pt",
    "llamagen-c2i-xxl-384": "c2i_XXL_384.pt",
    "llamagen-c2i-3b-384": "c2i_3B_384.pt",
    "llamagen-t2i-xl-256": "t2i_XL_stage1_256.pt",
    "llamagen-t2i-xl-512": "t2i_XL_stage2_512.pt",
    "llamagen-vq-16-c2i": "vq_ds16_c2i.pt",
    "llamagen-vq-8-c2i": "vq_ds8_c2i.pt",
    "llamagen-vq-16-t2i": "vq_ds16_t2i.pt",
}
TOKENIZERS = {  # `VQ_models` in tokenizer/tokenizer_image/vq_model.py
    "llamagen-vq-16-c2i": VQConfig(channels=(128, 128, 256, 256, 512)),
    "llamagen-vq-8-c2i": VQConfig(channels=(128, 256, 256, 512)),
    "llamagen-vq-16-t2i": VQConfig(channels=(128, 128, 256, 256, 512)),
}
# Guidance of the evaluation on 50,000 images: the model table of the README, which was measured at 384 pixels and
# resized to 256. For what was not released 1.5, the default of autoregressive/sample/sample_c2i_ddp.py.
FID_GUIDANCE = {"b": 2.0, "l": 2.0, "xl": 1.75, "xxl": 1.75, "3b": 1.65}
FID = {  # of 50,000 images at 256 pixels, the README's model table
    "llamagen-c2i-b-256": 5.46,
    "llamagen-c2i-b-384": 6.09,
    "llamagen-c2i-l-256": 3.80,
    "llamagen-c2i-l-384": 3.07,
    "llamagen-c2i-xl-384": 2.62,
    "llamagen-c2i-xxl-384": 2.34,
    "llamagen-c2i-3b-384": 2.18,
}
EXAMPLES = (207, 360, 387, 974, 88, 979, 417, 279)  # the classes of autoregressive/sample/sample_c2i.py
CAPTION_WIDTH = 2048  # of the states of flan-t5-xl


def config(size: str, pixels: int, *, text: bool = False) -> LlamaGenConfig:
    """The shapes of a size in `SIZES`, over the tokens of VQ-16."""
    layers, heads, width = SIZES[size]
    return LlamaGenConfig(layers, heads, width, pixels // 16, caption_width=CAPTION_WIDTH if text else 0)


def class_recipes(name: str) -> dict[str, Recipe]:
    """`demo` has the defaults of sample_c2i.py, `fid` those of sample_c2i_ddp.py with the README's guidance."""
    _, _, size, pixels = name.split("-")
    guidance = FID_GUIDANCE[size] if name in FILES else 1.5
    return {
        "demo": Recipe(guidance_scale=4.0, top_k=2000),
        "fid": Recipe(
            guidance_scale=guidance,
            image_size=None if pixels == "256" else 256,
            labels="random",  # as sample_c2i_ddp.py draws them
            published={"fid": FID[name]} if name in FID else {},
        ),
    }


TEXT_RECIPES = {"demo": Recipe(guidance_scale=7.5, top_k=1000)}  # defaults of autoregressive/sample/sample_t2i.py


@cache
def imagenet() -> tuple[str, ...]:
    """Names of ImageNet's thousand classes, in order."""
    return tuple((Path(__file__).parent / "imagenet.txt").read_text(encoding="utf-8").splitlines())


def find(name: str, given: Path | None) -> Path:
    """The weights file of a model or tokenizer: the one given, in the folder given, or downloaded."""
    if given is not None:
        if given.is_dir() and name not in FILES:
            raise ValueError(f"no weights of {name} were ever published: name a file, not the folder {given}")
        path = given / FILES[name] if given.is_dir() else given
        if not path.is_file():
            raise ValueError(f"no weights file {path}")
        return path
    if name not in FILES:
        raise ValueError(f"no weights of {name} were ever published: name a checkpoint")
    repository, revision = HUB["t2i" if "t2i" in name else "c2i"]
    return hub.fetch(repository, FILES[name], revision)


def tokenizer(name: str, checkpoint: Path | None, device: torch.device, numbers: Numbers | None = None) -> VQTokenizer:
    """An image tokenizer of `TOKENIZERS`, in float32 as published, with the numbers that its file has."""
    path = find(name, checkpoint)
    with torch.device("meta"):
        module = VQTokenizer(fitted.vq(TOKENIZERS[name], path, vq.LLAMAGEN, numbers or Numbers(), name))
    checkpoints.load_into(module, path, vq.LLAMAGEN, device=device)
    return module.eval().requires_grad_(False)


SHAPES = {
    **{f"llamagen-c2i-{size}-{pixels}": config(size, pixels) for size in SIZES for pixels in PIXELS},
    **{f"llamagen-t2i-xl-{pixels}": config("xl", pixels, text=True) for pixels in (256, 512)},
}


def shapes(name: str, path: Path | None, sources: Sources) -> LlamaGenConfig:
    """The shapes of a preset with the numbers of a file: its grid hangs on how many pixels a token has."""
    numbers = replace(sources.numbers, downsample_size=None)
    config = fitted.llamagen(SHAPES[name], path, llamagen.LAYOUT, numbers, name, SHAPES)
    images, given = _images(name, sources)
    if given is not None:
        factor = fitted.vq(TOKENIZERS[images], given, vq.LLAMAGEN, numbers, images).factor
        said = sources.numbers.downsample_size
        if said not in (None, factor):
            raise ValueError(f"got downsample size {said}, and a token of {given} has {factor} pixels a side")
    else:
        factor = TOKENIZERS[images].factor
    usual = TOKENIZERS["llamagen-vq-16-t2i" if config.caption_width else "llamagen-vq-16-c2i"].factor
    return replace(config, side=SHAPES[name].side * usual // factor)


def _images(name: str, sources: Sources) -> tuple[str, Path | None]:
    """A preset's image tokenizer, and the file or folder in which it is named."""
    kind, said = "t2i" if SHAPES[name].caption_width else "c2i", sources.numbers.downsample_size or 16
    found, given = f"llamagen-vq-{said}-{kind}", sources.checkpoint
    if found not in TOKENIZERS:
        sizes = [str(config.factor) for other, config in TOKENIZERS.items() if other.endswith(kind)]
        raise ValueError(f"got downsample size {said} for {name}, expected {' or '.join(sizes)}")
    place = sources.tokenizer_checkpoint or (given if given and given.is_dir() else None)
    return found, None if place is None else find(found, place)


def adapted(name: str, sources: Sources) -> Preset:
    """A preset with the numbers of the files that are named."""
    given = sources.checkpoint
    config = shapes(name, None if given is None else find(name, given), sources)
    return fitted.preset(PRESETS[name], SHAPES[name], config, LlamaGen)


def build(name: str, sources: Sources, device: torch.device, dtype: torch.dtype) -> "RasterPipeline":
    """The pipeline of a preset, from the official files or from `sources`."""
    from vargen.pipelines.raster import RasterPipeline

    weights = find(name, sources.checkpoint)  # all files are found, and the small ones loaded, before the large one
    config = shapes(name, weights, sources)
    images = tokenizer(*_images(name, sources), device, sources.numbers)
    fitted.check_pair(name, config.vocabulary, images.config.codes)
    reads = config.caption_width > 0 and not sources.drafts
    parts = t5.load(sources.text_encoder, config.caption_width, device, dtype) if reads else ()
    with torch.device("meta"):
        transformer = LlamaGen(config)
    checkpoints.load_into(transformer, weights, llamagen.LAYOUT, dtype=dtype, device=device)
    transformer.eval().requires_grad_(False)
    return RasterPipeline(
        transformer, images, *parts, preset=fitted.preset(PRESETS[name], SHAPES[name], config, LlamaGen)
    )


def _preset(name: str) -> Preset:
    _, kind, size, pixels = name.split("-")
    text, make = kind == "t2i", partial(build, name)
    what = f"from text at {pixels} pixels" if text else f"on ImageNet's classes at {pixels} pixels"
    released = "" if name in FILES else "; never released, takes a checkpoint"
    summary = f"LlamaGen {size.upper()} {what}{released}."
    spec, how = SHAPES[name].spec, {"skeleton": partial(LlamaGen, SHAPES[name]), "reads": partial(adapted, name)}
    how |= {"layout": llamagen.LAYOUT, "repository": HUB[kind][0] if name in FILES else "", "file": FILES.get(name, "")}
    how["released"] = name in FILES
    if text:
        return Preset(name, summary, TEXT_RECIPES, 0, make, spec=spec, **how)
    return Preset(name, summary, class_recipes(name), SHAPES[name].classes, make, imagenet, EXAMPLES, spec, **how)


PRESETS = {name: _preset(name) for name in SHAPES}
