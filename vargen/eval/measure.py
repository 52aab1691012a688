"""From a set of images to figures that say what they are: FID, sFID, IS, KID, precision, recall, class agreement."""

import hashlib
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vargen.core.atomic import write_atomically
from vargen.core.messages import first_line
from vargen.eval import metrics
from vargen.eval.features import Extractor, Stored, extract
from vargen.eval.images import DAMAGE, Images, npz_shapes, open_images
from vargen.eval.metrics import Frechet, Gaussian, Rows
from vargen.scenes.dataset import HELD_OUT, scenes

FIGURES = ("fid", "fid_standard_error", "fid_interval", "sfid", "inception_score", "inception_score_std")
FIGURES += ("precision", "recall", "kid", "kid_std", "kid_subset")
SPLITS = 10  # of the Inception Score; of a single image it is 1, whatever the image
FEWEST = 7  # images up to which precision, recall and KID say nothing
MOST_FEATURES = 8192  # of statistics that come in: their covariance is half a GiB
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
    digest: str = ""  # SHA-256 of a statistics file, or of all pixels
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
    """Held-out scenes, painted once and kept in `cache` beside their checksum; painted anew where that is wrong."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"scenes-{HELD_OUT}-{count}.npy"
    note = path.with_suffix(".sha256")
    if not (path.exists() and note.exists() and note.read_text(encoding="utf-8") == _sha256(path)):
        path.unlink(missing_ok=True)
        scenes(cache, count, HELD_OUT)
        write_atomically(note, lambda temporary: temporary.write_text(_sha256(path), encoding="utf-8"))
    data = scenes(cache, count, HELD_OUT)
    return Images(f"{count} held-out pocket scenes", count, data.shape[1:3], lambda a, b: np.array(data[a:b]))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_images(images: Images, extractor: Extractor, folder: Path) -> Reference:
    _check_count(images, "the reference")
    pixels = hashlib.sha256()
    found = extract(images, extractor, folder, digest=pixels)
    gaussian = metrics.moments(found["pooled"]).gaussian()
    spatial = metrics.moments(found["spatial"]).gaussian() if "spatial" in found else None
    digest = pixels.hexdigest()
    return Reference(images.name, gaussian, spatial, found["pooled"], images.count, images.size, digest)


def _of_statistics(path: Path, extractor: Extractor, folder: Path) -> Reference:
    shapes = npz_shapes(path)
    pairs = [("mu", "sigma")] + ([("mu_s", "sigma_s")] if "mu_s" in shapes else [])
    for mu, sigma in pairs:
        sizes = [shapes[key][0] if key in shapes else None for key in (mu, sigma)]
        if sizes[0] is None or len(sizes[0]) != 1 or sizes[1] != sizes[0] * 2 or sizes[0][0] > MOST_FEATURES:
            raise ValueError(
                f"the statistics {path} have {mu} {sizes[0]} and {sigma} {sizes[1]}, expected (D,) and (D, D)"
            )
        if not all(np.issubdtype(shapes[key][1], np.floating) for key in (mu, sigma)):
            raise ValueError(f"the statistics {path} are not floating-point numbers")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = [Gaussian(*(np.asarray(file[key], dtype=np.float64) for key in pair)) for pair in pairs]
    except DAMAGE as error:
        raise ValueError(f"the statistics {path} are damaged: {first_line(error)}") from None
    features = count = size = None
    if "arr_0" in shapes:
        images = open_images(path)
        features, count, size = extract(images, extractor, folder)["pooled"], images.count, images.size
    spatial = found[1] if len(found) > 1 else None
    return Reference(f"statistics {path.name}", found[0], spatial, features, count, size, _sha256(path), True)


def measure(
    images: Images,
    extractor: Extractor,
    against: Reference,
    *,
    labels: list[int] | None = None,
    how: str = "as found",
) -> dict[str, Any]:
    """All figures of `images`, and a description of what they rest on; `how` says how the pixels came about.

    With `labels` (N,) of pocket scenes, the share that the classifier agrees with. `fid_interval` is of sampling alone:
    the bias of a Fréchet distance from few images is not in it. Figures that cannot be had, or would say nothing, are
    None, with a warning. ValueError where there are fewer than two images.
    """
    _check_count(images, "these images")
    with tempfile.TemporaryDirectory() as folder:
        _probe(images, extractor, against)
        found = extract(images, extractor, Path(folder))
        out: dict[str, Any] = {
            "description": f"{extractor.name}, {against.name}, {images.count:,} images, {how}",
            "images": images.count,
            "features": extractor.name,
            "reference": against.name,
            "reference_sha256": against.digest,
            **dict.fromkeys(FIGURES),
            **_distances(found, against),
        }
        guesses = _guesses(found["logits"]) if "logits" in found else None
        if guesses is not None and images.count >= 2 * SPLITS:
            score = metrics.inception_score(found["logits"], splits=SPLITS)
            out["inception_score"], out["inception_score_std"] = score
        out |= _neighbours(found["pooled"], against.features, str(extractor.device))
        if labels is not None and guesses is not None:
            out["class_agreement"] = float((guesses == np.array(labels)).mean())
        lost = [key for key, value in out.items() if isinstance(value, float) and not math.isfinite(value)]
        out |= dict.fromkeys(lost)
        out["warnings"] = warnings(images, against, guesses) + [f"{key} is not finite: left out" for key in lost]
        if out["sfid"] is None and "sfid" not in lost:
            out["warnings"].append("no spatial statistics on both sides: no sFID")
    return out


def _guesses(logits: Stored) -> Any:
    """The likeliest class of each image, (N,)."""
    return np.concatenate([logits[i : i + 1024].argmax(1) for i in range(0, len(logits), 1024)])


def _check_count(images: Images, which: str) -> None:
    """ValueError where there are too few to have a covariance."""
    if images.count < 2:
        raise ValueError(f"got {images.count} image in {images.name} ({which}), expected at least 2")


def _distances(found: dict[str, Stored], against: Reference) -> dict[str, Any]:
    """FID with its error and interval, which two images do not have; and sFID, where both sides have what it wants."""
    distance, count = Frechet(against.gaussian), len(found["pooled"])
    fid = distance(metrics.moments(found["pooled"]).gaussian())
    out: dict[str, Any] = {"fid": fid}
    if count > 2 and math.isfinite(error := metrics.jackknife(found["pooled"], distance)):
        out |= {"fid_standard_error": error, "fid_interval": [fid - 1.96 * error, fid + 1.96 * error]}
    if "spatial" in found and against.spatial is not None:
        out["sfid"] = Frechet(against.spatial)(metrics.moments(found["spatial"]).gaussian())
    return out


def _neighbours(ours: Rows, theirs: Rows | None, device: str) -> dict[str, Any]:
    """Precision, recall and KID, where the reference has features and neither side too few of them."""
    if theirs is None or min(len(ours), len(theirs)) <= FEWEST:
        return {}
    precision, recall = metrics.precision_recall(ours, theirs, device=device)
    size = min(1000, len(ours) // 2, len(theirs) // 2)  # below all: subsets must differ
    kid, deviation = metrics.kid(ours, theirs, size=size)
    return {"precision": precision, "recall": recall, "kid": kid, "kid_std": deviation, "kid_subset": size}


def _probe(images: Images, extractor: Extractor, against: Reference) -> None:
    """ValueError where the features do not fit the reference, before all images are read."""
    pixels = torch.from_numpy(images.read(0, 1).copy()).permute(0, 3, 1, 2).to(extractor.device)
    with torch.inference_mode():
        found = extractor.run(pixels)
    for key, gaussian in (("pooled", against.gaussian), ("spatial", against.spatial)):
        if key in found and gaussian is not None and found[key].shape[1] != len(gaussian.mu):
            ours, theirs = found[key].shape[1], len(gaussian.mu)
            raise ValueError(f"{extractor.name} has {ours} {key} features, expected {theirs} as {against.name} has")


def warnings(images: Images, against: Reference, guesses: Any) -> list[str]:
    """What makes the figures hard to compare with others."""
    out = []
    if images.count < ENOUGH:
        out.append(f"{images.count:,} images: a Fréchet distance is biased upwards below {ENOUGH:,}")
    if images.count <= 2:
        out.append(f"{images.count} images are too few for a standard error and an interval: left out")
    out += _left_out(images.count, None if against.features is None else len(against.features))
    if guesses is None:
        out.append("these features have no classes: no Inception Score")
    elif images.count < 2 * SPLITS:
        out.append(f"{images.count} images are too few for an Inception Score over {SPLITS} splits: left out")
    elif images.count < 1000:
        out.append(f"an Inception Score over splits of {images.count} images is biased downwards")
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
        doubt = 6 * np.sqrt(by_chance * (1 - by_chance) / len(guesses))
        if (guesses[1:] == guesses[:-1]).mean() > by_chance + max(doubt, 0.05):
            out.append("the images look sorted by class: split scores of other tools will be wrong (these shuffle)")
    return out


def _left_out(ours: int, theirs: int | None) -> list[str]:
    """Why there is no precision, recall and KID: which of the two sets is too small."""
    if theirs is None:
        return ["the reference is statistics without images: no precision, recall and KID"]
    small = [f"{ours} images are"] if ours <= FEWEST else []
    small += [f"the reference's {theirs} images are"] if theirs <= FEWEST else []
    return [f"{which} too few for precision, recall and KID: left out" for which in small]


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
