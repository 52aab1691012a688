"""The command line: what it writes, and one sentence with status 2 for everything that is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vargen.commands import bench, main, sample
from vargen.core import registry
from vargen.pipelines.raster import RasterPipeline

ROOT = Path(__file__).parent.parent
SHOWN = 192  # pixels a side of a picture of 12 in a grid


@pytest.fixture(autouse=True)
def _small_model(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")


def run(*argv: object, command=sample.command) -> None:
    main.guarded(command, [str(word) for word in argv])


def test_grid_singles_texts_and_trace(tmp_path, capsys):
    out, trace = tmp_path / "new" / "grid.png", tmp_path / "trace.json"
    run("--model", "small", "--method", "sjd:guess=left", "--window", 4, "--num-images", 12, "--seed", 5,
        "--class", "b", "--class", 3, "--batch-size", 5, "--out", out, "--trace", trace)  # fmt: skip
    grid = Image.open(out)
    assert grid.size == (10 * SHOWN, 2 * SHOWN)
    for index in range(12):
        single = Image.open(out.with_name(f"grid-{index}.png"))
        left, top = index % 10 * SHOWN, index // 10 * SHOWN
        large = single.resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)
        assert grid.crop((left, top, left + SHOWN, top + SHOWN)).tobytes() == large.tobytes()
        texts = single.info
        assert (texts["seed"], texts["model"], texts["method"]) == (str(5 + index), "small", "sjd:guess=left:window=4")
        settings = json.loads(texts["settings"])
        assert (settings["window"], settings["guess"], settings["guidance_scale"]) == (4, "left", 2.0)
    written = json.loads(trace.read_text())
    assert written["images"] == 12
    assert written["seeds"] == list(range(5, 17))
    assert {"model", "method", "forwards", "forwards_per_image", "tokens_per_forward", "peak_memory_bytes"} <= set(
        written
    )
    assert {"total", "model", "sampler", "decode"} <= set(written["seconds"])
    assert "12 images by sjd" in capsys.readouterr().out
    assert not list(tmp_path.rglob(".*"))  # nothing temporary is left


def test_default_is_two_images_of_each_class(tmp_path):
    run("--model", "small", "--method", "ar", "--out", tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (10 * SHOWN, SHOWN)


def test_same_seed_same_file(tmp_path):
    for name in ("a", "b"):
        run("--model", "small", "--method", "sjd", "--window", 8, "--class", "a", "--out", tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("method", registry.METHODS)
def test_every_method_has_its_help(method, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--method", method, "--help")
    assert stopped.value.code == 0
    settings, text = registry.settings_of(method), capsys.readouterr().out
    assert all(f"--{setting.name.replace('_', '-')} " in text for setting in settings)


def test_list_names_everything_and_says_what_is_exact(capsys):
    run("--list")
    text = capsys.readouterr().out
    relaxed = {"lantern", "lantern++", "gsd", "cool", "zipar", "zipar-adaptive", "jacobi-2d", "code", "disa"}
    for name in registry.METHODS:
        word = "approximate:" if name in relaxed else "exact:"
        assert any(line.split()[:2] == [name, word] for line in text.splitlines())
    assert "pocket-llamagen" in text


def test_help_shows_the_settings_of_the_method(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--method", "sjd-coupled", "--help")
    assert stop.value.code == 0
    assert "--coupling" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "nope"], "there are for instance pocket-llamagen"),
        (["--method", "nope"], "unknown method 'nope'; there are ar, sjd"),
        (["--model", "small", "--class", "z"], "unknown class 'z'; there are a, b, c, d, e"),
        (["--model", "llamagen-c2i-b-256", "--class", "golden retreiver"], "for instance golden retriever"),
        (["--model", "small", "--image-size", "99999"], "got image size 99999, expected at most 8192"),
        (["--model", "small", "--text-encoder", "/nowhere"], "takes no text encoder"),
        (["--model", "small", "--preset", "fid"], "small has no preset 'fid'; there are default, plain"),
        (
            ["--model", "llamagen-t2i-xl-256", "--prompt", "x", "--checkpoint", "/nowhere.pt"],
            "no weights file /nowhere",
        ),
        (["--model", "small", "--class", "5"], "got class 5, expected 0 to 4"),
        (["--model", "small", "--class=-1"], "got class -1"),
        (["--model", "small", "--prompt", "a boat"], "takes no --prompt"),
        (["--model", "small", "--num-images", "0"], "--num-images 0"),
        (["--model", "small", "--num-images", "x"], "invalid int value: 'x'"),
        (["--model", "small", "--batch-size", "0"], "--batch-size 0"),
        (["--model", "small", "--method", "sjd", "--window", "0"], "window 0"),
        (["--model", "small", "--method", "sjd", "--window", "1.5"], "window '1.5'"),
        (["--model", "small", "--method", "ar", "--window", "4"], "unrecognized arguments: --window 4"),
        (["--model", "small", "--temperature", "0"], "temperature 0"),
        (["--model", "small", "--top-p", "0"], "top-p 0.0"),
        (["--model", "small", "--guidance-scale", "nan"], "guidance scale nan"),
        (["--model", "small", "--method", "sjd:window=4:window=8"], "window stands twice"),
        (["--model", "small", "--device", "mps"], "unknown device 'mps'"),
        (["--model", "small", "--top-p", "1.01"], "top-p 1.01"),
        (["--model", "small", "--top-k", "-1"], "top-k -1"),
        (["--model", "small", "--guidance-scale", "-1"], "guidance scale -1.0"),
        (["--model", "small", "--device", "tpuu"], "unknown device 'tpuu'"),
        (["--model", "pocket-llamagen", "--checkpoint", "/nowhere/x.safetensors"], "no weights file /nowhere/x"),
    ],
)
def test_bad_input(argv, words, tmp_path, capsys):
    out = tmp_path / "new" / "out.png"
    with pytest.raises(SystemExit) as stop:
        run(*argv, "--out", out)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("vargen: ")
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--model", "small", "--device", "cuda", "--out", tmp_path / "a.png")
    assert stop.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_unwritable_output(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file" / "a.png", tmp_path, Path("/proc/a.png")):
        with pytest.raises(SystemExit) as stop:
            run("--model", "small", "--method", "ar", "--out", out)
        assert stop.value.code == 2
        assert "cannot write" in capsys.readouterr().err


def test_damaged_weights_are_named(tmp_path, capsys):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 truncated")
    with pytest.raises(SystemExit) as stop:
        run("--checkpoint", bad, "--out", tmp_path / "a.png")
    assert stop.value.code == 2
    assert f"{bad} is no PyTorch or safetensors file" in capsys.readouterr().err


def test_interrupt_keeps_finished_images(tmp_path, monkeypatch, capsys):
    call, calls = RasterPipeline.__call__, []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, *arguments, **options)

    monkeypatch.setattr(RasterPipeline, "__call__", interrupted)
    with pytest.raises(SystemExit) as stop:
        run("--model", "small", "--method", "ar", "--num-images", 6, "--batch-size", 2, "--out", tmp_path / "a.png")
    assert stop.value.code == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a-{i}.png" for i in range(4)]
    first, last = tmp_path / "a-0.png", tmp_path / "a-3.png"
    assert capsys.readouterr().err == f"vargen: stopped; 4 images kept: {first} to {last}\n"


def test_interrupt_says_nothing_of_what_is_not_kept(tmp_path, monkeypatch, capsys):
    def interrupted(self, *arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(RasterPipeline, "__call__", interrupted)
    with pytest.raises(SystemExit) as stop:
        run("--model", "small", "--method", "ar", "--num-images", 6, "--out", tmp_path / "a.png")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "vargen: stopped\n"
    assert not list(tmp_path.iterdir())


def test_benchmark(tmp_path, capsys):
    out = tmp_path / "b.json"
    methods = "ar,sjd:window=4,sjd-coupled:window=8:guess=above,sjd-coupled"
    run("--model", "small", "--methods", methods, "--num-images", 4, "--batch-size", 2, "--json", out,
        command=bench.command)  # fmt: skip
    result = json.loads(out.read_text())
    assert [row["method"] for row in result["rows"]] == methods.split(",")
    for row in result["rows"]:
        assert row["forwards_per_image"] > 0
        assert row["seconds_per_image"] > 0
    first = result["rows"][0]
    assert (first["forwards_per_image"], first["speedup"]) == (36, 1.0)
    assert result["rows"][2]["speedup"] == pytest.approx(
        first["seconds_per_image"] / result["rows"][2]["seconds_per_image"], rel=0.02
    )
    assert {"cpu", "cores", "torch"} <= set(result["machine"])
    assert Image.open(out.with_suffix(".png")).width > 300
    assert "| ar | 36.0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--methods", "ar,nope"], "unknown method 'nope'"),
        (["--methods", "sjd:window=x"], "window 'x'"),
        (["--num-images", "0"], "--num-images 0"),
    ],
)
def test_benchmark_bad_input(argv, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--model", "small", *argv, "--json", tmp_path / "b.json", command=bench.command)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*"))


def test_scripts_end_with_a_sentence_and_no_traceback(tmp_path):
    command = [sys.executable, "scripts/sample.py", "--method", "nope", "--out", str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"vargen: unknown method 'nope'; there are {', '.join(registry.METHODS)}\n"
