"""What every method draws with every pocket model, as hashes: python scripts/hash_tokens.py > before.txt

Two runs on one machine give the same lines, unless a change altered a token, a pixel or a trace.
"""

import hashlib
import json
from dataclasses import asdict

import torch

import vargen
from vargen.core import registry

MODELS = [name for name in registry.MODELS if name.startswith("pocket-")]
CLOCKED = ("seconds", "peak_memory_bytes", "versions")  # what differs from run to run


def rows(model: str) -> list[str]:
    """A line a method: forwards an image, and digests of tokens, pictures and the trace."""
    pipe = vargen.load(model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    prompts = {"prompt": ["a red boat", "a green tree"]}
    subject = {"class_labels": [1, 4, 8]} if pipe.transformer.spec.classes else prompts
    preset, out = registry.preset(model), []
    for method in registry.methods(preset.kind, preset.plan):
        windowed = any(field.name == "window" and field.default == "auto" for field in registry.settings_of(method))
        try:
            drawn = pipe(**subject, method=f"{method}:window=16" if windowed else method, seed=3, output_type="np")
        except ValueError as error:  # of a method that needs a drafter, where none ships
            out.append(f"{model:24} {method:22} {str(error)[:60]}")
            continue
        trace = {key: value for key, value in asdict(drawn.trace).items() if key not in CLOCKED}
        parts = (
            torch.as_tensor(drawn.tokens).contiguous().numpy().tobytes(),
            drawn.images.tobytes(),
            json.dumps(trace, sort_keys=True, default=str).encode(),
        )
        digests = " ".join(hashlib.sha256(part).hexdigest()[:12] for part in parts)
        out.append(f"{model:24} {method:22} {drawn.trace.forwards_per_image:8.2f} {digests}")
    return out


if __name__ == "__main__":
    print(f"{'model':24} {'method':22} forwards tokens       pictures     trace")
    for each in MODELS:
        print("\n".join(rows(each)), flush=True)
