"""From images to figures: features, references of every kind, warnings, CLIP, prompt files, the command."""

import argparse
import hashlib
import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up import made_up, save_folder
from PIL import Image
from small import PRESETS

from vargen import cli, registry
from vargen.eval import features, plan
from vargen.eval.command import command, is_published_setting
from vargen.eval.images import Images, open_images
from vargen.eval.measure import measure, pocket_scenes, reference, warnings

CPU = torch.device("cpu")


def tiny(images):
    """Features of made-up images: means of channels and of corners."""
    x = images.double() / 255
    pooled = torch.cat([x.mean((-1, -2)), x[:, :, 0, 0]], 1)
    return {"pooled": pooled, "logits": 10 * pooled, "spatial": x[:, :2, :2, 0].flatten(1)}


TINY = features.Extractor("tiny", tiny, CPU)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


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
        assert ("kid" in result, "precision" in result) == (name != "statistics.npz",) * 2
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


def test_memory_is_flat():
    """20,000 images take hardly more than 1,000, though their features would fill 275 MB: they are on disk."""
    code = """
        import sys, tempfile, numpy as np, torch
        from pathlib import Path
        from vargen.core import peak_memory
        from vargen.eval import features
        from vargen.eval.images import Images
        from vargen.eval.measure import measure, reference
        torch.set_num_threads(1)
        count = int(sys.argv[1])
        mix = torch.randn(48, 1440, generator=torch.Generator().manual_seed(0))
        def run(images):
            rows = images.float().flatten(1) @ mix / 255
            return {"pooled": rows[:, :200], "logits": rows[:, 200:1200], "spatial": rows[:, 1200:]}
        def read(a, b):
            return np.random.RandomState(a).randint(0, 256, (b - a, 4, 4, 3)).astype(np.uint8)
        made = lambda n: Images("x", n, (4, 4), read)
        extractor = features.Extractor("x", run, torch.device("cpu"))
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "r.npz", made(1000).read(0, 1000))
            with reference(Path(folder) / "r.npz", extractor, Path(folder)) as against:
                result = measure(made(count), extractor, against)
        print(peak_memory(torch.device("cpu")), result["fid"])
    """
    peaks = []
    for count in ("1000", "20000"):
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), count], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[0]))
    assert peaks[1] - peaks[0] < 50e6, [f"{peak / 1e6:.0f} MB" for peak in peaks]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")
    assert PRESETS["small"]


def evaluate(*argv):
    cli.guarded(command, [str(word) for word in argv])


def test_the_whole_way_by_command(small, tmp_path, capsys, cache):
    real = save_folder(made_up(60, size=12, seed=900), tmp_path / "real")
    shared = ("--reference", real, "--cache", cache)
    for method in ("ar", "sjd-exact:window=4"):
        out = tmp_path / method
        evaluate("run", "--model", "small", "--method", method, "--num-images", 20, "--batch-size", 8, "--out", out,
                 "--device", "cpu", "--json", tmp_path / f"{method}.json", *shared)  # fmt: skip
    results = [json.loads((tmp_path / f"{m}.json").read_text()) for m in ("ar", "sjd-exact:window=4")]
    wanted = {"fid", "inception_score", "precision", "recall", "kid", "images", "reference", "features",
              "seconds_sampling", "forwards_per_image"}  # fmt: skip
    assert wanted <= set(results[0])
    assert results[0]["fid"] == results[1]["fid"]  # the exact method drew the very same images
    assert results[0]["forwards_per_image"] == 36 > results[1]["forwards_per_image"]
    assert results[0] == json.loads((tmp_path / "ar" / "result.json").read_text())
    evaluate("measure", tmp_path / "ar", *shared)
    evaluate("pack", tmp_path / "ar", tmp_path / "ar.npz")
    with np.load(tmp_path / "ar.npz") as file:
        assert file["arr_0"].shape == (20, 12, 12, 3)
        assert file["arr_1"].tolist() == [0, 1, 2, 3, 4] * 4
    capsys.readouterr()
    evaluate("report", tmp_path / "ar", tmp_path / "sjd-exact:window=4", "--out", tmp_path / "report")
    table = capsys.readouterr().out
    assert "| small | sjd-exact:window=4 | default | 20 |" in table
    assert Image.open(tmp_path / "report.png").size[0] > 500
    assert len(json.loads((tmp_path / "report.json").read_text())) == 2
    assert "cannot be compared" not in table
    for broken in ("[]", "null", '{"images": 3}', "{", '{"images": 3, "fid": "x"}'):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(SystemExit):
            evaluate("report", tmp_path / "broken.json")
        assert "broken.json is damaged" in capsys.readouterr().err
    other = json.loads((tmp_path / "ar.json").read_text()) | {"reference_sha256": "f" * 64}
    (tmp_path / "other.json").write_text(json.dumps(other))
    evaluate("report", tmp_path / "ar", tmp_path / "other.json", "--out", tmp_path / "report")
    assert "cannot be compared" in capsys.readouterr().out


def test_a_shipped_model_by_command(tmp_path, cache):
    real = pocket_scenes(cache, 200)
    folder = cache / "scenes"
    if not folder.exists():
        save_folder(real, folder)
    evaluate("run", "--model", "pocket-llamagen-small", "--method", "sjd-exact:window=16", "--num-images", 10,
             "--reference", folder, "--out", tmp_path / "run", "--device", "cpu", "--json", tmp_path / "a.json",
             "--reference-sha256", "abc")  # fmt: skip
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["class_agreement"] >= 0.6
    assert result["plan"]["dtype"] == "float32"
    assert len(result["versions"]) == 1
    assert any("is not the one that was named" in warning for warning in result["warnings"])
    assert "published_fid" not in result


def test_a_published_figure_stands_only_beside_its_own_setting():
    wanted = plan.make(registry.preset("llamagen-c2i-l-384"), "ar", 50_000, recipe="fid", law={})
    asked = argparse.Namespace(features="inception")
    assert is_published_setting(asked, wanted, settled=True)
    assert registry.preset("llamagen-c2i-l-384").choose("fid").published == {"fid": 3.07}
    for other in (replace(wanted, count=10_000), replace(wanted, law={"top_k": 3})):
        assert not is_published_setting(asked, other, settled=True)
    assert not is_published_setting(asked, wanted, settled=False)
    assert not is_published_setting(argparse.Namespace(features="pocket"), wanted, settled=True)


def test_painted_references_are_checked(cache, tmp_path):
    before = pocket_scenes(tmp_path, 30).read(0, 30)
    (path,) = tmp_path.glob("*.npy")
    data = bytearray(path.read_bytes())
    data[-1000:] = bytes(1000)
    path.write_bytes(data)
    assert (pocket_scenes(tmp_path, 30).read(0, 30) == before).all()


def test_a_missing_and_a_damaged_image_are_named(small, tmp_path, capsys):
    out, against = tmp_path / "run", ("--reference", save_folder(made_up(9, size=12), tmp_path / "real"))
    evaluate("sample", "--model", "small", "--method", "ar", "--num-images", 6, "--out", out, "--device", "cpu")
    path = out / "images" / "000004.png"
    data = path.read_bytes()
    path.unlink()
    for act in (("measure", out), ("pack", out, tmp_path / "a.npz")):
        with pytest.raises(SystemExit):
            evaluate(*act)
        assert "lacks 000004.png" in capsys.readouterr().err
    path.write_bytes(data[:-3])
    with pytest.raises(SystemExit):
        evaluate("measure", out, *against)
    assert "other images than it drew, 000004.png" in capsys.readouterr().err
    path.write_bytes(data)
    (out / "images" / "000099.png").write_bytes(data)
    with pytest.raises(SystemExit):
        evaluate("measure", out, *against)
    assert "holds 7 images, expected the 6 of its manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "expected one of sample, run"),
        (["sample", "--model", "nope"], "unknown model"),
        (["sample", "--model", "small", "--num-images", "0"], "number of images 0"),
        (["run", "--model", "small", "--features", "inception"], "needs a --reference"),
        (["run", "--model", "small", "--features", "clip"], "needs --clip"),
        (["run", "--model", "small", "--reference", "/nowhere.npz"], "there is no reference /nowhere.npz"),
        (["run", "--model", "small", "--device", "banana"], "unknown device 'banana'"),
        (["measure", "/nowhere"], "expected a folder or an .npz"),
        (["measure", "/nowhere.npz"], "no file /nowhere.npz"),
        (["report", "/nowhere"], "there is no result"),
        (["sample", "--model", "llamagen-t2i-xl-256"], "name a file of them"),
    ],
)
def test_wrong_commands(small, argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate(*argv)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_features_that_need_a_reference(tmp_path, capsys):
    save_folder(made_up(3), tmp_path / "a")
    for flags, words in ((["inception"], "needs a --reference"), (["clip"], "needs --clip")):
        with pytest.raises(SystemExit):
            evaluate("measure", tmp_path / "a", "--features", *flags)
        assert words in capsys.readouterr().err
    assert open_images(tmp_path / "a").count == 3
