"""The models that ship: the real families at a small size, trained on pocket scenes by `scripts/train_pocket.py`."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vargen.core import checkpoints, weight_files
from vargen.models.chameleon import Chameleon, ChameleonConfig
from vargen.models.classifier import Classifier, ClassifierConfig
from vargen.models.llamagen import LlamaGen, LlamaGenConfig
from vargen.models.lumina_mgpt import LuminaMGPT, Vocabulary
from vargen.models.mar import MAR, MARConfig
from vargen.models.var import VAR, VARConfig
from vargen.scenes import CLASSES, COLOURS
from vargen.tokenizers.kl import KLConfig, KLTokenizer
from vargen.tokenizers.multiscale_vq import MultiScaleVQConfig, MultiScaleVQTokenizer
from vargen.tokenizers.vq import VQConfig, VQTokenizer

WEIGHTS = Path(__file__).parent.parent / "weights"

LLAMAGEN = LlamaGenConfig(layers=8, heads=6, width=192, side=16, vocabulary=1024, classes=len(CLASSES))
LLAMAGEN_SMALL = LlamaGenConfig(layers=3, heads=4, width=112, side=16, vocabulary=1024, classes=len(CLASSES))
VQ = VQConfig(channels=(24, 48, 80), layers=1, latent_channels=64, codes=1024, code_dim=8, norm_groups=8)
VAR_LARGE = VARConfig(6, 4, 144, vocabulary=512, code_dim=16, classes=len(CLASSES), shared=True)
VAR_SMALL = VARConfig(2, 3, 96, vocabulary=512, code_dim=16, classes=len(CLASSES), shared=True)
MULTISCALE_VQ = MultiScaleVQConfig((24, 48, 80), layers=1, code_dim=16, codes=512, norm_groups=8)
MAR_LARGE = MARConfig(4, 4, 128, head_depth=3, head_width=160, channels=8, classes=len(CLASSES), buffer=16)
MAR_SMALL = MARConfig(2, 4, 80, head_depth=2, head_width=96, channels=8, classes=len(CLASSES), buffer=16)
KL = KLConfig((24, 48, 80), layers=1, latent_channels=8, norm_groups=8, scale=1.0)
CLASSIFIER = ClassifierConfig(classes=len(CLASSES))
JUDGE = ClassifierConfig(classes=len(COLOURS))  # of a scene and the colour that its caption names
WORDS_FILE = "pocket-lumina-tokenizer.json"
WORDS = 448  # of the text that pocket-lumina reads; behind them its image's codes, then what else an image is made of
GRIDS = 3  # size tokens
LUMINA_VOCABULARY = Vocabulary(
    first=WORDS,
    codes=VQ.codes,
    begin=WORDS + VQ.codes,
    end=WORDS + VQ.codes + 1,
    newline=WORDS + VQ.codes + 2,
    separator=WORDS + VQ.codes + 3,
    grids=tuple(WORDS + VQ.codes + 4 + i for i in range(GRIDS)),
)
LUMINA = ChameleonConfig(
    layers=5, heads=4, kv_heads=4, width=224, hidden=608, vocabulary=max(LUMINA_VOCABULARY.grids) + 1, context=512
)
LUMINA_SIZES = ((64, 64), (64, 96), (96, 64))  # height and width in pixels


MODELS: dict[str, tuple[Any, Any]] = {  # class, and what it is made of
    "pocket-vq": (VQTokenizer, VQ),
    "pocket-multiscale-vq": (MultiScaleVQTokenizer, MULTISCALE_VQ),
    "pocket-kl": (KLTokenizer, KL),
    "pocket-classifier": (Classifier, CLASSIFIER),
    "pocket-llamagen": (LlamaGen, LLAMAGEN),
    "pocket-llamagen-small": (LlamaGen, LLAMAGEN_SMALL),
    "pocket-var": (VAR, VAR_LARGE),
    "pocket-var-small": (VAR, VAR_SMALL),
    "pocket-mar": (MAR, MAR_LARGE),
    "pocket-mar-small": (MAR, MAR_SMALL),
    "pocket-judge": (Classifier, JUDGE),
    "pocket-lumina": (Chameleon, LUMINA),
}
NAMES = tuple(MODELS)


def build(name: str, config: Any = None) -> nn.Module:
    """A shipped model with fresh weights, or one of other shapes. ValueError lists the names where there is none."""
    if name not in MODELS:
        raise ValueError(f"unknown pocket model {name!r}; there are {', '.join(NAMES)}")
    made, usual = MODELS[name]
    return made(config or usual)


def lumina(decoder: Chameleon, size: tuple[int, int] = LUMINA_SIZES[0]) -> LuminaMGPT:
    """The model around a decoder of `pocket-lumina`."""
    how = {"sizes": LUMINA_SIZES, "factor": VQ.factor, "template": "{prompt}"}
    return LuminaMGPT(decoder, LUMINA_VOCABULARY, size=size, **how)


def reader(path: Path = WEIGHTS / WORDS_FILE) -> Any:
    """The text tokenizer of `pocket-lumina`."""
    from transformers import PreTrainedTokenizerFast

    if not path.is_file():
        raise ValueError(f"no text tokenizer {path}")
    return PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def load(
    name: str,
    path: Path | None = None,
    *,
    config: Any = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A shipped model in evaluation mode; `path` is another weights file, or a folder with one, of shapes `config`."""
    with torch.device("meta"):
        module = build(name, config)
    checkpoints.load_into(module, file_of(name, path), dtype=dtype, device=device)
    return module.eval().requires_grad_(False)


def figures(name: str, path: Path | None = None) -> dict[str, float]:
    """What was measured of a shipped model on held-out scenes, as its weights file records it."""
    return {key: float(value) for key, value in weight_files.metadata(file_of(name, path)).items()}


def file_of(name: str, path: Path | None) -> Path:
    """Where a shipped model's weights are: in a file or folder that is named, or where they ship."""
    path = path or WEIGHTS
    return path / f"{name}.safetensors" if path.is_dir() else path
