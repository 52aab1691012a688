"""Sampling runs: many images into a folder, by any number of processes, through any number of interruptions.

    DIR/images/000000.png ...   written whole or not at all; those that are there are not drawn again
    DIR/traces/000000.json ...  what each group of images took
    DIR/manifest.json           plan, versions, weights, and at the end checksums and totals

Processes are accelerate's (`torchrun`, `accelerate launch`), on one machine or on many with a shared folder. On a CPU
each uses one thread, since the last bits of a product depend on their number: start as many processes as there are
cores.
"""

import atexit
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from vargen.core import safe_json
from vargen.core.atomic import locked, write_atomically, write_json
from vargen.core.messages import quoted
from vargen.core.png import save_picture
from vargen.eval.images import is_whole_png
from vargen.eval.plan import Plan, load, read_manifest
from vargen.pipelines.drawn import fingerprint
from vargen.pipelines.loading import find_device

STALE_SECONDS = 3600  # after which a half-written file is nobody's


def sample(
    plan: Plan, make_pipe: Callable[[torch.device], Any], out: Path, *, device: str | None = None
) -> dict[str, Any]:
    """Draw what is missing of `plan` into `out` and return the manifest. The folder may hold a part of the same run.

    ValueError where it holds another run, or where a file cannot be written; what was drawn stays. Of many processes
    the first one has the manifest, and says what is refused; the others return an empty one.
    """
    where = find_device(device)
    state = PartialState(cpu=where.type == "cpu", timeout=timedelta(days=30))  # some wait long for the slowest
    if state.num_processes > 1:
        atexit.register(state.destroy_process_group)  # else its threads may abort a process that ends
        where = where if where.type == "cpu" else torch.device(str(state.device))
    threads = torch.get_num_threads()
    if where.type == "cpu":
        torch.set_num_threads(1)
    try:
        return _sample(plan, make_pipe(where), out, state)
    finally:
        torch.set_num_threads(threads)


def _sample(plan: Plan, pipe: Any, out: Path, state: PartialState) -> dict[str, Any]:
    pipe.set_progress_bar_config(disable=True)
    todo: list[Any] = [None]
    refused: Exception | None = None
    if state.is_main_process:
        try:
            todo = [_begin(plan, pipe, out)]
        except (ValueError, OSError) as error:
            refused = error  # raised when the others have heard: they would wait for what never comes
    if state.num_processes > 1:
        broadcast_object_list(todo)
    if todo[0] is None:
        state.wait_for_everyone()  # all have heard before one leaves
    if refused is not None:
        raise refused
    if todo[0] is None:
        return {}
    mine = todo[0][state.process_index :: state.num_processes]
    done = plan.count - sum(len(group) for group in todo[0])
    bar = tqdm(total=plan.count, initial=done, unit="image", disable=None if state.is_main_process else True)
    for group in mine:
        _draw(plan, pipe, out, group)
        bar.update(min(len(group) * state.num_processes, plan.count - bar.n))
    bar.close()
    state.wait_for_everyone()
    manifest = _finish(plan, pipe, out) if state.is_main_process else {}
    state.wait_for_everyone()
    return manifest


def _is_right(out: Path, plan: Plan, index: int, side: int, sums: dict[str, str]) -> bool:
    """Whether an image is there, whole, and the one whose checksum was taken, if one was."""
    path = _image(out, plan, index)
    return is_whole_png(path, side) and (path.name not in sums or sums[path.name] == _sha256(path))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_sums(out: Path) -> dict[str, str]:
    """Checksum by file name, of a run that was finished once."""
    path = out / "images" / "SHA256SUMS"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _side(plan: Plan, pipe: Any) -> int:
    """Pixels along one side of the images to come."""
    size = plan.law.get("image_size") or pipe.preset.choose(plan.preset).image_size
    return size or pipe.pixels


def _image(out: Path, plan: Plan, index: int) -> Path:
    return out / "images" / plan.name(index)


def _begin(plan: Plan, pipe: Any, out: Path) -> list[range]:
    """Make the folder this run's, and find the groups that are still to be drawn."""
    now = {"plan": plan.json(), "weights": fingerprint(pipe, plan.method, plan.preset)}
    _check_kind(out)  # before a lock is put there
    with locked(out / ".manifest.lock"):
        _claim(now, pipe, out)
    for folder in (out / "images", out / "traces"):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*"):  # of a process that was killed while it wrote, long ago
            with suppress(FileNotFoundError):  # another process of this run was quicker
                if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                    leftover.unlink()
    side, sums = _side(plan, pipe), _read_sums(out)
    return [group for group in plan.groups if not all(_is_right(out, plan, i, side, sums) for i in group)]


def _check_kind(out: Path) -> None:
    """ValueError where a folder has things in it and holds no run."""
    held = out.exists() and any(not path.name.startswith(".manifest") for path in out.iterdir())
    if held and not (out / "manifest.json").exists():
        raise ValueError(f"{out} is not empty and holds no run: name a new folder")


def _claim(now: dict[str, Any], pipe: Any, out: Path) -> None:
    """Write the manifest, of a folder that has none; the images come after it, so that a run that was killed here can
    be taken up again. ValueError where it is another run's.
    """
    path = out / "manifest.json"
    if path.exists():
        before = _read_manifest(path)
        found = load(path).json() | {"weights": before.get("weights")}
        after = now["plan"] | {"weights": now["weights"]}
        if other := [key for key in after if found.get(key) != after[key]]:
            changed = ", ".join(f"{key} {quoted(found.get(key))} instead of {quoted(after[key])}" for key in other)
            raise ValueError(f"{out} holds another run: {changed}; give another --out, or delete that folder first")
    else:
        _check_kind(out)
        _write_manifest(out, now | {"complete": False, "versions": [pipe.versions]})


def _read_manifest(path: Path) -> dict[str, Any]:
    load(path)
    return read_manifest(path)


def _write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    write_json(out / "manifest.json", manifest)


def _draw(plan: Plan, pipe: Any, out: Path, group: range) -> None:
    drawn = pipe(**plan.arguments(group), batch_size=len(group))
    trace = json.loads(drawn.trace.json())
    kept = {key: trace[key] for key in ("images", "forwards_per_image", "seconds")}
    try:
        for index, image in zip(group, drawn.images, strict=True):
            save_picture(_image(out, plan, index), image, plan.texts(index))
        write_json(_trace(out, group.start), kept)
    except OSError as error:
        there = len(list((out / "images").glob("*.png")))
        raise ValueError(f"cannot write to {out} ({error.strerror}); {there} images are there and kept") from None


def _trace(out: Path, start: int) -> Path:
    return out / "traces" / f"{start:06d}.json"


def _finish(plan: Plan, pipe: Any, out: Path) -> dict[str, Any]:
    """Check that all is there, and write checksums and totals, unless they are written already."""
    missing(plan, out)
    lines = [f"{_sha256(_image(out, plan, i))}  {plan.name(i)}\n" for i in range(plan.count)]
    listing, manifest = "".join(lines), _read_manifest(out / "manifest.json")
    checksum, here = hashlib.sha256(listing.encode()).hexdigest(), pipe.versions
    if manifest.get("complete") and manifest.get("checksum") == checksum:
        return manifest
    write_atomically(out / "images" / "SHA256SUMS", lambda path: path.write_text(listing, encoding="utf-8"))
    known = manifest["versions"] if isinstance(manifest.get("versions"), list) else []
    manifest |= {"versions": known if here in known else [*known, here]}
    manifest |= {"complete": True, "checksum": checksum, **totals(plan, out)}
    _write_manifest(out, manifest)
    return manifest


def check(plan: Plan, out: Path) -> dict[str, Any]:
    """The manifest of a finished run. ValueError names images that it lacks, or that are not those it drew."""
    missing(plan, out)
    manifest, sums = _read_manifest(out / "manifest.json"), _read_sums(out)
    if not manifest.get("complete"):
        raise ValueError(f"{out} is not finished: run the same command again")
    if wrong := [plan.name(i) for i in range(plan.count) if sums.get(plan.name(i)) != _sha256(_image(out, plan, i))]:
        names = ", ".join(wrong[:5])
        raise ValueError(f"{out} has other images than it drew, {names}: run the same command again")
    return manifest


def missing(plan: Plan, out: Path) -> None:
    """ValueError names the images that a run lacks."""
    if lacking := [plan.name(i) for i in range(plan.count) if not _image(out, plan, i).is_file()]:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise ValueError(f"{out} lacks {', '.join(lacking[:5])}{more}: run the same command again")


def totals(plan: Plan, out: Path) -> dict[str, Any]:
    """Forwards per image and seconds, from the traces of the groups; None where no trace is left."""
    rows = []
    for group in plan.groups:
        try:
            trace = safe_json.read(_trace(out, group.start))
            count, forwards = int(trace["images"]), float(trace["forwards_per_image"])
            rows.append((count, forwards, float(trace["seconds"]["total"])))
        except (OSError, ValueError, TypeError, LookupError):
            continue  # what it took is not known; the images are what counts
    known = sum(count for count, _, _ in rows)
    if known == 0:
        return {"traced_images": 0, "seconds_sampling": None, "forwards_per_image": None}
    forwards = sum(count * forwards for count, forwards, _ in rows) / known
    return {"traced_images": known, "seconds_sampling": sum(s for _, _, s in rows), "forwards_per_image": forwards}
