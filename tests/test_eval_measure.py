"""From images to figures: features, references of every kind, warnings, CLIP, prompt files, the command."""

import hashlib
import tracemalloc

import numpy as np
import pytest
import torch
from made_up import made_up, save_folder

from vargen.eval import features
from vargen.eval.images import Images
from vargen.eval.measure import measure, pocket_scenes, reference, warnings

CPU = torch.device("cpu")


def tiny(images):
    """Features of made-up images: means of channels and of corners."""
    x = images.double() / 255
    pooled = torch.cat([x.mean((-1, -2)), x[:, :, 0, 0]], 1)
    return {"pooled": pooled, "logits": 10 * pooled, "spatial": x[:, :2, :2, 0].flatten(1)}


TINY = features.Extractor("tiny", tiny, CPU)


def test_folder_npz_and_statistics_give_the_same_figures(tmp_path, cache):
    images, real = made_up(300), made_up(400, seed=5000)
    pixels = real.read(0, 400)
    save_folder(real, tmp_path / "folder")
    np.savez(tmp_path / "images.npz", pixels)
    rows = {k: v.numpy() for k, v in tiny(torch.from_numpy(pixels).permute(0, 3, 1, 2)).items()}
    gaussians = {}
    for suffix, key in (("", "pooled"), ("_s", "spatial")):
        gaussians |= {f"mu{suffix}": rows[key].mean(0), f"sigma{suffix}": np.cov(rows[key], rowvar=False)}
    np.savez(tmp_path / "statistics.npz", **gaussians)
    np.savez(tmp_path / "adm.npz", arr_0=pixels, **gaussians)
    results = {}
    for name in ("folder", "images.npz", "statistics.npz", "adm.npz"):
        with reference(tmp_path / name, TINY, cache) as against:
            results[name] = measure(images, TINY, against)
    for name, result in results.items():
        assert result["fid"] == pytest.approx(results["folder"]["fid"], rel=1e-5)
        assert result["sfid"] == pytest.approx(results["folder"]["sfid"], rel=1e-5)
        low, high = result["fid_interval"]
        assert low < result["fid"] < high
        assert "tiny" in result["description"]
        assert "300 images, as found" in result["description"]
        assert (result["kid"] is not None, result["precision"] is not None) == (name != "statistics.npz",) * 2
        assert len(result["reference_sha256"]) == 64


def test_figures_are_those_of_the_metrics(cache, tmp_path):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    images, real = made_up(200), made_up(250, seed=5000)
    with reference(save_folder(real, tmp_path / "real"), TINY, cache) as against:
        result = measure(images, TINY, against)
    pixels = [torch.from_numpy(x.read(0, x.count)).permute(0, 3, 1, 2) for x in (images, real)]
    rows = [tiny(x)["pooled"].float().double() for x in pixels]
    expected = fid_statistics_to_metric(*map(fid_features_to_statistics, rows), verbose=False)
    assert result["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, "tiny has 6 pooled features, expected 4 as statistics a.npz has"),
        ({"mu": np.zeros(6)}, r"have mu \(6,\) and sigma None, expected"),
        ({"mu": np.zeros(6), "sigma": np.eye(5)}, r"sigma \(5, 5\), expected"),
        ({"mu": np.zeros(6), "sigma": np.eye(6) * np.nan}, "not finite"),
        ({"mu": np.zeros(6), "sigma": np.eye(6).astype(complex)}, "not floating-point numbers"),
    ],
)
def test_wrong_statistics(tmp_path, arrays, words, cache):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=words), reference(tmp_path / "a.npz", TINY, cache) as against:
        measure(made_up(20), TINY, against)


def test_pocket_features_tell_scenes_from_noise(cache):
    extractor, scenes = features.pocket(CPU), pocket_scenes(cache, 200)
    labels = [i % 10 for i in range(100)]
    halves = [Images("half", 100, (64, 64), lambda a, b, o=o: scenes.read(a + o, b + o)) for o in (0, 100)]
    folder = cache / "half"
    if not folder.exists():
        save_folder(halves[1], folder)
    with reference(folder, extractor, cache) as against:
        same = measure(halves[0], extractor, against, labels=labels)
        noise = measure(made_up(100, size=64), extractor, against)
    assert same["class_agreement"] >= 0.99
    assert noise["inception_score"] < 2 < 4 < same["inception_score"] <= 10
    assert noise["fid"] > 5 * same["fid"]
    assert abs(same["kid"]) < 0.2 * noise["kid"]
    assert same["precision"] > 0.7
    assert noise["precision"] < 0.05


def test_warnings(cache, tmp_path):
    images = made_up(30)
    with reference(save_folder(made_up(40, size=9), tmp_path / "real"), TINY, cache) as against:
        found = measure(images, TINY, against)["warnings"]
        assert [any(words in warning for warning in found) for words in (
            "30 images: a Fréchet distance is biased", "the reference has 40 images", "9x9 pixels, the images 8x8",
        )] == [True] * 3  # fmt: skip
        assert not any("sorted" in warning for warning in found)
        classes = np.arange(300) % 10
        assert not any("sorted" in w for w in warnings(images, against, classes))
        assert any("sorted by class" in w for w in warnings(images, against, np.sort(classes)))
        assert not any("sorted" in w for w in warnings(images, against, np.zeros(300, dtype=np.int64)))


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """torch-fidelity's Inception with random weights, in a file of its own format."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        model = FeatureExtractorInceptionV3("x", ["2048"], str(path))
    torch.save(model.state_dict(), path)
    return path


def test_inception_is_told_by_its_hash_and_tapped_where_adm_does(inception_weights, monkeypatch):
    with pytest.raises(ValueError, match="is not torch-fidelity's Inception: its SHA-256 begins"):
        features.inception(CPU, inception_weights)
    digest = hashlib.sha256(inception_weights.read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION_HASH", digest[:8])
    extractor = features.inception(CPU, inception_weights)
    images = torch.from_numpy(made_up(2, size=32).read(0, 2)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found = extractor.run(images)
        again = extractor.run(images[1:])
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "pooled": (2, 2048),
        "logits": (2, 1008),
        "spatial": (2, 17 * 17 * 7),
    }
    torch.testing.assert_close(again["spatial"], found["spatial"][1:], rtol=1e-3, atol=1e-4)
    assert digest[:8] in extractor.name


def test_inception_s_weights_are_not_unpickled(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "executed").mkdir, ()

    path = tmp_path / "weights.pth"
    torch.save({"x": Evil()}, path)
    monkeypatch.setattr(features, "INCEPTION_HASH", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    with pytest.raises(ValueError, match="nothing in it was run"):
        features.inception(CPU, path)
    assert not (tmp_path / "executed").exists()


def test_memory_is_flat(tmp_path):
    """The features of 10,000 images would fill 58 MB: they are on disk, and arrays never fill more than half of that.

    Arrays are counted as they are made: what a process holds has mapped files in it, as many as the system likes.
    """
    mix = torch.randn(48, 1440, generator=torch.Generator().manual_seed(0))

    def run(images):
        rows = images.float().flatten(1) @ mix / 255
        return {"pooled": rows[:, :200], "logits": rows[:, 200:1200], "spatial": rows[:, 1200:]}

    def read(a, b):
        return np.random.RandomState(a).randint(0, 256, (b - a, 4, 4, 3)).astype(np.uint8)

    extractor = features.Extractor("x", run, CPU)
    np.savez(tmp_path / "r.npz", read(0, 1000))
    with reference(tmp_path / "r.npz", extractor, tmp_path) as against:
        tracemalloc.start()
        try:
            measure(Images("x", 10_000, (4, 4), read), extractor, against)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert 10_000 * 1440 * 4 / 20 < peak < 10_000 * 1440 * 4 / 1.8, f"{peak / 1e6:.0f} MB"
