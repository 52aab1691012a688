"""What a model's config.json says, held against what numbers can be and against the shapes of the weights beside it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vargen.core import safe_json
from vargen.core.messages import first_line, quoted, shown
from vargen.core.weight_files import find, shards

NEEDED = (  # what may be left out, but not be null
    *("rope_theta", "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size"),
    "max_position_embeddings",
)
WHOLE = (
    *(*NEEDED[1:], "num_key_value_heads", "head_dim", "model_parallel_size", "num_layers", "num_decoder_layers"),
    *("num_heads", "d_model", "d_ff", "d_kv", "codebook_size", "num_embeddings", "embed_dim", "latent_channels"),
    *("base_channels", "image_size", "patch_size"),
)
COUNTS = re.compile(r"(.*_)?(layers|depth|blocks|n_layer)")  # of parts that are built one after another
SIDES = ("image_size", "patch_size")  # one number or several
MOST = 1 << 24  # that any of these numbers may be
FEW = 128  # parts that are built so fast that nobody has to ask the weights first


def read(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. ValueError where it is missing, no JSON object, or has a number that is none."""
    path = folder / "config.json"
    try:
        found = safe_json.read(path)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"cannot read {path}, which has the shapes and the vocabulary: expected a JSON object")
    check(found)
    return found


def check(found: Mapping[str, Any]) -> None:
    """ValueError names the first value of a config.json that is not of its kind."""
    for key, value in _values(found):
        if value is None and key not in NEEDED:
            continue
        if key == "vocabulary_map" and isinstance(value, dict):
            check_ids(value, MOST, "config.json's vocabulary_map")
        wanted = ""
        if key in WHOLE or COUNTS.fullmatch(key):
            wanted = "" if _whole(value) or (key in SIDES and isinstance(value, list)) else "a whole number above 0"
        elif key == "rope_theta":
            wanted = "" if _between(value, 1, 1e12) else "a number above 1"
        elif key.endswith(("_eps", "epsilon")):
            wanted = "" if _between(value, 0, 1) else "a number between 0 and 1"
        elif key == "vocabulary_map":
            wanted = "" if isinstance(value, dict) else "an object with the id of each name"
        elif key.endswith("attn_implementation") and "/" in str(value):
            wanted = "a name of transformers' own"  # it would download code
        elif key in ("rope_parameters", "text_config", "vision_config", "vq_config"):
            wanted = "" if isinstance(value, dict) else "an object"
        if wanted:
            raise ValueError(f"config.json has {key} {quoted(value)}, expected {wanted}")


def _values(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        yield key, value
        if isinstance(value, dict) and key != "vocabulary_map":
            yield from _values(value)


def _whole(value: object) -> bool:
    return type(value) is int and 0 < value < MOST


def _between(value: object, low: float, high: float) -> bool:
    return type(value) in (int, float) and low < value <= high  # pyright: ignore[reportOperatorIssue]


def check_ids(names: Mapping[str, Any], vocabulary: int, where: str) -> None:
    """ValueError where a name's id is none of a vocabulary of that many."""
    for name, id in names.items():
        if type(id) is not int or not 0 <= id < vocabulary:
            raise ValueError(f"{where} has {shown(name)} at {quoted(id)}, expected an id below {vocabulary}")


def weights_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights in a folder, by key, as transformers looks for them; none where there are none."""
    new = list(folder.glob("model*.safetensors*"))
    paths = shards(folder) if new else sorted(folder.glob("pytorch_model*.bin"))
    return {key: shape for path in paths for key, shape in find(path).shapes.items()}


def check_built(kind: Any, folder: Path) -> None:
    """ValueError where what transformers would build of a config.json is not of the weights beside it.

    Names of old files differ from those of today, so that only shapes are compared; names transformers compares.
    """
    held = weights_of(folder)
    if not held or not (folder / "config.json").is_file():
        return  # transformers says what it misses
    most = max(FEW, 1 + max((int(n) for key in held for n in re.findall(r"(?<=\.)\d{1,6}(?=\.)", key)), default=0))
    for key, value in _values(read(folder)):
        count = len(value) if isinstance(value, list) and "mult" in key else value if COUNTS.fullmatch(key) else 0
        if isinstance(count, int) and count > most:
            raise ValueError(f"config.json of {folder} has {count} {key}, and the weights have at most {most}")
    shapes = set(held.values())
    for key, shape in _built(kind, folder).items():
        if shape not in shapes:
            raise ValueError(
                f"the weights in {folder} do not fit {kind.__name__}: by its config.json {key} is {shape}, and none is"
            )


def _built(kind: Any, folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a model of transformers, built without memory."""
    try:
        config = kind.config_class.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            module: nn.Module = kind(config)
    except Exception as error:  # whatever may be wrong with a number
        raise ValueError(
            f"cannot load {kind.__name__} from {folder}: its config.json fails ({first_line(error)})"
        ) from None
    return {key: tuple(value.shape) for key, value in module.named_parameters()}


def check_decoder(found: Mapping[str, Any], folder: Path, groups: int) -> None:
    """ValueError where a config.json gives another decoder than the weights beside it have: by the names of Llama's."""
    held = weights_of(folder)
    first = "model.layers.0"

    def side(key: str, axis: int) -> int | None:
        return held[key][axis] if key in held and len(held[key]) > axis else None

    heads, dim = found["num_attention_heads"], side(f"{first}.self_attn.q_norm.weight", 1)
    shared = found.get("num_key_value_heads") or heads
    said = {
        "vocab_size": (found["vocab_size"], side("model.embed_tokens.weight", 0)),
        "hidden_size": (found["hidden_size"], side("model.embed_tokens.weight", 1)),
        "intermediate_size": (found["intermediate_size"], side(f"{first}.mlp.gate_proj.weight", 0)),
        "num_hidden_layers": (
            found["num_hidden_layers"],
            len({match[1] for key in held if (match := re.match(r"model\.layers\.(\d+)\.", key))}) or None,
        ),
        "num_attention_heads": (heads, dim and (side(f"{first}.self_attn.q_proj.weight", 0) or 0) // dim),
        "num_key_value_heads": (shared, dim and (side(f"{first}.self_attn.k_proj.weight", 0) or 0) // dim),
        "model_parallel_size": (groups, side(f"{first}.self_attn.q_norm.weight", 0)),
    }
    for key, (number, real) in said.items():
        if real is not None and number != real:
            raise ValueError(f"config.json of {folder} has {key} {number}, and its weights have {real}")
    if found["hidden_size"] % heads or heads % shared or heads % groups or shared % groups:
        raise ValueError(f"config.json of {folder} has {heads} heads of {found['hidden_size']}, which do not divide it")
