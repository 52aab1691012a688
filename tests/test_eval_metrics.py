"""Metrics against torch-fidelity, torchmetrics, closed forms and slow loops, on features of one made-up extractor."""

import numpy as np
import pytest
import torch
from torch import nn

from vargen.eval import metrics
from vargen.eval.metrics import Frechet, Gaussian

RANDOM = np.random.RandomState(0)
MIX = RANDOM.randn(12, 12)


def features(count, shift=0.0, seed=1):
    """Correlated rows, float32, some of them near one another."""
    x = np.random.RandomState(seed).randn(count, 12) @ MIX * 0.5 + shift
    return x.astype(np.float32)


def fid(ours, theirs):
    return Frechet(metrics.moments(theirs).gaussian())(metrics.moments(ours).gaussian())


def test_moments_streamed_are_those_of_numpy():
    rows = features(5000, shift=1000.0)  # far from zero: sums of squares alone would lose their digits
    gathered = metrics.Moments()
    for start in range(0, 5000, 777):
        gathered.add(rows[start : start + 777])
    found = gathered.gaussian()
    np.testing.assert_allclose(found.mu, rows.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-9)
    rest = gathered.without(rows[100:200]).gaussian()
    left = np.delete(rows, np.s_[100:200], axis=0).astype(np.float64)
    np.testing.assert_allclose(rest.sigma, np.cov(left, rowvar=False), rtol=1e-9)


def test_frechet_of_gaussians_in_closed_form():
    """Diagonal covariances: the sum of squared differences of the deviations."""
    a, b = RANDOM.rand(9) + 0.1, RANDOM.rand(9) + 0.1
    mu, nu = RANDOM.randn(9), RANDOM.randn(9)
    expected = np.square(mu - nu).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert Frechet(Gaussian(mu, np.diag(a)))(Gaussian(nu, np.diag(b))) == pytest.approx(expected, rel=1e-12)


def test_frechet_against_scipy_s_root():
    from scipy.linalg import sqrtm

    s, t = np.cov(features(400).T), np.cov(features(300, seed=2).T)
    expected = np.trace(s + t - 2 * np.real(np.asarray(sqrtm(s @ t))))
    assert Frechet(Gaussian(np.zeros(12), s))(Gaussian(np.zeros(12), t)) == pytest.approx(expected, rel=1e-9)


def test_frechet_where_covariances_are_singular():
    s = np.diag([1.0, 0.0, 4.0])
    assert Frechet(Gaussian(np.zeros(3), s))(Gaussian(np.zeros(3), s)) == pytest.approx(0, abs=1e-9)
    few = features(5)
    assert fid(few, few) == pytest.approx(0, abs=1e-6)


def test_fid_against_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    ours, theirs = features(3000), features(2500, shift=0.3, seed=2)
    statistics = [fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (ours, theirs)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert fid(ours, theirs) == pytest.approx(expected, rel=1e-6)


class Flat(nn.Module):
    """Images (B, 3, 2, 2) to twelve features."""

    num_features = 12

    def forward(self, images):
        return images.float().flatten(1)


def as_images(rows):
    return torch.from_numpy(rows).unflatten(1, (3, 2, 2))


def test_fid_and_kid_against_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    ours, theirs = features(900), features(900, shift=0.3, seed=2)
    distance = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 2, 2))
    distance.set_dtype(torch.float64)
    kernel = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=900, normalize=True)
    for metric in (distance, kernel):
        metric.inception.forward = lambda x: torch.as_tensor(x).float().flatten(1)
        metric.normalize = False
        metric.update(as_images(theirs), real=True)
        metric.update(as_images(ours), real=False)
    assert fid(ours, theirs) == pytest.approx(float(distance.compute()), rel=1e-6)
    kernel_features = [torch.cat(getattr(kernel, f"{kind}_features")).double() for kind in ("real", "fake")]
    kernel.real_features, kernel.fake_features = [kernel_features[0]], [kernel_features[1]]
    assert metrics.kid(ours, theirs, subsets=1, size=900)[0] == pytest.approx(float(kernel.compute()[0]), rel=1e-6)


def test_kid_against_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    ours, theirs = features(1500), features(1300, shift=0.2, seed=2)
    both = [torch.from_numpy(x.astype(np.float64)) for x in (ours, theirs)]
    expected = kid_features_to_metric(*both, kid_subsets=30, kid_subset_size=500, verbose=False)
    mean, deviation = metrics.kid(ours, theirs, subsets=30, size=500)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_inception_score_against_torch_fidelity_whatever_the_order(order):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = features(3001) * 3
    if order == "sorted":  # the trap: split in this order, every part has few classes
        logits = logits[logits.argmax(1).argsort(kind="stable")]
    expected = isc_features_to_metric(torch.from_numpy(logits), splits=10)
    mean, deviation = metrics.inception_score(logits)
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert deviation == pytest.approx(expected["inception_score_std"], rel=1e-6)
    if order == "sorted":
        assert (
            isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=False)["inception_score_mean"]
            < mean / 2
        )


def slow_coverage(points, centres, k):
    inside = 0
    for point in points:
        for i, centre in enumerate(centres):
            others = sorted(np.linalg.norm(centre - other) for j, other in enumerate(centres) if j != i)
            if np.linalg.norm(point - centre) <= others[k - 1]:
                inside += 1
                break
    return inside / len(points)


def test_precision_and_recall_against_a_slow_loop(monkeypatch):
    ours, theirs = features(70).astype(np.float64), features(60, shift=0.8, seed=2).astype(np.float64)
    expected = slow_coverage(ours, theirs, 3), slow_coverage(theirs, ours, 3)
    assert 0.05 < expected[0] < 0.95
    assert metrics.precision_recall(ours, theirs) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(metrics, "CHUNK", 16)
    assert metrics.precision_recall(ours, theirs) == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_against_torch_fidelity():
    from torch_fidelity.metric_prc import prc_features_to_metric

    ours, theirs = features(3000), features(2500, shift=0.8, seed=2)
    found = prc_features_to_metric(*(torch.from_numpy(x).double() for x in (ours, theirs)), verbose=False)
    assert metrics.precision_recall(ours, theirs) == pytest.approx((found["precision"], found["recall"]), abs=1e-6)


def test_the_interval_is_as_wide_as_the_truth():
    """The standard error from one set of images is the deviation of FID over many sets, within a third."""
    distance = Frechet(metrics.moments(features(20_000, shift=0.3, seed=99)).gaussian())
    draws = [features(500, seed=100 + i) for i in range(60)]
    truth = np.std([distance(metrics.moments(draw).gaussian()) for draw in draws])
    estimate = np.mean([metrics.jackknife(draw, distance) for draw in draws[:20]])
    assert 0.67 < estimate / truth < 1.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.moments(features(1)).gaussian(), "got 1 images, expected at least 2"),
        (lambda: Frechet(Gaussian(np.zeros(3), np.eye(3)))(Gaussian(np.zeros(2), np.eye(2))), "2 features, expected 3"),
        (lambda: Gaussian(np.zeros(3), np.eye(2)), "covariance of shape"),
        (lambda: metrics.inception_score(features(5)), "5 images for an Inception Score over 10 splits"),
        (lambda: metrics.kid(features(1), features(5)), "for KID over subsets of 1000"),
        (lambda: Gaussian(np.full(3, np.nan), np.eye(3)), "not finite"),
        (lambda: Gaussian(np.zeros(3), -np.eye(3)), "negative variance"),
        (lambda: Gaussian(np.zeros(3), np.triu(np.ones((3, 3)))), "not symmetric"),
        (lambda: Frechet(Gaussian(np.zeros(2), np.array([[1.0, 5.0], [5.0, 1.0]]))), "negative eigenvalue"),
        (lambda: metrics.precision_recall(features(3), features(9)), "expected more than 3"),
    ],
)
def test_too_little(call, words):
    with pytest.raises(ValueError, match=words):
        call()
