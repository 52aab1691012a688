"""Keywords of loading that people bring from diffusers and transformers: taken, or refused with what to say instead."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vargen.pipelines import values

HARMLESS = {  # what loading does anyhow, and the values that ask for it
    "use_safetensors": (None, True),
    "low_cpu_mem_usage": (None, True, False),
    "trust_remote_code": (None, False),
    "safety_checker": (None,),
    "requires_safety_checker": (None, False),
    "variant": (None,),
    "custom_pipeline": (None,),
    "quantization_config": (None,),
    "max_memory": (None,),
    "offload_folder": (None,),
    "force_download": (None, False),
    "local_files_only": (None, False),
    "cache_dir": (None,),
    "revision": (None,),
    "token": (None,),
    "subfolder": (None,),
}
REASONS = {
    "low_cpu_mem_usage": "loading holds a sixteenth of a file beside the weights",
    "use_safetensors": "files are read in the format that they have, and nothing in them is run",
    "trust_remote_code": "no code of a folder or repository is ever run",
    "custom_pipeline": "no code of a folder or repository is ever run",
    "variant": "published files come in one; dtype=torch.float16 casts while they load",
    "quantization_config": "quantize='int8' or 'int4' stores the layers so",
    "max_memory": "a model is on one device",
    "offload_folder": "a model is on one device",
    "force_download": "huggingface_hub's own command does that",
    "local_files_only": "the environment's HF_HUB_OFFLINE=1 says so",
    "cache_dir": "the environment's HF_HUB_CACHE says where",
    "revision": "published files are taken at a pinned one; checkpoint names another copy",
    "token": "the environment's HF_TOKEN is used",
    "subfolder": "checkpoint names a file or folder",
    "safety_checker": "there is none",
    "requires_safety_checker": "there is none",
}
TWINS = {"torch_dtype": "dtype"}  # other names of ours


def read(load: Callable[..., Any], name: str, brought: Mapping[str, Any], device: Any, dtype: Any) -> tuple[Any, Any]:
    """Device and dtype, which may go by other names. ValueError names the first keyword that nothing here takes."""
    for key, value in brought.items():
        if key == "device_map":
            device = _on_one(value, device)
        elif key in TWINS:
            if dtype is not None and value is not None and values.dtype(value) != values.dtype(dtype):
                raise ValueError(f"got {TWINS[key]} {dtype} and {key} {value}, expected one of them")
            dtype = value if dtype is None else dtype
        elif key in REASONS:
            if not any(value is harmless for harmless in HARMLESS[key]):  # 0 is no False here
                raise ValueError(f"got {key} {value!r}, which {name} does not take: {REASONS[key]}")
        else:
            known = [each for each in inspect.signature(load).parameters if each not in ("name", "brought")]
            like = difflib.get_close_matches(key, known, n=1)
            hint = f"is it {like[0]}?" if like else f"there are {', '.join(known)}"
            raise ValueError(f"got {key!r}, which loading does not take; {hint}")
    return device, dtype


def _on_one(place: Any, device: Any) -> Any:
    """The device that a `device_map` names. ValueError where it would spread a model over several."""
    if place is None:
        return device
    if isinstance(place, Mapping) and len(set(map(str, place.values()))) == 1:
        place = next(iter(place.values()))
    if isinstance(place, Mapping) or str(place) in ("auto", "balanced", "balanced_low_0", "sequential"):
        raise ValueError(f"got device_map {place!r}, expected one device such as cuda:0: a model is not spread here")
    if device is not None and str(device) != str(place):
        raise ValueError(f"got device {device} and device_map {place}, expected one of them")
    return place
