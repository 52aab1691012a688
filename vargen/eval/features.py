"""Feature extractors: what turns pictures into the numbers that are compared.

`pocket` needs nothing but this package. `inception` is torch-fidelity's port of the TensorFlow network that every
published FID rests on. `clip` is a CLIP image encoder, for FID-CLIP (arXiv 2203.06026).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vargen.core import weight_files
from vargen.core.messages import first_line
from vargen.eval.images import Images
from vargen.eval.metrics import Array

INCEPTION_HASH = "6726825d"  # the published weights' name ends in these first digits of their SHA-256
SPATIAL = 7  # channels of the spatial features, as in the ADM evaluation


@dataclass(frozen=True)
class Extractor:
    """`run` maps uint8 (B, 3, H, W) to `pooled` (B, D), and to `logits` (B, classes), `spatial` (B, S) if there are."""

    name: str
    run: Callable[[Tensor], dict[str, Tensor]]
    device: torch.device


def pocket(device: torch.device) -> Extractor:
    """The classifier of pocket scenes that ships: 128 features, 10 logits, 7 channels of its third level."""
    from vargen.models import pocket as shipped
    from vargen.models.classifier import Classifier

    model = shipped.load("pocket-classifier", device=device)
    assert isinstance(model, Classifier)

    def run(images: Tensor) -> dict[str, Tensor]:
        maps = model.maps(images.float() / 127.5 - 1)
        pooled = maps[-1].mean((-1, -2))
        spatial = F.adaptive_avg_pool2d(maps[2][:, :SPATIAL], 8).permute(0, 2, 3, 1).flatten(1)  # as it is at 64x64
        return {"pooled": pooled, "logits": model.head(pooled), "spatial": spatial}

    return Extractor("pocket-classifier", run, device)


def inception(device: torch.device, weights: Path | None = None) -> Extractor:
    """torch-fidelity's Inception: 2048 features, logits without bias, 7 channels of `mixed_6/conv` for sFID.

    `weights` is the published file; without it, torch's cache is used, and filled by a download. ValueError where the
    file is not the published one (by its hash).
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError("Inception features need torch-fidelity: pip install 'vargen[eval]'") from None
    if weights is None:
        weights = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
        if not weights.exists():
            _download(URL_INCEPTION_V3, weights)
    if not weights.is_file():
        raise ValueError(f"no weights file {weights}")
    found = _sha256(weights)
    if not found.startswith(INCEPTION_HASH):
        raise ValueError(
            f"{weights} is not torch-fidelity's Inception: its SHA-256 begins {found[:8]}, not {INCEPTION_HASH}"
        )
    weight_files.read(weights)  # nothing but tensors in it: torch-fidelity would unpickle whatever there is
    model = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(weights)).to(device)
    return Extractor(f"torch-fidelity Inception {INCEPTION_HASH}", inception_run(model), device)


def inception_run(model: Any) -> Callable[[Tensor], dict[str, Tensor]]:
    """`Extractor.run` of a torch-fidelity Inception."""
    kept: list[Tensor] = []
    model.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: kept.append(output[:, :SPATIAL]))

    def run(images: Tensor) -> dict[str, Tensor]:
        kept.clear()
        pooled, logits = model(images)
        return {"pooled": pooled, "logits": logits, "spatial": kept[0].permute(0, 2, 3, 1).flatten(1)}

    return run


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_HASH)
    except Exception as error:  # the network's many complaints, all with the same remedy
        why = first_line(error)
        raise ValueError(f"cannot download Inception's weights ({why}): name a local copy instead") from None


def clip(device: torch.device, source: str) -> Extractor:
    """A CLIP image encoder from a folder or repository: its image embeddings, unnormalised."""
    from vargen.eval.clip import load

    model, processor = load(source, device)

    def run(images: Tensor) -> dict[str, Tensor]:
        pixels = processor(images=list(images.cpu()), return_tensors="pt")["pixel_values"]
        return {"pooled": model.get_image_features(pixels.to(device))}

    return Extractor(f"CLIP {source}", run, device)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stored:
    """Rows (N, D) float32 in a file: appended in order, read in parts, never held as a whole."""

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._width, self._count = path, width, 0

    @property
    def shape(self) -> tuple[int, int]:
        return (self._count, self._width)

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Array) -> None:
        """Add rows (n, D) at the end."""
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self._count += len(rows)

    def __getitem__(self, index: Any) -> Array:
        # Mapped anew each time: what was read is given back with the map.
        return np.array(np.memmap(self._path, np.float32, mode="r", shape=self.shape)[index])


@torch.inference_mode()
def extract(
    images: Images, extractor: Extractor, folder: Path, *, batch: int = 64, digest: Any = None
) -> dict[str, Stored]:
    """Features of all images, in order, on disk in `folder`: memory stays flat. `digest` takes the pixels in."""
    out: dict[str, Stored] = {}
    bar = tqdm(total=images.count, unit="image", desc=extractor.name, disable=None, leave=False)
    for pixels in images.batches(batch):
        if digest is not None:
            digest.update(pixels.tobytes())
        tensor = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).to(extractor.device)
        for name, value in extractor.run(tensor).items():
            if name not in out:
                out[name] = Stored(folder / name, value.shape[1])
            rows = value.float().cpu().numpy()
            if not np.isfinite(rows).all():
                raise ValueError(f"the features of {images.name} are not all finite: its extractor failed")
            out[name].append(rows)
        bar.update(len(pixels))
    bar.close()
    return out
