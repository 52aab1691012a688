"""The evaluation's command line: the whole way from a model to a report, and one sentence for what is wrong."""

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up import made_up, save_folder
from PIL import Image
from small import PRESETS

from vargen.commands import main
from vargen.commands.evaluate import command
from vargen.commands.evaluation import is_published_setting
from vargen.core import registry
from vargen.eval import plan, report
from vargen.eval.images import open_images
from vargen.eval.measure import pocket_scenes


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")
    assert PRESETS["small"]


def evaluate(*argv):
    main.guarded(command, [str(word) for word in argv])


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


def test_seconds_of_a_benchmark(tmp_path):
    rows: list[dict[str, Any]] = [{"model": "m", "method": name, "seconds_per_image": 9.0} for name in ("ar", "sjd")]
    found = {"model": "m", "batch_size": 4, "rows": [{"method": "ar", "seconds_per_image": 1.5}]}
    (tmp_path / "bench.json").write_text(json.dumps(found))
    timed = report.timed(rows, tmp_path / "bench.json")
    assert timed[0] == {"model": "m", "method": "ar", "seconds_per_image": 1.5, "timing": "bench.json, batch 4"}
    assert timed[1] == {"model": "m", "method": "sjd"}  # nobody's seconds stand beside others'
    for text in ("{", "[]", '{"rows": []}'):
        (tmp_path / "bench.json").write_text(text)
        with pytest.raises(ValueError, match="cannot read the benchmark"):
            report.timed(rows, tmp_path / "bench.json")


def test_a_plot_joins_the_windows_of_one_method():
    methods = ["ar", "zipar:window=12", "m:tree=4-4-4:a=0.5", "zipar:window=4", "m:tree=4-4-4:a=0.25", "m:tree=2:a=0.5"]
    found = report.families([{"method": method} for method in methods])
    assert {name: len(rows) for name, rows in found.items()} == {
        "ar": 1,
        "zipar:window=4..12": 2,
        "m:tree=4-4-4:a=0.25..0.5": 2,
        "m:tree=2:a=0.5": 1,
    }


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
    for other in (replace(wanted, count=10_000), replace(wanted, law={"top_k": 3}), replace(wanted, quantize="int8")):
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
        (
            ["sample", "--model", "small", "--num-images", "1000000000000"],
            "of images 1000000000000, expected at most",
        ),
        (["sample", "--model", "pocket-lumina", "--num-images", "999999"], "images 999999, expected at most 100000"),
        (
            ["run", "--batch-size", "20"],
            "50,000, as of published FIDs, are 2,500 batches of 20 by sjd-exact:window=16",
        ),
        (["sample", "--model", "small"], "got no --num-images: 50,000"),
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
