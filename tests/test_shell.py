"""The shell's first minute: help without torch, what is meant by a wrong name, what a run says it has saved."""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from shell import refused, run

import vargen
from vargen.commands import bench, main, models, report, sample
from vargen.commands.flags import Parser
from vargen.core import png, registry
from vargen.core.trace import Trace

ROOT = Path(__file__).parent.parent
HELP = """
import importlib, sys
from vargen.commands.main import COMMANDS, usage
usage()
acts = [[name] for name in COMMANDS] + [["evaluate", act] for act in ("sample", "run", "measure", "pack", "report")]
for name, *rest in acts:
    try:
        importlib.import_module(COMMANDS[name][0]).command([*rest, "--help"])
    except SystemExit as end:
        assert end.code == 0
    slow = {"torch", "diffusers", "transformers", "torchvision", "gradio"} & set(sys.modules)
    assert not slow, (name, rest, slow)
"""


def test_help_imports_nothing_slow():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_shows_defaults_and_words_of_the_options(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        sample.command(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "(default: pocket-llamagen)", "(default: out/sample.png)", "(default: auto)", "(default: 0)",
        "(default: the preset's)", "(default: the model's)", "(default: float32 on a CPU, else bfloat16)",
    ):  # fmt: skip
        assert words in said
    for flag, option in {
        "--class NAME": "class_labels", "--prompt NAME": "prompt", "--negative-prompt NAME": "negative_prompt",
        "--image FILE": "image", "--mask-image FILE": "mask_image", "--height N": "height",
    }.items():  # fmt: skip
        from vargen.pipelines.options import about

        assert f"{flag} {about(option).words}" in said


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "pocket-lamagen"], "did you mean pocket-llamagen?"),
        (["--method", "sjd-exat"], "did you mean sjd-exact?"),
        (["--method", "sdj"], "did you mean sjd?"),
        (["--model", "Pocket-VAR"], "did you mean pocket-var?"),
        (["--cfg", "3"], "unrecognized arguments: --cfg 3; did you mean --guidance-scale?"),  # no --cfg-interval
        (["--num-im", "3"], "did you mean --num-images?"),
        (["--class", "harbor"], "did you mean harbour?"),
        (["--num-imagse", "3"], "did you mean --num-images?"),
        (["--windw", "3"], "did you mean --window?"),
        (["--xyzzy", "3"], "unrecognized arguments: --xyzzy 3\n"),
    ],
)
def test_what_was_meant(argv, words, capsys):
    assert words in refused(capsys, *argv)


def test_a_command_that_was_meant(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vargen", "sampel"])
    with pytest.raises(SystemExit):
        main.main()
    assert "unknown command 'sampel'; did you mean sample? there are" in capsys.readouterr().err


def test_models_are_listed_sorted_and_one_is_shown_closely(capsys):
    run(command=models.command)
    short = capsys.readouterr().out
    listed = [
        line.split()[0] for line in short.splitlines() if line.startswith("  ") and line.split()[0] in registry.MODELS
    ]
    ships = [name for name in listed if name.startswith("pocket")]
    assert listed == [*sorted(ships), *sorted(set(listed) - set(ships))]
    hidden = set(registry.MODELS) - set(listed)
    assert hidden == {name for name in registry.MODELS if not registry.preset(name).released}
    assert f"and {len(hidden)} shapes of which no weights were released" in short
    assert max(map(len, short.splitlines())) < 150
    run("--all", command=models.command)
    assert all(f"  {name} " in capsys.readouterr().out for name in ["llamagen-c2i-7b-512"])
    run("pocket-lumina", command=models.command)
    one = capsys.readouterr().out
    for words in (
        "64x64, 96x64, 64x96",
        "sjd-exact",
        "(default: sjd-exact:window=16)",
        "guidance_scale 3.0",
        "in the package",
    ):
        assert words in one
    assert "did you mean var-d16?" in refused(capsys, "var-d1", command=models.command)


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_model_says_where_its_files_are(name):
    preset = registry.preset(name)
    assert bool(preset.source) == preset.released
    assert "files    " in models.of(replace(preset, skeleton=None))


@pytest.mark.parametrize("name", ["pocket-llamagen", "pocket-lumina", "pocket-var", "pocket-mar", "flowar-s", "xar-b"])
def test_every_kind_of_model_is_planned(name):
    one, many = vargen.plan(name), vargen.plan(name, batch=8)
    assert one.weights == many.weights > 0
    assert many.cache == 8 * one.cache
    assert (one.cache == 0) == (registry.preset(name).plan == "masked")
    assert many.activations == 8 * one.activations > 0
    assert many.total > one.total


def test_the_plan_of_a_next_scale_model_is_what_it_takes():
    trace = vargen.load("pocket-var", device="cpu")(["beach"], seed=0, output_type="latent").trace
    planned = vargen.plan("pocket-var", dtype=vargen.load("pocket-var", device="cpu").dtype)
    assert planned.cache == trace.cache_bytes


def of(method="sjd-exact:window=16", **rest):
    told = {
        "settings": {"window": 16},
        "seconds": {"total": 4.0},
        "windows": {1: 2, 16: 90},
        "forwards_per_image": 92.3,
    }
    return Trace("pocket-llamagen", method, 2, **{**told, **rest})


PIPE = SimpleNamespace(
    transformer=SimpleNamespace(spec=registry.preset("pocket-llamagen").spec, device=SimpleNamespace(type="cpu"))
)


def said(trace, plain=None, **options):
    return report.report(
        trace, "a.png", PIPE, argparse.Namespace(**{"batch_size": 1, "verbose": False, "image": None, **options}), plain
    )


def test_a_run_says_what_it_saved():
    plain = of("ar", forwards_per_image=256.0, seconds={"total": 6.4})
    beside = "a.png: 2 images by sjd-exact:window=16, 92 forwards instead of 256, 1.6 times as fast, the same law ("
    assert said(of(), plain).startswith(beside)
    assert said(of()).startswith(
        "a.png: 2 images by sjd-exact:window=16, 92 forwards instead of 256, the same law (2.00 s"
    )
    assert "another law, near it" in said(of("zipar:window=4"))
    assert "another law, near it" in said(of("sjd-coupled:rule=gsd", settings={"rule": "gsd"}))
    assert "92 forwards, plain decoding (" in said(of("ar"))
    assert "\n" not in said(of())
    assert "   16  90" in said(of(), verbose=True)


def test_a_window_that_chose_plain_decoding_says_so_and_why():
    narrow = of("sjd", settings={"window": "auto"}, windows={1: 240, 16: 10})
    assert (
        "note: the window is auto and chose width 1, plain decoding, in 240 of 250 steps: in a batch of 16 on this cpu"
        in (said(narrow, batch_size=16))
    )
    assert "note" not in said(of("sjd", settings={"window": "auto"}, windows={1: 1, 16: 90}))
    assert "note" not in said(of("sjd:window=1", settings={"window": 1}, windows={1: 256}))


def test_plain_decoding_beside_it_is_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")
    run("--model", "small", "--compare", "--num-images", 2, "--out", tmp_path / "a.png")
    assert " instead of 36, " in (words := capsys.readouterr().out)
    assert " times as fast, the same law (" in words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.png", "a-1.png", "a.png"]


def test_pictures_in_a_grid_are_large_and_never_too_many_pixels():
    assert [png.enlargement(20, (64, 64)), png.enlargement(6, (64, 96)), png.enlargement(4, (256, 256))] == [3, 2, 1]
    assert (png.enlargement(1, (64, 64)), png.enlargement(10_000, (64, 64))) == (1, 1)
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    assert png.grid(pictures, large=True).size == (384, 192)
    assert png.grid(pictures).size == (128, 64)


def test_bench_needs_no_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")
    monkeypatch.chdir(tmp_path)
    run("--model", "small", "--methods", "ar,sjd-exact:window=4", "--num-images", 1, command=bench.command)
    assert "| ar | 36.0 |" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_parser_says_its_defaults_once():
    made = Parser(prog="x")
    made.add_argument("--a", default=3, help="so many")
    made.add_argument("--b", default=3, help="so many (default: three)")
    made.add_argument("--c", action="store_true", help="whether")
    words = made.format_help()
    assert words.count("(default:") == 2
    assert "so many (default: 3)" in words


STOPS = """
import os, signal, sys
from vargen.commands import main
main.COMMANDS["stops"] = ("stops", "")
main.door("stops", [])
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("def command(argv):\n    stop()\n", "vargen: stopped\n"),
        ("def command(argv):\n    raise KeyboardInterrupt('2 images kept')\n", "vargen: stopped; 2 images kept\n"),
        (
            "def command(argv):\n    try:\n        stop()\n    except BaseException:\n        raise ImportError\n",
            "vargen: stopped\n",
        ),
        ("try:\n    stop()\nfinally:\n    raise RecursionError\n", "vargen: stopped\n"),  # while it is imported
    ],
)
def test_ctrl_c_is_a_line_and_no_traceback(tmp_path, module, words):
    begin = "import os, signal\nstop = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "stops.py").write_text(begin + module)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", STOPS], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, words)


def test_a_run_that_is_stopped_says_what_it_kept(tmp_path, monkeypatch, capsys):
    from vargen.commands import evaluate
    from vargen.eval import runs

    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")
    argv = ["sample", "--model", "small", "--method", "ar", "--num-images", 4, "--batch-size", 2, "--device", "cpu"]
    draw, calls = runs._draw, []

    def stopped(*arguments):
        if len(calls) == most:
            raise KeyboardInterrupt
        calls.append(1)
        draw(*arguments)

    monkeypatch.setattr(runs, "_draw", stopped)
    for most, words in ((1, f"; 2 of 4 images are in {tmp_path / 'a'}, and the same command goes on"), (0, "")):
        out = tmp_path / ("a" if most else "b")
        calls.clear()
        with pytest.raises(SystemExit) as stop:
            run(*argv, "--out", out, command=evaluate.command)
        assert stop.value.code == 130
        assert capsys.readouterr().err.splitlines()[-1] == f"vargen: stopped{words}"
