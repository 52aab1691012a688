"""A pipeline's parts as folders: config.json says what a part is, model.safetensors has its weights."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vargen.core import checkpoints, model_config, safe_json
from vargen.core.atomic import write_json
from vargen.core.described import as_dataclass
from vargen.core.messages import first_line
from vargen.core.numbers import WIDEST
from vargen.core.registry import resolve
from vargen.core.version import __version__
from vargen.core.weight_files import find

CONFIG, WEIGHTS = "config.json", "model.safetensors"
DEEP = ("layers", "head_depth")  # numbers of parts that are built one after another
WIDE = ("side", "sides", "extent", "cell")  # of which tables are computed
LEVELS = 16  # of an image tokenizer
MOST = 1 << 20  # that any other number of a part may be
PLAIN = {  # class -> where it is, and where the dataclass is that it is made of
    "LlamaGen": ("vargen.models.llamagen:LlamaGen", "vargen.models.llama:LlamaGenConfig"),
    "VAR": ("vargen.models.var:VAR", "vargen.models.var:VARConfig"),
    "MAR": ("vargen.models.mar:MAR", "vargen.models.mar:MARConfig"),
    "FlowAR": ("vargen.models.flowar:FlowAR", "vargen.models.flowar:FlowARConfig"),
    "XAR": ("vargen.models.xar:XAR", "vargen.models.xar:XARConfig"),
    "Harmon": ("vargen.models.harmon:Harmon", "vargen.models.harmon:HarmonConfig"),
    "VQTokenizer": ("vargen.tokenizers.vq:VQTokenizer", "vargen.tokenizers.vq:VQConfig"),
    "KLTokenizer": ("vargen.tokenizers.kl:KLTokenizer", "vargen.tokenizers.kl:KLConfig"),
    "MultiScaleVQTokenizer": (
        "vargen.tokenizers.multiscale_vq:MultiScaleVQTokenizer",
        "vargen.tokenizers.multiscale_vq:MultiScaleVQConfig",
    ),
}
AROUND = {  # what knows how to say of what it is made, and to be made of that again
    "LuminaMGPT": "vargen.models.lumina_mgpt:LuminaMGPT",
    "Anole": "vargen.models.lumina_mgpt:Anole",
    "Emu3": "vargen.models.emu3:Emu3",
    "GlmImage": "vargen.models.glm_image:GlmImage",
    "Janus": "vargen.models.janus:Janus",
    "Images": "vargen.models.wrapped:Images",
}
KINDS = (*PLAIN, *AROUND)


def write(module: nn.Module, folder: Path) -> None:
    """A part as a folder. ValueError where it is of no kind that can be made again."""
    name = type(module).__name__
    if name not in KINDS or type(module) is not resolve(AROUND[name] if name in AROUND else PLAIN[name][0]):
        raise ValueError(f"a {name} is not saved: expected one of {', '.join(KINDS)}")
    given: Any = module
    about = given.described() if name in AROUND else asdict(given.config)
    folder.mkdir(parents=True)
    write_json(folder / CONFIG, {"_class_name": name, "_vargen_version": __version__, **about})
    checkpoints.save(folder / WEIGHTS, _apart(module.state_dict()), {"class": name})


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of which none share memory, as floating-point numbers (also what counts the steps of training)."""
    seen: set[int] = set()
    out = {}
    for key, value in state.items():
        value = value.detach() if value.is_floating_point() else value.detach().float()
        where = value.untyped_storage().data_ptr()
        whole = value.nbytes == value.untyped_storage().nbytes()
        out[key] = value if whole and where not in seen else value.clone()
        seen.add(where)
    return out


def read(folder: Path, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """The part in a folder, in evaluation mode. ValueError, of one sentence, where it is damaged or none of ours."""
    path = folder / CONFIG
    try:
        about = safe_json.read(path)
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict) or about.get("_class_name") not in KINDS:
        raise ValueError(f"cannot read {path}: expected a part of a pipeline that was saved by vargen")
    name = about.pop("_class_name")
    about.pop("_vargen_version", None)
    module = _made(name, about, path, len(find(folder / WEIGHTS).shapes))
    checkpoints.load_into(module, folder / WEIGHTS, dtype=dtype, device=device)
    return module.to(device).eval().requires_grad_(False)


def _made(name: str, about: dict[str, Any], path: Path, keys: int) -> nn.Module:
    """A part without weights, of what its config.json says; `keys` are those of its weights."""
    try:
        _check(about, keys)
        if name in AROUND:
            return resolve(AROUND[name]).rebuilt(about)
        made, config = (resolve(place) for place in PLAIN[name])
        with torch.device("meta"):
            return made(as_dataclass(config, about))
    except Exception as error:  # whatever may be wrong with a number
        raise ValueError(f"cannot make the {name} of {path}: {first_line(error)}") from None


def _check(about: Mapping[str, Any], keys: int, front: str = "") -> None:
    """ValueError where a number is such as no weights can have."""
    for key, value in about.items():
        if isinstance(value, dict):
            model_config.check(value)
            _check(value, keys, f"{front}{key}.")
        most = keys if key in DEEP or model_config.COUNTS.fullmatch(key) else WIDEST if key in WIDE else MOST
        if isinstance(value, list) and len(value) > LEVELS and ("mult" in key or key == "channels"):
            raise ValueError(f"it has {len(value)} {front}{key}, expected at most {LEVELS}")
        for number in value if isinstance(value, list) else [value]:
            if type(number) is int and number < 1 and key in ("side", "sides", "cell", "vocabulary", "width"):
                raise ValueError(f"it has {front}{key} {number}, expected at least 1")
            if type(number) is int and number > most and not key.endswith("token_id"):
                raise ValueError(f"it has {front}{key} {number}, expected at most {most}")


class Part(nn.Module):
    """A part by the name that diffusers' own loader asks for; only modules are told which dtype is wanted."""

    @staticmethod
    def from_pretrained(
        folder: str, torch_dtype: torch.dtype | None = None, dtype: torch.dtype | None = None, **_: Any
    ) -> nn.Module:
        """The part in a folder, on the CPU; image tokenizers stay in float32."""
        transformer = Path(folder).name == "transformer"
        return read(Path(folder), "cpu", (dtype or torch_dtype or torch.float32) if transformer else torch.float32)


def __getattr__(name: str) -> Any:
    """What diffusers' loader looks for here: our classes, under the name of a kind that it can load."""
    if name in KINDS or name == "ModelMixin":
        return Part
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
