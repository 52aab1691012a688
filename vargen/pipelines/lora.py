"""LoRA weights (arXiv 2106.09685) merged into a transformer's: W + s (alpha / r) B A, by peft's names."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vargen.core import safe_json, weight_files
from vargen.core.atomic import as_path
from vargen.core.checkpoints import FLOATS, is_finite
from vargen.core.layout import PLAIN, Layout
from vargen.core.messages import quoted, shown
from vargen.core.weight_files import is_dense
from vargen.models import chameleon, flowar, harmon, llamagen, mar, var, xar
from vargen.models.flowar import FlowAR
from vargen.models.harmon import Harmon
from vargen.models.llamagen import LlamaGen
from vargen.models.lumina_mgpt import LuminaMGPT
from vargen.models.mar import MAR
from vargen.models.var import VAR
from vargen.models.wrapped import Wrapped
from vargen.models.xar import XAR
from vargen.pipelines import values

FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # peft's, diffusers'
FRONT = re.compile(r"((base_model|model|transformer|language_model|text_model|decoder|language|llm)\.)*")
DEEPEST = 32  # parts of a layer's name that a pattern is compared with
PART = re.compile(r"(.*)\.lora_?(A|B|down|up)(?:\.\w+)?\.weight")
LAYOUTS: dict[type, Layout] = {
    LlamaGen: llamagen.LAYOUT,
    VAR: var.LAYOUT,
    MAR: mar.LAYOUT,
    FlowAR: flowar.LAYOUT,
    XAR: xar.LAYOUT,
    Harmon: harmon.LAYOUT,
}
PLAINLY = {  # what changes a merge, and the values with which it is W + s B A on layers alone
    "fan_in_fan_out": (None, False),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal"),  # others change W as well
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "use_qalora": (None, False),
    "alora_invocation_tokens": (None,),  # of layers that change behind these alone
    "use_rslora": (None, False, True),
}
LLAMA = {  # Llama's names of LlamaGen's layers, and which third of the rows
    "self_attn.q_proj": ("attention.wqkv", 0),
    "self_attn.k_proj": ("attention.wqkv", 1),
    "self_attn.v_proj": ("attention.wqkv", 2),
    "self_attn.o_proj": ("attention.wo", None),
    "mlp.gate_proj": ("feed_forward.w1", None),
    "mlp.up_proj": ("feed_forward.w3", None),
    "mlp.down_proj": ("feed_forward.w2", None),
}


@dataclass
class Pair:
    """Both factors of a layer."""

    down: Tensor | None = None  # (r, in)
    up: Tensor | None = None  # (out, r)
    alpha: float | None = None


def merge(transformer: nn.Module, place: Any, *, weight_name: str | None = None, scale: float = 1.0) -> None:
    """Add LoRA weights of a file, folder or dict to a transformer's. ValueError, before anything changes, if wrong."""
    if not math.isfinite(values.number(scale, "lora_scale")):
        raise ValueError(f"got lora_scale {quoted(scale)}, expected a number")
    found, config = _read(place, weight_name)
    module, state, targets = _targets(transformer)
    added = []
    for name, pair in _pairs(found).items():
        parts, shape = _find(name, targets, transformer)
        if pair.down is None or pair.up is None:
            raise ValueError(f"the LoRA weights have only one of both factors of {shown(name)}")
        if pair.down.dim() != 2 or pair.up.dim() != 2 or (pair.up.shape[0], pair.down.shape[1]) != shape:
            got = f"{tuple(pair.up.shape)} by {tuple(pair.down.shape)}"
            raise ValueError(f"the LoRA weights of {shown(name)} are {got}, expected factors of {shape}")
        if len(pair.down) != pair.up.shape[1]:
            raise ValueError(f"the LoRA weights of {shown(name)} have ranks {len(pair.down)} and {pair.up.shape[1]}")
        factor = scale * _scaling(name, pair, config)
        if not (is_finite(pair.down) and is_finite(pair.up) and math.isfinite(factor)):
            raise ValueError(f"the LoRA weights of {shown(name)} have NaN or infinity")
        for weight, row in parts:
            if not is_finite(_sum(weight, row, pair.up, pair.down, factor)):
                raise ValueError(f"the LoRA weights of {shown(name)} give NaN or infinity in {weight.dtype}")
        added.append((parts, pair.up, pair.down, factor))
    if not added:
        raise ValueError("got LoRA weights of no layer, expected names such as ...lora_A.weight and ...lora_B.weight")
    with torch.no_grad():
        for parts, up, down, factor in added:
            for weight, row in parts:
                weight.copy_(_sum(weight, row, up, down, factor))
        module.load_state_dict(state)  # of what is joined or turned in the module, the state has copies


@torch.no_grad()
def _sum(weight: Tensor, row: int, up: Tensor, down: Tensor, factor: float) -> Tensor:
    """A weight with its part of a layer's factors added, in its dtype."""
    rows = up[row : row + len(weight)]
    change = rows.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
    return (weight.float() + factor * change.reshape(weight.shape)).to(weight.dtype)


Parts = list[tuple[Tensor, int]]  # weights, and at which row of a layer's factor each begins


def _targets(transformer: nn.Module) -> tuple[nn.Module, dict[str, Any], dict[str, tuple[Parts, tuple[int, ...]]]]:
    """The module that has them, its state, and in that the layers by name, as published files have them without what
    stands in front, with the shape of each.
    """
    module, layout = transformer, LAYOUTS.get(type(transformer), PLAIN)
    if isinstance(transformer, LuminaMGPT):
        module, layout = transformer.decoder, chameleon.LAYOUT
    elif isinstance(transformer, Wrapped):
        module = transformer.language
    state, out = module.state_dict(), {}
    for key, (ours, shape) in layout.expected(module).items():
        if key.endswith(".weight") and len(shape) == 2:
            parts, row = [], 0
            for one in ours:
                parts.append((state[one], row))
                row += len(state[one])
            out[_bare(key.removesuffix(".weight"))] = (parts, shape)
    return module, state, out


def _bare(name: str) -> str:
    return FRONT.sub("", name, count=1)


def _find(name: str, targets: Mapping[str, Any], transformer: nn.Module) -> tuple[Parts, tuple[int, ...]]:
    """A layer's weights and their shape. ValueError where the transformer has none of that name."""
    bare = _bare(name)
    if bare in targets:
        return targets[bare]
    match = re.fullmatch(r"(layers\.\d+)\.(.*)", bare)
    if isinstance(transformer, LlamaGen) and match and match[2] in LLAMA:
        theirs, third = LLAMA[match[2]]
        if f"{match[1]}.{theirs}" in targets:
            [(weight, _)], (rows, columns) = targets[f"{match[1]}.{theirs}"]
            if third is None:
                return [(weight, 0)], (rows, columns)
            return [(weight.chunk(3)[third], 0)], (rows // 3, columns)
    known = ", ".join(list(targets)[:3])
    raise ValueError(f"{type(transformer).__name__} has no layer {shown(name)} for LoRA; it has such as {known}")


def _pairs(found: Mapping[str, Tensor]) -> dict[str, Pair]:
    """Both factors by layer. ValueError names what is neither."""
    pairs: dict[str, Pair] = {}
    for key, value in found.items():
        kinds = (*FLOATS, torch.int64, torch.int32) if key.endswith(".alpha") else FLOATS  # 8 is an alpha as 8.0 is
        if type(value) not in (Tensor, nn.Parameter) or not is_dense(value) or value.dtype not in kinds:
            raise ValueError(f"the LoRA weights have {shown(key)} in {value.dtype}, expected a plain tensor of floats")
        if key.endswith(".alpha"):
            if value.numel() != 1:
                raise ValueError(f"the LoRA weights have {shown(key)} {tuple(value.shape)}, expected one number")
            pairs.setdefault(key.removesuffix(".alpha"), Pair()).alpha = float(value)
        elif match := PART.fullmatch(key):
            pair, value = pairs.setdefault(match[1], Pair()), value.detach()
            side = "down" if match[2] in ("A", "down") else "up"
            if getattr(pair, side) is not None:
                raise ValueError(f"the LoRA weights have two adapters of {shown(match[1])}, expected one")
            setattr(pair, side, value)
        else:
            raise ValueError(
                f"the LoRA weights have {shown(key)}, which is no factor: expected ...lora_A or lora_B.weight"
            )
    return pairs


def _scaling(name: str, pair: Pair, config: Mapping[str, Any]) -> float:
    """What peft multiplies a layer's factors by: alpha / r, or alpha / sqrt(r); 1 where nobody says alpha."""
    assert pair.down is not None
    rank, alpha = max(1, len(pair.down)), pair.alpha
    if alpha is None:
        patterns, parts = config.get("alpha_pattern") or {}, name.split(".")[-DEEPEST:]
        hits = patterns.keys() & {".".join(parts[first:]) for first in range(len(parts))}
        alpha = patterns[next(key for key in patterns if key in hits)] if hits else config.get("lora_alpha")
    if alpha is None:
        return 1.0
    return values.number(alpha, "lora_alpha") / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read(place: Any, weight_name: str | None) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """LoRA weights by name, and what the config beside them, or in their file, says."""
    if isinstance(place, Mapping):
        if wrong := [key for key, value in place.items() if not isinstance(value, Tensor) or not isinstance(key, str)]:
            raise ValueError(f"got LoRA weights in which {shown(wrong[0])} is no tensor by name")
        return place, {}
    path = as_path(place, "LoRA weights")
    if weight_name is not None and not isinstance(weight_name, str):
        raise ValueError(f"got weight_name {quoted(weight_name)}, expected a file's name")
    if path.is_dir():
        names = FILES if weight_name is None else (weight_name,)
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not path.is_file():
        raise ValueError(f"no LoRA weights {path}: expected a safetensors file, or a folder with {' or '.join(FILES)}")
    found, beside = weight_files.read(path), path.with_name("adapter_config.json")
    try:
        if beside.is_file():
            config = safe_json.read(beside)
        else:  # diffusers keeps it in the file
            inside = safe_json.parse(weight_files.metadata(path).get("lora_adapter_metadata", "{}"))
            config = {key.removeprefix("transformer."): value for key, value in inside.items()}
        kind = config.get("peft_type", "LORA")
        patterns = config.get("alpha_pattern") or {}
    except (OSError, ValueError, AttributeError, json.JSONDecodeError):
        raise ValueError(f"cannot read the LoRA's config beside or in {path}: expected a JSON object") from None
    kind = "DoRA" if config.get("use_dora") else kind
    if kind != "LORA" or not isinstance(patterns, dict):
        raise ValueError(f"{path} holds {quoted(kind)} weights, expected LoRA's")
    if wrong := [key for key in patterns if not re.fullmatch(r"[\w.-]+", key)]:
        raise ValueError(f"got alpha_pattern {quoted(wrong[0])}, expected names of layers and no regular expression")
    for key, plain in PLAINLY.items():
        if (said := config.get(key)) not in plain:
            raise ValueError(f"{path} was trained with {key} {quoted(said)}, which is not merged here")
    return found, config
