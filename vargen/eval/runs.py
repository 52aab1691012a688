"""Sampling runs: many images into a folder, by any number of processes, through any number of interruptions.

    DIR/images/000000.png ...   written whole or not at all; those that are there are not drawn again
    DIR/traces/000000.json ...  what each group of images took
    DIR/manifest.json           plan, versions, weights, and at the end checksums and totals

Processes are accelerate's (`torchrun`, `accelerate launch`), on one machine or on many with a shared folder. On a CPU
each uses one thread, since the last bits of a product depend on their number: start as many processes as there are
cores.
"""

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from vargen.cli import save_png
from vargen.core import versions
from vargen.eval.images import is_whole_png
from vargen.eval.plan import Plan, load
from vargen.files import write_atomically


def sample(
    plan: Plan, make_pipe: Callable[[torch.device], Any], out: Path, *, device: str | None = None
) -> dict[str, Any]:
    """Draw what is missing of `plan` into `out` and return the manifest. The folder may hold a part of the same run.

    ValueError where it holds another run, or where a file cannot be written; what was drawn stays.
    """
    cpu = device == "cpu" or not torch.cuda.is_available()
    if cpu:
        torch.set_num_threads(1)
    state = PartialState(cpu=cpu, timeout=timedelta(days=30))  # processes may wait long for the slowest
    pipe = make_pipe(torch.device("cpu") if cpu else torch.device(str(state.device)))
    pipe.set_progress_bar_config(disable=True)
    todo: list[Any] = [None]
    if state.is_main_process:
        _begin(plan, pipe, out)
        side = _side(plan, pipe)
        todo = [[g for g in plan.groups if not all(is_whole_png(_image(out, plan, i), side) for i in g)]]
    if state.num_processes > 1:
        broadcast_object_list(todo)
    mine = todo[0][state.process_index :: state.num_processes]
    done = plan.count - sum(len(group) for group in todo[0])
    bar = tqdm(total=plan.count, initial=done, unit="image", disable=None if state.is_main_process else True)
    for group in mine:
        _draw(plan, pipe, out, group)
        bar.update(min(len(group) * state.num_processes, plan.count - bar.n))
    bar.close()
    state.wait_for_everyone()
    manifest = _finish(plan, out) if state.is_main_process else {}
    state.wait_for_everyone()
    return manifest


def _side(plan: Plan, pipe: Any) -> int:
    """Pixels along one side of the images to come."""
    size = plan.law.get("image_size") or pipe.preset.choose(plan.preset).image_size
    return size or pipe.transformer.spec.columns * pipe.tokenizer.config.factor


def _image(out: Path, plan: Plan, index: int) -> Path:
    return out / "images" / plan.name(index)


def _begin(plan: Plan, pipe: Any, out: Path) -> None:
    manifest = out / "manifest.json"
    now = {"plan": plan.json(), "weights": fingerprint(pipe)}
    if manifest.exists():
        before = load(manifest).json() | {"weights": json.loads(manifest.read_text()).get("weights")}
        after = now["plan"] | {"weights": now["weights"]}
        if other := [key for key in after if before.get(key) != after[key]]:
            changed = ", ".join(f"{key} {before.get(key)!r} instead of {after[key]!r}" for key in other)
            raise ValueError(f"{out} holds another run: {changed}")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run: name a new folder")
    for folder in (out / "images", out / "traces"):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*"):  # of a process that was killed while it wrote
            leftover.unlink()
    now |= {"complete": False, "versions": versions(pipe.transformer.device)}
    write_atomically(manifest, lambda path: path.write_text(json.dumps(now, indent=2) + "\n"))


def fingerprint(pipe: Any) -> str:
    """A digest that tells weights apart: the first values of every tensor of the transformer and the tokenizer."""
    digest = hashlib.sha256()
    for part in (pipe.transformer, pipe.tokenizer):
        for key, value in part.state_dict().items():
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _draw(plan: Plan, pipe: Any, out: Path, group: range) -> None:
    drawn = pipe(**plan.arguments(group), batch_size=len(group))
    trace = json.loads(drawn.trace.json())
    kept = {key: trace[key] for key in ("images", "forwards_per_image", "seconds", "peak_memory_bytes")}
    try:
        for index, image in zip(group, drawn.images, strict=True):
            save_png(_image(out, plan, index), image, plan.texts(index))
        write_atomically(_trace(out, group.start), lambda path: path.write_text(json.dumps(kept) + "\n"))
    except OSError as error:
        there = len(list((out / "images").glob("*.png")))
        raise ValueError(f"cannot write to {out} ({error.strerror}); {there} images are there and kept") from None


def _trace(out: Path, start: int) -> Path:
    return out / "traces" / f"{start:06d}.json"


def _finish(plan: Plan, out: Path) -> dict[str, Any]:
    """Check that all is there, and write checksums and totals."""
    check(plan, out)
    sums = [(hashlib.sha256(_image(out, plan, i).read_bytes()).hexdigest(), plan.name(i)) for i in range(plan.count)]
    listing = "".join(f"{digest}  {name}\n" for digest, name in sums)
    write_atomically(out / "images" / "SHA256SUMS", lambda path: path.write_text(listing))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest |= {"complete": True, "checksum": hashlib.sha256(listing.encode()).hexdigest(), **totals(plan, out)}
    write_atomically(out / "manifest.json", lambda path: path.write_text(json.dumps(manifest, indent=2) + "\n"))
    return manifest


def check(plan: Plan, out: Path) -> None:
    """ValueError names the images that a run lacks."""
    if missing := [plan.name(i) for i in range(plan.count) if not _image(out, plan, i).is_file()]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"{out} lacks {', '.join(missing[:5])}{more}: run the same command again")


def totals(plan: Plan, out: Path) -> dict[str, Any]:
    """Forwards per image and seconds of all groups, from their traces."""
    traces = []
    for group in plan.groups:
        try:
            traces.append(json.loads(_trace(out, group.start).read_text()))
        except (OSError, ValueError):
            continue  # what it took is not known; the images are what counts
    known = sum(trace["images"] for trace in traces)
    seconds = sum(trace["seconds"]["total"] for trace in traces)
    forwards = sum(trace["forwards_per_image"] * trace["images"] for trace in traces) / max(known, 1)
    return {"traced_images": known, "seconds_sampling": seconds, "forwards_per_image": forwards}
