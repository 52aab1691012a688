"""Lumina-mGPT 1 and 2, and Anole, as published: their repositories, sizes and recipes, with their sources.

Shapes and the vocabulary are read from a checkpoint's own config.json. Recipes are those of the official repositories
(Alpha-VLLM/Lumina-mGPT, commit 104abe45; Alpha-VLLM/Lumina-mGPT-2.0, commit f44a4d7f). The image tokenizer of the
first one and of Anole is Chameleon's, which Meta gives out under its own licence: its file has to be named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vargen.core import checkpoints, hub, model_config, weight_files
from vargen.core.messages import quoted, shown
from vargen.core.numbers import Numbers
from vargen.core.preset import Preset, Recipe, Sources
from vargen.core.specs import RasterSpec
from vargen.models import chameleon, t5
from vargen.models.chameleon import Chameleon, ChameleonConfig
from vargen.models.lumina_mgpt import Anole, LuminaMGPT, Vocabulary, crops, spec_of
from vargen.presets import fitted
from vargen.tokenizers import vq
from vargen.tokenizers.vq import VQConfig, VQTokenizer

if TYPE_CHECKING:
    from vargen.pipelines.raster import RasterPipeline

TOKENIZERS = {
    "chameleon-vqgan": VQConfig(codes=8192, code_dim=256, sphere=False, attends=False, truncates=True),
    "movqgan-270m": VQConfig(
        (256, 512, 512, 1024), latent_channels=4, codes=16384, code_dim=4, sphere=False, spatial=True
    ),
}
FILES = {"chameleon-vqgan": "vqgan.ckpt", "movqgan-270m": "movqgan_270M.ckpt"}
TEMPLATE = "Generate an image of {width}x{height} according to the following prompt:\n{prompt}"
MOST_YAML = 1 << 20  # bytes
REVISION = "main"  # none is known to us
WORDS = "Alpha-VLLM/Lumina-mGPT-7B-768"  # where the text tokenizer of every size is

FIRST = {"t2i": Recipe(4.0, top_k=2000), "demo": Recipe(3.0, top_k=4000), "omni": Recipe(1.0, top_k=200)}
# The speculative decoding that 2.0 comes with draws from a law of its own: what lies further than one deviation below
# the largest logit is left out.
SECOND = {"t2i": Recipe(4.0, top_k=4096), "sjd-top-n-sigma": Recipe(4.0, top_k=4096, top_n_sigma=1.0)}
LARGE = ChameleonConfig(layers=48, heads=64, kv_heads=8, width=8192, hidden=22016, groups=4, norm_last=True)


@dataclass(frozen=True)
class Published:
    """One model: where it is, what it draws, and its shapes as far as they are known without its files."""

    repository: str
    summary: str
    target: int  # pixels: its sizes have about the square of it
    config: ChameleonConfig = field(default_factory=ChameleonConfig)
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: FIRST)
    images: str = "chameleon-vqgan"
    made: type[LuminaMGPT] = LuminaMGPT
    template: str = TEMPLATE
    words: str = WORDS

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width in pixels, the square first."""
        square = (self.target, self.target)
        return (square,) if self.made is Anole else tuple(dict.fromkeys((square, *crops(self.target))))

    @property
    def spec(self) -> RasterSpec:
        factor, codes = TOKENIZERS[self.images].factor, TOKENIZERS[self.images].codes
        if self.made is Anole:
            return RasterSpec(self.target // factor, self.target // factor, codes, 0)
        return spec_of(self.sizes[0], factor, codes)


def _first(size: str, target: int, *, of: str = "", config: ChameleonConfig | None = None) -> Published:
    repository = f"Alpha-VLLM/Lumina-mGPT-{size.upper()}-{target}{of}"
    summary = f"Lumina-mGPT {size.upper()}{of.replace('-', ' ')} from text at about {target}x{target} pixels."
    return Published(repository, summary, target, config or ChameleonConfig())


MODELS = {
    "lumina-mgpt-7b-512": _first("7b", 512),
    "lumina-mgpt-7b-768": _first("7b", 768),
    "lumina-mgpt-7b-768-omni": _first("7b", 768, of="-Omni"),
    "lumina-mgpt-7b-1024": _first("7b", 1024),
    "lumina-mgpt-34b-512": _first("34b", 512, config=LARGE),
    "lumina-mgpt-2": Published(
        "Alpha-VLLM/Lumina-mGPT-2.0",
        "Lumina-mGPT 2.0 from text at about 768x768 pixels.",
        768,
        ChameleonConfig(vocabulary=171_392),  # at least its codes; the number itself is in its config.json
        SECOND,
        "movqgan-270m",
        words="Alpha-VLLM/Lumina-mGPT-2.0",
    ),
    "anole-7b": Published(
        "leloy/Anole-7b-v0.1-hf",
        "Anole 7B (Chameleon) from text at 512 pixels.",
        512,
        ChameleonConfig(groups=32),
        {"default": Recipe(3.0)},
        made=Anole,
        template="{prompt}",
        words="leloy/Anole-7b-v0.1-hf",
    ),
}


ORIGINALS = {"anole-7b": ("GAIR/Anole-7b-v0.1",)}
PLAIN = {"rope_scaling": None, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}  # what we build


def shapes(found: dict[str, Any], *, per_head: bool) -> ChameleonConfig:
    """What a config.json says of a decoder. ValueError names what it lacks, and what is not built here.

    Norms of queries and keys have a row `per_head`, or one for each of the parts that the model was trained in.
    """
    for key, built in PLAIN.items():
        if found.get(key, built) != built:
            raise ValueError(f"config.json has {key} {quoted(found[key])}, and only {built!r} is built here")
    try:
        groups = found["num_attention_heads"] if per_head else found.get("model_parallel_size") or 1
        return ChameleonConfig(
            layers=found["num_hidden_layers"],
            heads=found["num_attention_heads"],
            kv_heads=found.get("num_key_value_heads") or found["num_attention_heads"],
            width=found["hidden_size"],
            hidden=found["intermediate_size"],
            vocabulary=found["vocab_size"],
            context=found["max_position_embeddings"],
            groups=groups,
            norm_last=bool(found.get("swin_norm", False)),
            rope_base=float((found.get("rope_parameters") or found).get("rope_theta", 10000.0)),
            norm_eps=found.get("rms_norm_eps", 1e-5),
        )
    except KeyError as error:
        raise ValueError(f"config.json lacks {error.args[0]}") from None


def vocabulary(found: dict[str, Any], codes: int, text: Any, where: str) -> Vocabulary:
    """The image's ids, in which a config.json, the image tokenizer and the text tokenizer have to agree."""
    names = found.get("vocabulary_map")
    if not isinstance(names, dict):
        raise ValueError(f"config.json of {where} has no vocabulary_map")
    model_config.check_ids(names, found["vocab_size"], f"the vocabulary_map of {where}")
    read = Vocabulary.read(names)
    if read.codes != codes:
        raise ValueError(f"the vocabulary_map of {where} has {read.codes} image codes, expected {codes}")
    if text is not None:
        known = text.get_vocab()
        for name, id in ((name, id) for name, id in names.items() if id in read.ids[2:]):
            if known.get(name) != id:
                gives = f"gives {shown(name)} the id {known.get(name)}"
                raise ValueError(f"the text tokenizer {gives}, {where} has it at {id}")
    return read


def tokenizer(name: str, checkpoint: Path | None, device: torch.device, numbers: Numbers | None = None) -> VQTokenizer:
    """An image tokenizer of `TOKENIZERS`, in float32. Its numbers are those of the vocabularies that it goes with."""
    fitted.only(name, numbers or Numbers())
    config, path = TOKENIZERS[name], checkpoint
    if path is not None and path.is_dir():
        path = path / FILES[name]
    if path is None and name == "movqgan-270m":
        path = hub.fetch("ai-forever/MoVQGAN", FILES[name], REVISION)
    if path is None or not path.is_file():
        where = "" if path is None else f" {path}"
        raise ValueError(f"no weights file{where} of {name}: name {FILES[name]} with tokenizer_checkpoint")
    if name == "chameleon-vqgan":
        _check_yaml(path.with_name("vqgan.yaml"), config)
    with torch.device("meta"):
        module = VQTokenizer(config)
    checkpoints.load_into(module, path, vq.taming_layout(config), device=device)
    return module.eval().requires_grad_(False)


def _check_yaml(path: Path, config: VQConfig) -> None:
    """ValueError where the file that Meta gives out beside its weights says something else than we build."""
    import yaml

    if not path.is_file():
        return
    try:
        if path.stat().st_size > MOST_YAML:
            raise ValueError(f"expected at most {MOST_YAML} bytes")
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        inner = params["ddconfig"]
        said = (params["n_embed"], params["embed_dim"], inner["ch"], list(inner["ch_mult"]), inner["num_res_blocks"])
    except (yaml.YAMLError, LookupError, TypeError, ValueError, RecursionError):
        raise ValueError(f"cannot read {path}: expected the shapes of an image tokenizer") from None
    least = config.channels[0]
    built = (config.codes, config.code_dim, least, [width // least for width in config.channels], config.layers)
    if said != built or inner.get("attn_resolutions"):
        raise ValueError(f"{path} is of another image tokenizer: {quoted(said)} instead of {built}")


def build(name: str, sources: Sources, device: torch.device, dtype: torch.dtype) -> "RasterPipeline":
    """The pipeline of a preset, from the official files or from `sources`."""
    from vargen.pipelines.prompted import PromptedPipeline

    model, given = MODELS[name], sources.checkpoint
    folder = given if given is not None else hub.fetch(model.repository, "*", REVISION)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: expected one with config.json and the weights of {name}")
    found = model_config.read(folder)
    weight_files.shards(folder)
    config = shapes(found, per_head=model.made is Anole)
    model_config.check_decoder(found, folder, config.groups)
    images = None if sources.drafts else tokenizer(model.images, sources.tokenizer_checkpoint, device)
    own = (folder / "tokenizer.json").is_file() and sources.text_encoder is None
    text = None if sources.drafts else t5.load_tokenizer(str(folder) if own else sources.text_encoder, model.words)
    ids = vocabulary(found, TOKENIZERS[model.images].codes, text, str(folder))
    with torch.device("meta"):
        decoder = Chameleon(config)
    checkpoints.load_into(decoder, folder, chameleon.LAYOUT, dtype=dtype, device=device)
    transformer = _around(model, decoder.eval().requires_grad_(False), ids)
    return PromptedPipeline(transformer, images, text_tokenizer=text, preset=PRESETS[name])


def _around(model: Published, decoder: Chameleon, ids: Vocabulary) -> LuminaMGPT:
    how = {"factor": TOKENIZERS[model.images].factor, "template": model.template}
    return model.made(decoder, ids, size=model.sizes[0], sizes=model.sizes, **how)


def skeleton(name: str) -> LuminaMGPT:
    """The model with fresh weights, of its published shapes; ids stand in for those of its vocabulary_map."""
    model, codes = MODELS[name], TOKENIZERS[MODELS[name].images].codes
    first = 4 if model.config.vocabulary == 65536 else 155_000
    rest = Vocabulary(first, codes, 0, 1, 2, 3, tuple(range(4, 4 + max(model.sizes[-1]) // 8)))
    return _around(model, Chameleon(model.config), rest)


def _preset(name: str) -> Preset:
    model, made = MODELS[name], partial(skeleton, name)
    how: Any = {"skeleton": made, "repository": model.repository, "originals": ORIGINALS.get(name, ())}
    return Preset(name, model.summary, model.recipes, 0, partial(build, name), spec=model.spec, **how)


PRESETS = {name: _preset(name) for name in MODELS}
