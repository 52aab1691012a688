"""What `vargen evaluate` does: a function for each of its commands."""

import argparse
from pathlib import Path
from typing import Any

import torch

from vargen.commands import flags
from vargen.core import registry
from vargen.core.atomic import check_writable, write_json
from vargen.core.preset import Preset
from vargen.eval import captions, clip, features, plan, prompts, report, runs
from vargen.eval.images import Images, open_images, pack
from vargen.eval.measure import measure, reference
from vargen.pipelines import values
from vargen.pipelines.loading import find_device, usual_dtype
from vargen.scenes import CLASSES, dataset

PUBLISHED = 50_000  # images that published FIDs rest on
MOST_CAPTIONS = 100_000  # of painted scenes: five minutes


def make_plan(options: argparse.Namespace) -> plan.Plan:
    """The plan that the flags ask for. ValueError where they do not say how many images: it says what the usual number
    would cost.
    """
    count = options.num_images
    found = [prompt.text for prompt in prompts.read(options.prompts)] if options.prompts else []
    preset = flags.preset(options)
    if preset.scenes and not preset.classes and not options.prompts:
        found = dataset.captions(values.whole(count or 1, "number of images", least=1, most=MOST_CAPTIONS))
    law = flags.law(options) | {"image_size": options.image_size}
    made = plan.make(
        preset,
        options.method,
        PUBLISHED if count is None else count,
        recipe=law.pop("preset"),
        law=law,
        prompts=tuple(found),
        seed=options.seed,
        batch_size=options.batch_size,
        dtype=options.dtype or str(usual_dtype(find_device(options.device))).removeprefix("torch."),
        quantize=options.quantize or "",
    )
    if count is None:
        raise ValueError(f"got no --num-images: {cost(made, preset)}; 1,000 are enough to compare methods")
    return made


def cost(wanted: plan.Plan, preset: Preset) -> str:
    """What a run would take, in words."""
    batches = -(-wanted.count // wanted.batch_size)
    said = f"{wanted.count:,}, as of published FIDs, are {batches:,} batches of {wanted.batch_size} by {wanted.method}"
    if preset.spec is not None and preset.kind == "raster":
        said += f", of up to {preset.spec.slots:,} forwards each"
    return f"{said}, and as many files as images"


def sample(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Draw what is missing of a run; its folder and manifest."""
    wanted = make_plan(options)
    flags.check_memory(options, wanted.method, wanted.count)
    out = options.out or Path("out/evaluation") / f"{wanted.model}-{wanted.method.replace(':', '-')}"

    def pipe(device: torch.device) -> Any:
        return flags.load(argparse.Namespace(**{**vars(options), "device": str(device), "dtype": wanted.dtype}))

    try:
        manifest = runs.sample(wanted, pipe, out, device=options.device)
    except KeyboardInterrupt:
        there = len(list((out / "images").glob("[0-9]*.png")))
        words = [f"{there} of {wanted.count} images are in {out}, and the same command goes on"] if there else []
        raise KeyboardInterrupt(*words) from None
    if manifest:
        forwards = manifest["forwards_per_image"]
        print(f"{out}: {wanted.count} images, {'?' if forwards is None else f'{forwards:.1f}'} forwards per image")
    return out, manifest


def open_set(path: Path) -> tuple[Images, plan.Plan | None, dict[str, Any]]:
    """The images of a run, of which none may be missing, or of any folder or npz; plan and manifest of a run."""
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return open_images(path), None, {}
    wanted = plan.load(manifest)
    found = runs.check(wanted, path)
    images = open_images(path / "images")
    if images.count != wanted.count:
        raise ValueError(f"{path / 'images'} holds {images.count} images, expected the {wanted.count} of its manifest")
    return images, wanted, found


def extractor(options: argparse.Namespace, device: torch.device) -> features.Extractor:
    """The feature extractor that the flags ask for."""
    if options.features == "inception":
        return features.inception(device, options.inception_weights)
    return features.clip(device, options.clip) if options.features == "clip" else features.pocket(device)


def measure_one(options: argparse.Namespace) -> None:
    """Measure a run, folder or npz."""
    check_measuring(options)
    images, wanted, manifest = open_set(options.images)
    preset = registry.preset(wanted.model) if wanted and wanted.model in registry.MODELS else None
    made, how, labels = extractor(options, find_device(options.device)), "as found", None
    if wanted:
        check_writable([options.images / "result.json"])
        how = "rounded to uint8"
        if side := wanted.law.get("image_size") or (preset and preset.choose(wanted.preset).image_size):
            how = f"bicubic to {side}, {how}"
        if options.features == "pocket" and tuple(preset.names() if preset else ()) == tuple(CLASSES)[: wanted.classes]:
            labels = [wanted.label(i) for i in range(wanted.count)]
    with reference(options.reference, made, options.cache) as against:
        result = measure(images, made, against, labels=labels, how=how)
        result["warnings"] += reference_warnings(options, against.digest, images.size)
        published = preset.choose(wanted.preset).published if preset and wanted else {}
        if wanted and is_published_setting(options, wanted, against.settled) and "fid" in published:
            result["published_fid"] = published["fid"]
    if wanted:
        keys = ("seconds_sampling", "forwards_per_image", "traced_images", "plan", "versions", "weights", "checksum")
        result |= {key: manifest.get(key) for key in keys}
        if options.clip and wanted.prompts:
            texts = [wanted.prompt(i) for i in range(wanted.count)]
            result["clip_score"] = clip.score(images, texts, options.clip, made.device)
        if preset and preset.scenes and wanted.prompts and all(map(captions.understood, wanted.prompts)):
            texts = [wanted.prompt(i) for i in range(wanted.count)]
            result["caption_agreement"] = captions.agreement(images, texts, made.device)
    interval = "no interval"
    if result["fid_interval"]:
        interval = "95% interval {:.4f} to {:.4f}".format(*result["fid_interval"])
    fid = "none" if result["fid"] is None else f"{result['fid']:.4f}"
    print(f"FID {fid} ({interval}): {result['description']}")
    for warning in result["warnings"]:
        print(f"warning: {warning}")
    for path in [options.json, options.images / "result.json" if wanted else None]:
        if path:
            write_json(path, result)


def check_measuring(options: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is drawn or read."""
    if options.features == "clip" and not options.clip:
        raise ValueError("--features clip needs --clip: the folder or repository of a CLIP model")
    if options.features != "pocket" and options.reference is None:
        raise ValueError(f"--features {options.features} needs a --reference: only pocket features have one built in")
    if options.reference is not None and not options.reference.exists():
        raise ValueError(f"there is no reference {options.reference}")
    if options.json:
        check_writable([options.json])


def reference_warnings(options: argparse.Namespace, digest: str, size: tuple[int, int]) -> list[str]:
    """What is wrong with the reference or the features for these images."""
    out = []
    if options.reference_sha256 and not digest.startswith(options.reference_sha256.lower()):
        out.append(f"the reference is not the one that was named: its SHA-256 is {digest}")
    if options.features == "pocket" and size != (64, 64):
        out.append(f"pocket features are made for scenes of 64x64 pixels, these images are {size[1]}x{size[0]}")
    return out


def is_published_setting(options: argparse.Namespace, wanted: plan.Plan, settled: bool) -> bool:
    """Whether a published FID may stand beside this one: 50,000 images of the unchanged recipe, against statistics.

    Of next-scale models, only where the method is the one that was measured.
    """
    preset = registry.preset(wanted.model)
    same = not wanted.quantize and (preset.kind == "raster" or wanted.method == preset.method)
    return options.features == "inception" and settled and wanted.count == 50_000 and not wanted.law and same


def run_all(options: argparse.Namespace) -> None:
    """Draw and measure; with many processes the first one measures."""
    check_measuring(options)
    extractor(options, torch.device("cpu"))  # may lack its weights: better known now
    options.images, manifest = sample(options)
    if manifest:
        measure_one(options)


def pack_run(options: argparse.Namespace) -> None:
    """Pack a run, folder or npz."""
    images, wanted, _ = open_set(options.images)
    labels = [wanted.label(i) for i in range(wanted.count)] if wanted and wanted.classes else None
    pack(images, options.out, labels)
    print(f"{options.out}: arr_0 {(images.count, *images.size, 3)} uint8")


def export_run(options: argparse.Namespace) -> None:
    """Lay a text-to-image run out for a benchmark."""
    _, wanted, _ = open_set(options.run)
    found = prompts.read(options.prompts)
    if wanted is None or list(wanted.prompts) != [prompt.text for prompt in found]:
        raise ValueError(f"{options.run} is no run of the prompts in {options.prompts}")
    paths = [options.run / "images" / wanted.name(i) for i in range(wanted.count)]
    prompts.export(paths, found, options.layout, options.out)


def report_all(options: argparse.Namespace) -> None:
    """Table and plots."""
    rows = report.load(options.folders)
    if options.seconds:
        rows = report.timed(rows, options.seconds)
    report.write(rows, options.out)
    print(report.markdown(rows))
