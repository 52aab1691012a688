"""What `vargen sample` writes where: nothing over what is there, folders, patterns, formats."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import shell
from PIL import Image

from vargen.commands import flags, main, outputs, sample
from vargen.core import atomic, png, registry
from vargen.core.image_processor import open_picture


@pytest.fixture(autouse=True)
def _small_model(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "small", "small:PRESETS")


PLAIN = ("--model", "small", "--method", "ar")


def run(*argv):
    shell.run(*PLAIN, *argv)


def refused(capsys, *argv):
    return shell.refused(capsys, *PLAIN, *argv)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_second_run_numbers_on(tmp_path, capsys):
    out, trace = tmp_path / "a.png", tmp_path / "t.json"
    run("--num-images", 3, "--out", out, "--trace", trace)
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    run("--num-images", 2, "--seed", 7, "--out", out, "--trace", trace)
    assert f"{tmp_path}/a_2.png: 2 images" in capsys.readouterr().out
    assert names(tmp_path) == ["a-0.png", "a-1.png", "a-2.png", "a.png", "a_2-0.png", "a_2-1.png", "a_2.png",
                               "t.json", "t_2.json"]  # fmt: skip
    assert {path: path.read_bytes() for path in first} == first
    run("--num-images", 1, "--class", "a", "--out", out)
    assert (tmp_path / "a_3.png").exists()


def test_images_that_an_earlier_run_left_are_not_mixed_with_others(tmp_path):
    """Its first ones are gone, so that no single name is taken; a run of two would stand beside the rest of it."""
    run("--num-images", 4, "--out", tmp_path / "a.png")
    for name in ("a.png", "a-0.png", "a-1.png"):
        (tmp_path / name).unlink()
    run("--num-images", 2, "--out", tmp_path / "a.png")
    assert names(tmp_path) == ["a-2.png", "a-3.png", "a_2-0.png", "a_2-1.png", "a_2.png"]


def test_what_another_process_draws_just_now_is_left_to_it(tmp_path):
    out, one = tmp_path / "new" / "a.png", ("--num-images", 1, "--class", "a")
    with atomic.claimed(out) as mine, atomic.claimed(out) as twice:
        assert (mine, twice) == (True, False)
        run(*one, "--out", out)
        assert names(tmp_path) == ["new/.a.png.claim", "new/a_2.png"]
    (tmp_path / "new" / ".a.png.claim").touch()  # of a process that was killed
    run(*one, "--out", out)
    assert names(tmp_path) == ["new/a.png", "new/a_2.png"]


def test_overwriting_is_asked_for_and_what_stays_is_told(tmp_path, capsys):
    run("--num-images", 4, "--out", tmp_path / "a.png")
    before = (tmp_path / "a-0.png").read_bytes()
    capsys.readouterr()
    run("--num-images", 2, "--seed", 9, "--out", tmp_path / "a.png", "--overwrite")
    assert names(tmp_path) == ["a-0.png", "a-1.png", "a-2.png", "a-3.png", "a.png"]
    assert (tmp_path / "a-0.png").read_bytes() != before
    assert f"note: of an earlier run: 2 images from {tmp_path}/a-2.png on" in capsys.readouterr().out


def test_a_folder_ends_in_a_slash(tmp_path, capsys):
    run("--num-images", 2, "--out", f"{tmp_path}/new/")
    assert names(tmp_path) == ["new/sample-0.png", "new/sample-1.png", "new/sample.png"]
    assert "is there and is no file" in refused(capsys, "--out", tmp_path / "new")


def test_links_in_a_circle(tmp_path, capsys):
    (tmp_path / "a.png").symlink_to("a.png")
    assert "a.png: it is a link that leads nowhere" in refused(capsys, "--out", tmp_path / "a.png")


def test_a_home_is_meant_by_a_tilde(tmp_path, monkeypatch):
    """As in --out=~/a.png, which a shell leaves as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    run("--num-images", 1, "--out", "~/a.png", "--trace", "~/b.json")
    assert names(tmp_path) == ["a.png", "b.json"]


def test_patterns(tmp_path, capsys):
    run("--num-images", 2, "--seed", 5, "--out", f"{tmp_path}/{{model}}/{{preset}}-{{seed}}.png")
    assert names(tmp_path) == ["small/default-5.png", "small/default-6.png"]  # each has a name: no grid
    assert f"small/default-5.png to {tmp_path}/small/default-6.png: 2 images" in capsys.readouterr().out
    run("--num-images", 2, "--seed", 6, "--out", f"{tmp_path}/{{model}}/{{preset}}-{{seed}}.png")
    assert names(tmp_path)[2:] == ["small/default-6_2.png", "small/default-7_2.png"]
    run("--num-images", 2, "--method", "sjd:window=4", "--out", f"{tmp_path}/b/{{method}}.png")
    assert names(tmp_path / "b") == ["sjd-window=4-0.png", "sjd-window=4-1.png", "sjd-window=4.png"]
    run("--num-images", 1, "--out", f"{tmp_path}/c/{{index:03d}}.png")
    assert names(tmp_path / "c") == ["000.png"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{nope}.png", "got {nope} in --out"),
        ("{model.x}.png", "got {model.x} in --out"),
        ("{}.png", "got {} in --out"),
        ("{model.png", "expected braces in pairs"),
        ("{seed:q}.png", "with a format that does not fit"),
        ("a.gif", "expected a name that ends in .png, .jpg, .jpeg or .webp"),
        ("{model:.0}a.png", ""),
    ],
)
def test_patterns_that_say_nothing(tmp_path, capsys, name, words):
    if not words:
        run("--num-images", 1, "--out", tmp_path / name)
        assert names(tmp_path) == ["a.png"]
        return
    assert words in refused(capsys, "--out", tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".PNG", ""])
def test_formats_are_written_as_asked_and_say_what_a_png_says(tmp_path, suffix):
    run("--num-images", 2, "--out", tmp_path / "plain.png")
    run("--num-images", 2, "--out", tmp_path / f"a{suffix}")
    plain, other = open_picture(tmp_path / "plain-1.png"), open_picture(tmp_path / f"a-1{suffix or '.png'}")
    assert png.read_texts(other) == png.read_texts(plain) != {}
    assert other.format == png.FORMATS[suffix.lower()]
    far = np.abs(np.asarray(other).astype(int) - np.asarray(plain)).max()
    assert far == 0 if other.format != "JPEG" else far < 60
    assert Image.open(tmp_path / f"a{suffix}").size == (384, 192)


def test_grids_that_nothing_holds_are_refused():
    outputs.check_grid(Path("a.png"), 10_000, (64, 64))
    outputs.check_grid(None, 10**9, (8192, 8192))
    with pytest.raises(ValueError, match="got a grid of 640x64000 pixels, expected at most 16383 a side in WEBP"):
        outputs.check_grid(Path("a.webp"), 10_000, (64, 64))
    with pytest.raises(ValueError, match="got a grid of 1000 images of 1024x1024, expected at most 536870912 pixels"):
        outputs.check_grid(Path("a.png"), 1000, (1024, 1024))


def test_make_sample_overwrites_what_it_wrote():
    """It names its file, and is run again and again."""
    root = Path(__file__).parent.parent
    said = subprocess.run(["make", "-n", "-o", ".venv/installed", "sample"], cwd=root, capture_output=True, text=True)
    assert "--out out/sample.png --overwrite" in said.stdout, said.stderr


@pytest.mark.parametrize("flag", ["--num-images", "--batch-size"])
def test_counts_have_a_most(tmp_path, capsys, flag):
    for value in (10**10, 10**30):
        words = refused(capsys, flag, value, "--out", tmp_path / "a.png")
        assert words == f"vargen: got {flag} {value}, expected at most 10000\n"
    assert not list(tmp_path.iterdir())


def test_a_batch_that_no_memory_holds_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    argv = ["--model", "pocket-llamagen", "--num-images", "10000", "--batch-size", "10000", "--device", "cpu"]
    monkeypatch.setattr("vargen.core.machine.total_memory", lambda device: 16 << 30)
    monkeypatch.setattr(flags, "load", None)
    with pytest.raises(SystemExit):
        main.guarded(sample.command, argv)
    words = capsys.readouterr().err
    assert words.startswith("vargen: pocket-llamagen, sjd-exact:window=16, batch 10000: weights 0.0")
    assert words.endswith("cpu has 16.00 GiB: lower --batch-size\n")
