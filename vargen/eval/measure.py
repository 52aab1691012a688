"""From a set of images to figures that say what they are: FID, sFID, IS, KID, precision, recall, class agreement."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vargen.eval import metrics
from vargen.eval.features import Extractor, extract
from vargen.eval.images import Images, npz_shapes, open_images
from vargen.eval.metrics import Frechet, Gaussian, Rows
from vargen.scenes import CLASSES
from vargen.training.data import HELD_OUT, scenes

ENOUGH = 10_000  # images below which a Fréchet distance is mostly bias
POCKET_REFERENCE = 5_000  # held-out scenes


@dataclass(frozen=True)
class Reference:
    """What images are compared with. Statistics alone give no KID, precision and recall."""

    name: str
    gaussian: Gaussian
    spatial: Gaussian | None = None
    features: Rows | None = None
    count: int | None = None
    size: tuple[int, int] | None = None
    digest: str = ""  # SHA-256 of its file, or of its statistics where it is made of many
    settled: bool = False  # whether its Gaussian is the one that is meant, and not that of so many images


@contextmanager
def reference(path: Path | None, extractor: Extractor, cache: Path) -> Iterator[Reference]:
    """A folder or npz of images, an npz of statistics (`mu`, `sigma`, `mu_s`, `sigma_s`), or None: pocket scenes.

    ValueError where it is neither, or damaged. An ADM reference file holds both images and statistics: the statistics
    are used, and the images for what needs them.
    """
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            yield replace(_of_images(pocket_scenes(cache), extractor, Path(folder)), settled=True)
            return
        if path.suffix == ".npz" and "mu" in npz_shapes(path):
            yield _of_statistics(path, extractor, Path(folder))
            return
        yield _of_images(open_images(path), extractor, Path(folder))


def pocket_scenes(cache: Path, count: int = POCKET_REFERENCE) -> Images:
    """Held-out scenes, painted once and kept in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    data = scenes(cache, count, HELD_OUT)
    return Images(f"{count} held-out pocket scenes", count, data.shape[1:3], lambda a, b: np.array(data[a:b]))


def _of_images(images: Images, extractor: Extractor, folder: Path) -> Reference:
    found = extract(images, extractor, folder)
    gaussian = metrics.moments(found["pooled"]).gaussian()
    spatial = metrics.moments(found["spatial"]).gaussian() if "spatial" in found else None
    digest = hashlib.sha256(gaussian.mu.tobytes() + gaussian.sigma.tobytes()).hexdigest()
    return Reference(images.name, gaussian, spatial, found["pooled"], images.count, images.size, digest)


def _of_statistics(path: Path, extractor: Extractor, folder: Path) -> Reference:
    shapes = npz_shapes(path)
    wanted = [("mu", "sigma")] + ([("mu_s", "sigma_s")] if "mu_s" in shapes else [])
    try:
        with np.load(path, allow_pickle=False) as file:
            found = [Gaussian(*(np.asarray(file[key], dtype=np.float64) for key in pair)) for pair in wanted]
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"the statistics {path} are damaged: {error}") from None
    features = count = size = None
    if "arr_0" in shapes:
        images = open_images(path)
        features, count, size = extract(images, extractor, folder)["pooled"], images.count, images.size
    spatial = found[1] if len(found) > 1 else None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Reference(f"statistics {path.name}", found[0], spatial, features, count, size, digest, True)


def measure(
    images: Images,
    extractor: Extractor,
    against: Reference,
    *,
    labels: list[int] | None = None,
    resized: str = "not resized",
) -> dict[str, Any]:
    """All figures of `images`; `labels` (N,) are the classes that were asked for. The result names what it rests on."""
    with tempfile.TemporaryDirectory() as folder:
        found = extract(images, extractor, Path(folder))
        pooled = found["pooled"]
        distance = Frechet(against.gaussian)
        fid, error = distance(metrics.moments(pooled).gaussian()), metrics.jackknife(pooled, distance)
        out: dict[str, Any] = {
            "description": f"{extractor.name}, {against.name}, {images.count:,} images, {resized}, rounded to uint8",
            "images": images.count,
            "features": extractor.name,
            "reference": against.name,
            "reference_sha256": against.digest,
            "fid": fid,
            "fid_standard_error": error,
            "fid_interval": [fid - 1.96 * error, fid + 1.96 * error],
        }
        if "spatial" in found and against.spatial is not None:
            out["sfid"] = Frechet(against.spatial)(metrics.moments(found["spatial"]).gaussian())
        if "logits" in found:
            splits = min(10, images.count)
            out["inception_score"], out["inception_score_std"] = metrics.inception_score(found["logits"], splits=splits)
        if against.features is not None:
            device = str(extractor.device)
            out["precision"], out["recall"] = metrics.precision_recall(pooled, against.features, device=device)
            out["kid"], out["kid_std"] = metrics.kid(pooled, against.features)
        guesses = found["logits"][:].argmax(1) if "logits" in found else None
        if labels is not None and guesses is not None and found["logits"].shape[1] == len(CLASSES):
            out["class_agreement"] = float((guesses == np.array(labels)).mean())
        out["warnings"] = warnings(images, against, guesses)
    return out


def warnings(images: Images, against: Reference, guesses: Any) -> list[str]:
    """What makes the figures hard to compare with others."""
    out = []
    if images.count < ENOUGH:
        out.append(f"{images.count:,} images: a Fréchet distance is biased upwards below {ENOUGH:,}")
    if against.count is not None and against.count < ENOUGH and not against.settled:
        out.append(f"the reference has {against.count:,} images, fewer than {ENOUGH:,}")
    elif against.count == ENOUGH and not against.settled:
        out.append(
            f"the reference is {ENOUGH:,} images: if it is a sample of ImageNet, published FIDs are against statistics "
            "of the whole training set (mu and sigma in the ADM reference file), not against these"
        )
    if against.size is not None and against.size != images.size:
        out.append(f"the reference has {_pixels(against.size)} pixels, the images {_pixels(images.size)}")
    if guesses is not None and len(guesses) > 1:
        by_chance = np.square(np.bincount(guesses) / len(guesses)).sum()
        if (guesses[1:] == guesses[:-1]).mean() > (1 + by_chance) / 2 and by_chance < 1:
            out.append("the images look sorted by class: split scores of other tools will be wrong (these shuffle)")
    return out


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
