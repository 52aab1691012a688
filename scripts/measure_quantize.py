"""What quantised layers cost and save: python scripts/measure_quantize.py --shape llamagen-b --json FILE

Needs torchao. Bytes of the weights and milliseconds a forward of a published shape with random weights (plain and
quantised in turn, guidance on, in the middle of an image); and of pocket-llamagen what the law loses: cross-entropy on
held-out scenes, the largest difference of logits over them, and how many images are seen as the class asked for.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

import vargen
from vargen.commands import synthetic
from vargen.commands.flags import Parser
from vargen.commands.main import guarded
from vargen.core import quantize
from vargen.core.atomic import check_writable, dumps, write_json
from vargen.core.machine import machine, versions
from vargen.core.trace import Trace
from vargen.core.types import Block
from vargen.engine import loops
from vargen.models import pocket
from vargen.pipelines.loading import find_device
from vargen.scenes import CLASSES
from vargen.scenes.dataset import HELD_OUT, labels
from vargen.training import transformer

SCENES = 200


@torch.inference_mode()
def forward_ms(models: dict[str, Any], width: int, steps: int) -> dict[str, float]:
    """Milliseconds of one forward of each model, medians; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for step in range(steps + 2):
        for name, model in models.items():
            half, device = model.spec.slots // 2, model.device
            condition = model.class_condition(torch.zeros(1, dtype=torch.int64, device=device), guided=True)
            cache = model.make_cache(2)
            model.prefill(condition, cache)
            slots = torch.arange(half, half + width, device=device).expand(2, -1)
            block, clock = Block(torch.zeros_like(slots), slots, half, half + width), loops.Clock(device)
            model.decode(block, cache)
            clock.lap("model")
            if step > 1:  # the first are slower
                taken[name].append(1e3 * clock.seconds()["model"])
    return {name: round(statistics.median(values), 2) for name, values in taken.items()}


def speed(shape: str, kind: str, device: torch.device, dtype: torch.dtype, steps: int) -> dict[str, Any]:
    """Bytes and milliseconds, plain and quantised."""
    plain, other = (synthetic.build(shape, device, dtype) for _ in range(2))
    quantize.apply(other, kind)
    models = {"plain": plain, kind: other}
    widths = {width: forward_ms(models, width, steps) for width in (1, 16)}
    return {"bytes": {name: quantize.stored(model) for name, model in models.items()}, "forward_ms": widths}


def quality(kind: str | None, images: int, device: torch.device, dtype: torch.dtype, scenes: Path) -> dict[str, Any]:
    """Of pocket-llamagen: bytes, nats per token, logits on held-out scenes, and the share of images seen as asked."""
    pipe = vargen.load("pocket-llamagen", device=device, dtype=dtype, quantize=kind)
    model, asked = pipe.transformer, [i % len(CLASSES) for i in range(images)]
    drawn = pipe(asked, method="ar", seed=0, batch_size=20, output_type="pt")
    seen = pocket.load("pocket-classifier")(drawn.images.cpu().float() * 2 - 1).argmax(-1)
    ids, classes = transformer.tokens(pipe.tokenizer, scenes, SCENES, HELD_OUT, device)[:50], labels(SCENES)[:50]
    return {
        "bytes": quantize.stored(model),
        **transformer.measure(model, pipe.tokenizer, scenes, images=SCENES, device=device),
        "class_agreement": (seen == torch.tensor(asked)).double().mean().item(),
        "logits": model(model.class_condition(classes.to(device), guided=False), ids.to(device)),
    }


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = [name for name in synthetic.MODELS if name.startswith("llamagen")]
    parser.add_argument("--shape", choices=shapes, help="to be timed")
    parser.add_argument("--quantize", default="int8", choices=quantize.KINDS)
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--steps", type=int, default=10, help="timed forwards of each")
    parser.add_argument("--images", type=int, default=100, help="drawn by pocket-llamagen; 0: none")
    parser.add_argument("--scenes", type=Path, default=Path("out/scenes"), help="where painted scenes are kept")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(argv)
    check_writable([options.json])
    device, dtype, kind = find_device(options.device), getattr(torch, options.dtype), options.quantize
    quantize.check(kind, device, dtype)
    found = versions(device) | {"torchao": quantize.version()}
    result: dict[str, Any] = {"command": f"python scripts/measure_quantize.py {' '.join(argv)}"}
    if options.shape:
        result[options.shape] = speed(options.shape, kind, device, dtype, options.steps)
    if options.images:
        with torch.inference_mode():
            plain, other = (quality(one, options.images, device, dtype, options.scenes) for one in (None, kind))
        off = (plain.pop("logits") - other.pop("logits")).abs()
        result["pocket-llamagen"] = {"plain": plain, kind: other}
        result["pocket-llamagen"]["logits_differ"] = {"mean": off.mean().item(), "most": off.max().item()}
    result |= {"dtype": options.dtype, "machine": machine(Trace(versions=found))}
    write_json(options.json, result)
    print(dumps(result, indent=2))


if __name__ == "__main__":
    guarded(main)
