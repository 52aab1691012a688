"""Next-scale models from the shell: sampling, repainting, the benchmark, an evaluation."""

import json

import numpy as np
import pytest
from made_up import made_up, save_folder
from PIL import Image
from small import SCALE_PRESET

from vargen.commands import bench, main, sample
from vargen.commands.evaluate import command as evaluate
from vargen.core import registry


@pytest.fixture(autouse=True)
def _small_model(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "small-scales", "small:PRESETS")
    assert SCALE_PRESET.method == "var"


def run(*argv: object, command=sample.command) -> None:
    main.guarded(command, ["--model", "small-scales", *(str(word) for word in argv)])


def test_sampling_takes_the_model_s_own_method_and_laws_per_scale(tmp_path, capsys):
    out, trace = tmp_path / "grid.png", tmp_path / "trace.json"
    run("--class", "b", "--class", -1, "--num-images", 4, "--top-k", "5,5,0,0", "--out", out, "--trace", trace)
    told = json.loads(trace.read_text())
    assert (told["method"], told["forwards"], told["images"]) == ("var", 4, 4)
    assert (told["settings"]["top_k"], told["settings"]["temperature"]) == ([5, 5, 0, 0], 1.0)
    assert Image.open(out).size == (768, 192)
    assert "4 images by var, 4 forwards, plain decoding (" in capsys.readouterr().out


def test_the_small_model_refines(tmp_path, capsys):
    run(
        "--method",
        "code",
        "--scales",
        2,
        "--num-images",
        2,
        "--out",
        tmp_path / "a.png",
        "--trace",
        tmp_path / "t.json",
    )
    told = json.loads((tmp_path / "t.json").read_text())
    assert (told["forwards"], told["drafter_forwards"]) == (2, 2)
    with pytest.raises(SystemExit) as stopped:
        run("--method", "code", "--help")
    assert stopped.value.code == 0
    assert "--refiner" in capsys.readouterr().out


def test_repainting(tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "in.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out.png"
    named = ("--image", tmp_path / "in.png", "--mask-image", tmp_path / "mask.png")
    run("--class", "c", "--num-images", 2, *named, "--out", out)
    first, second = (np.asarray(Image.open(tmp_path / f"out-{i}.png")) for i in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--top-k", "5,5"], "got 2 values of top-k for 4 scales"),
        (["--top-k", "5,x"], "argument --top-k: invalid int value: '5,x'"),
        (["--method", "sjd"], "method sjd does not draw with next-scale models"),
        (["--method", "code:scales=9"], "got scales 9, but an image has 4"),
        (["--class", "-3"], "got class -3, expected -1 to 4"),
        (["--image", "/nowhere.png"], "give both --image and --mask-image"),
        (["--image", "/nowhere.png", "--mask-image", "/nowhere.png"], "cannot read a picture"),
        (["--model", "pocket-llamagen", "--image", "/a", "--mask-image", "/b"], "pocket-llamagen repaints no pictures"),
        (["--model", "pocket-llamagen", "--top-k", "5,5"], "got top-k [5, 5], expected a whole number"),
    ],
)
def test_bad_input(argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*argv)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_benchmark(tmp_path):
    where = tmp_path / "bench.json"
    methods = "var,code:scales=2,code:scales=4"
    run("--methods", methods, "--num-images", 5, "--batch-size", 2, "--json", where, command=bench.command)
    rows = {row["method"]: row for row in json.loads(where.read_text())["rows"]}
    assert rows["var"]["speedup"] == 1
    assert rows["code:scales=4"]["images_equal_to_ar"] == 1
    assert rows["code:scales=2"]["images_equal_to_ar"] < 1
    assert rows["code:scales=2"]["drafter_forwards_per_image"] == pytest.approx(2 * 3 / 5)  # three batches
    assert 0 < rows["code:scales=2"]["cache_bytes"] < rows["var"]["cache_bytes"]
    assert rows["var"]["peak_memory_bytes"] > 1 << 20


def test_evaluation(tmp_path, cache):
    real = save_folder(made_up(40, size=8, seed=900), tmp_path / "real")
    named = ("--reference", real, "--cache", cache, "--device", "cpu", "--json", tmp_path / "r.json")
    main.guarded(
        evaluate,
        [str(x) for x in ("run", "--model", "small-scales", "--num-images", 20, "--batch-size", 8,
                          "--temperature", "1,1,1,0.5", "--out", tmp_path / "run", *named)],
    )  # fmt: skip
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["forwards_per_image"], result["images"], result["plan"]["method"]) == (4, 20, "var")
    assert result["plan"]["law"] == {"temperature": [1.0, 1.0, 1.0, 0.5]}
