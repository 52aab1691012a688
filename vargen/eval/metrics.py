"""Distances between sets of images, from their features, in float64.

FID (arXiv 1706.08500), Inception Score (1606.03498), KID (1801.01401), improved precision and recall (1904.06991).
Conventions are torch-fidelity's: covariances over n - 1, Inception Score and KID over a permutation and subsets from
one fixed seed. Features are numpy arrays or `Rows` on disk, of which only a part is ever held.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.floating]


class Rows(Protocol):
    """An (N, D) array, or what can be read like one: in slices of rows, and by sorted indices of rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Array: ...


SEED = 2020  # of the permutation and the subsets, as in torch-fidelity
CHUNK = 1024  # rows that are held in float64 at a time


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D)."""

    mu: Array
    sigma: Array

    def __post_init__(self) -> None:
        if self.mu.ndim != 1 or self.sigma.shape != (len(self.mu), len(self.mu)):
            raise ValueError(f"got a mean of shape {self.mu.shape} and a covariance of shape {self.sigma.shape}")
        if not np.isfinite(self.mu).all() or not np.isfinite(self.sigma).all():
            raise ValueError("got a mean or a covariance with numbers that are not finite")
        scale = max(np.abs(self.sigma).max(initial=0), 1e-12)
        if np.abs(self.sigma - self.sigma.T).max(initial=0) > 1e-5 * scale or self.sigma.diagonal().min(initial=0) < 0:
            raise ValueError("got a covariance that is none: not symmetric, or with a negative variance")


class Moments:
    """Count, mean and covariance of rows, gathered as they come; the first row is subtracted, for accuracy."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, rows: Rows) -> None:
        """Take rows (n, D) in."""
        for start in range(0, len(rows), CHUNK):
            part = np.asarray(rows[start : start + CHUNK], dtype=np.float64)
            if self.count == 0:
                self._shift, dim = part[0].copy(), part.shape[1]
                self._sum, self._outer = np.zeros(dim), np.zeros((dim, dim))
            part = part - self._shift
            self._sum += part.sum(0)
            self._outer += part.T @ part
            self.count += len(part)

    def without(self, rows: Array) -> "Moments":
        """The moments of all rows but these, which must have been taken in."""
        part = np.asarray(rows, dtype=np.float64) - self._shift
        out = Moments()
        out.count, out._shift = self.count - len(part), self._shift
        out._sum, out._outer = self._sum - part.sum(0), self._outer - part.T @ part
        return out

    def gaussian(self) -> Gaussian:
        """ValueError below two rows: they have no covariance."""
        if self.count < 2:
            raise ValueError(f"got {self.count} images, expected at least 2")
        mean = self._sum / self.count
        return Gaussian(self._shift + mean, (self._outer - self.count * np.outer(mean, mean)) / (self.count - 1))


def moments(rows: Rows) -> Moments:
    """The moments of rows (n, D)."""
    out = Moments()
    out.add(rows)
    return out


class Frechet:
    """Fréchet distance to one reference: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The trace of the root is taken from symmetric eigenproblems: with S2 = A A^T, S1 S2 has the eigenvalues of A^T S1 A.
    Of what is the reference itself it is 0; of what differs from it by rounding alone, some 1e-7 of the variances' sum
    or less. It is never negative.
    """

    def __init__(self, reference: Gaussian) -> None:
        values, vectors = np.linalg.eigh(reference.sigma.astype(np.float64))
        if values[0] < -1e-3 * max(values[-1], 1e-12):
            raise ValueError("got a covariance that is none: it has a negative eigenvalue")
        self._reference = reference
        self._root = vectors * np.sqrt(np.clip(values, 0, None))

    def __call__(self, other: Gaussian) -> float:
        """The distance of `other`. ValueError where it has another number of features."""
        ours, theirs = self._reference.mu, other.mu
        if ours.shape != theirs.shape:
            raise ValueError(f"got statistics of {len(theirs)} features, expected {len(ours)} as in the reference")
        if np.array_equal(ours, theirs) and np.array_equal(self._reference.sigma, other.sigma):
            return 0.0
        values = np.linalg.eigvalsh(self._root.T @ other.sigma @ self._root)
        root = np.sqrt(np.clip(values, 0, None)).sum()
        gap = ours - theirs
        return max(0.0, float(gap @ gap + np.trace(self._reference.sigma) + np.trace(other.sigma) - 2 * root))


def jackknife(features: Rows, distance: Frechet, *, blocks: int = 20) -> float:
    """Standard error of the Fréchet distance, from leaving out one of `blocks` random blocks of images at a time.

    A bootstrap would repeat images, which the Fréchet distance, biased in the number of images, takes for narrowness.
    """
    blocks = min(blocks, len(features))
    order, whole = np.random.RandomState(SEED).permutation(len(features)), moments(features)
    values = []
    for block in np.array_split(order, blocks):
        values.append(distance(whole.without(features[np.sort(block)]).gaussian()))
    return float(np.sqrt((blocks - 1) / blocks * np.square(np.array(values) - np.mean(values)).sum()))


def inception_score(logits: Rows, *, splits: int = 10) -> tuple[float, float]:
    """Mean and deviation over `splits` of exp E KL(p(y|x) || p(y)), images shuffled first: their order says nothing."""
    count = len(logits)
    if count < splits:
        raise ValueError(f"got {count} images for an Inception Score over {splits} splits")
    order, scores = np.random.RandomState(SEED).permutation(count), []
    for i in range(splits):
        rows = np.sort(order[i * count // splits : (i + 1) * count // splits])
        marginal, negentropy = np.zeros(logits.shape[1]), 0.0
        for start in range(0, len(rows), CHUNK):
            x = np.asarray(logits[rows[start : start + CHUNK]], dtype=np.float64)
            x = x - x.max(1, keepdims=True)
            log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
            marginal += np.exp(log_p).sum(0)
            negentropy += (np.exp(log_p) * log_p).sum()
        marginal /= len(rows)
        seen = marginal[marginal > 0]
        scores.append(np.exp(negentropy / len(rows) - (seen * np.log(seen)).sum()))
    return float(np.mean(scores)), float(np.std(scores))


def kid(ours: Rows, theirs: Rows, *, subsets: int = 100, size: int = 1000) -> tuple[float, float]:
    """Mean and deviation over random `subsets` of the unbiased squared MMD under the kernel (x.y / D + 1)^3."""
    if not 2 <= size <= min(len(ours), len(theirs)):
        raise ValueError(f"got {len(ours)} and {len(theirs)} images for KID over subsets of {size}, expected as many")
    random, values = np.random.RandomState(SEED), []
    for _ in range(subsets):
        x = np.asarray(ours[np.sort(random.choice(len(ours), size, replace=False))], dtype=np.float64)
        y = np.asarray(theirs[np.sort(random.choice(len(theirs), size, replace=False))], dtype=np.float64)
        within = [(_kernel(z, z).sum() - (np.square(z).sum(1) / z.shape[1] + 1).__pow__(3).sum()) for z in (x, y)]
        values.append(sum(within) / (size * (size - 1)) - 2 * _kernel(x, y).mean())
    return float(np.mean(values)), float(np.std(values))


def _kernel(x: Array, y: Array) -> Array:
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(ours: Rows, theirs: Rows, *, k: int = 3, device: str = "cpu") -> tuple[float, float]:
    """Share of our images within some reference image's distance to its k-th neighbour, and the same the other way."""
    if min(len(ours), len(theirs)) <= k:
        raise ValueError(f"got {len(ours)} and {len(theirs)} images for precision and recall, expected more than {k}")
    return _covered(ours, theirs, k, device), _covered(theirs, ours, k, device)


def _covered(points: Rows, centres: Rows, k: int, device: str) -> float:
    """Share of `points` in a ball around one of `centres` that reaches its k-th neighbour among them."""
    inside = np.zeros(len(points), dtype=bool)
    for start in range(0, len(centres), CHUNK):
        some = _rows(centres, start, device)
        near = torch.full((len(some), k + 1), torch.inf, dtype=torch.float64, device=device)  # itself included
        for other in range(0, len(centres), CHUNK):
            near = torch.cat([near, torch.cdist(some, _rows(centres, other, device))], 1)
            near = near.topk(k + 1, largest=False).values
        radius = near[:, -1]
        for first in range(0, len(points), CHUNK):
            within = (torch.cdist(_rows(points, first, device), some) <= radius).any(1)
            inside[first : first + CHUNK] |= within.cpu().numpy()
    return float(inside.mean())


def _rows(features: Rows, start: int, device: str) -> torch.Tensor:
    return torch.as_tensor(np.asarray(features[start : start + CHUNK], dtype=np.float64), device=device)
