"""Sampling runs: the same files whatever was there before, and no loss when something goes wrong."""

import errno
import json
import os
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from small import PRESETS, pipeline

from vargen.core import registry
from vargen.eval import plan, runs
from vargen.presets import llamagen

SMALL = PRESETS["small"]


def make(count=10, method="sjd-exact:window=4", recipe=None, law=None, **rest):
    return plan.make(SMALL, method, count, recipe=recipe, law=law or {}, **{"batch_size": 4, **rest})


def draw(wanted, out):
    return runs.sample(wanted, lambda device: pipeline(), out, device="cpu")


def files(out):
    return {path.name: path.read_bytes() for path in (out / "images").iterdir()}


def test_what_image_i_is_depends_on_i_alone():
    short, long = make(count=7), make(count=70)
    for index in range(7):
        assert short.label(index) == long.label(index)
        assert short.texts(index) == long.texts(index)
        assert short.name(index) == long.name(index)
    assert [len(group) for group in short.groups] == [4, 3]
    assert [long.label(i) for i in range(6)] == [0, 1, 2, 3, 4, 0]


def test_random_labels_are_uniform_and_not_balanced():
    many = replace(make(count=5000), labels="random")
    labels = [many.label(i) for i in range(5000)]
    counts = [labels.count(c) for c in range(5)]
    assert all(900 < count < 1100 for count in counts)
    assert counts != [1000] * 5
    assert replace(many, seed=1).label(3) in range(5)
    recipes = llamagen.PRESETS["llamagen-c2i-b-384"].recipes
    assert (recipes["demo"].labels, recipes["fid"].labels) == ("balanced", "random")


def test_a_window_that_follows_the_clock_is_fixed():
    assert make(method="sjd").method == "sjd:window=16"
    assert make(method="sjd:guess=left:window=auto").method == "sjd:guess=left:window=16"
    assert make(method="ar").method == "ar"


def test_files_texts_checksums_and_totals(tmp_path):
    wanted, out = make(), tmp_path / "run"
    manifest = draw(wanted, out)
    assert manifest["complete"]
    assert manifest["traced_images"] == 10
    assert 1 < manifest["forwards_per_image"] < 36
    assert manifest["seconds_sampling"] > 0
    for index in range(10):
        with Image.open(out / "images" / f"{index:06d}.png") as image:
            assert image.size == (12, 12)
            assert image.info["seed"] == str(index)
            assert image.info["class"] == str(index % 5)
    alone = pipeline()([3], seed=[3], method=wanted.method).images[0]
    assert alone.tobytes() == Image.open(out / "images" / "000003.png").tobytes()
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out / "images", capture_output=True)
    assert done.returncode == 0


def test_what_is_whole_is_not_drawn_again_and_what_is_not_is(tmp_path):
    wanted, out = make(), tmp_path / "run"
    checksum = draw(wanted, out)["checksum"]
    before, times = files(out), {path: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}
    (out / "images" / "000002.png").write_bytes(before["000002.png"][:-5])  # truncated
    Image.new("RGB", (5, 5)).save(out / "images" / "000005.png")  # of another size
    for name, age in ((".000009.png.x.png", 7200), (".000001.png.y.png", 5)):
        (out / "images" / name).write_bytes(b"left by a killed process, or being written by another")
        os.utime(out / "images" / name, (time.time() - age, time.time() - age))
    again = draw(wanted, out)
    (out / "images" / ".000001.png.y.png").unlink()
    assert files(out) == before
    assert again["checksum"] == checksum
    kept = [path for path, at in times.items() if path.stat().st_mtime_ns == at]
    assert sorted(path.name for path in kept) == ["000008.png", "000009.png"]  # the third group


@pytest.mark.parametrize("changes", [{"seed": 1}, {"count": 11}, {"method": "ar"}, {"law": {"top_k": 3}}])
def test_another_run_in_the_same_folder_is_refused(tmp_path, changes):
    out = tmp_path / "run"
    draw(make(count=3), out)
    before = files(out)
    with pytest.raises(ValueError, match=f"holds another run: {next(iter(changes))} "):
        draw(make(**{"count": 3, **changes}), out)
    assert files(out) == before
    (out / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        draw(make(count=3), out)


@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
def test_other_weights_are_another_run(tmp_path, part):
    def other(device):
        pipe = pipeline()
        list(getattr(pipe, part).parameters())[-1].view(-1)[-1:].mul_(1.5)  # the very last number
        return pipe

    draw(make(count=3), tmp_path / "run")
    with pytest.raises(ValueError, match="holds another run: weights"):
        runs.sample(make(count=3), other, tmp_path / "run", device="cpu")


def test_the_text_encoder_is_part_of_the_weights():
    pipe = pipeline()
    before = runs.fingerprint(pipe, "ar")
    pipe.register_modules(text_encoder=torch.nn.Linear(3, 3))
    assert runs.fingerprint(pipe, "ar") != before


def test_weights_that_pytorch_does_not_tell_of_are_seen():
    pipe = pipeline()
    before = runs.fingerprint(pipe, "ar")
    for value in pipe.transformer.parameters():
        value.data.mul_(0.999)  # as an average of weights is written
    assert runs.fingerprint(pipe, "ar") != before


def test_images_that_were_swapped_or_damaged_later_are_found_and_drawn_again(tmp_path):
    wanted, out = make(), tmp_path / "run"
    checksum, before = draw(wanted, out)["checksum"], files(out)
    image = out / "images" / "000003.png"
    flipped = bytearray(before["000003.png"])
    flipped[len(flipped) // 2] ^= 1
    for content in (before["000001.png"], bytes(flipped)):
        image.write_bytes(content)
        with pytest.raises(ValueError, match=r"other images than it drew, 000003\.png"):
            runs.check(wanted, out)
        assert draw(wanted, out)["checksum"] == checksum
        assert files(out) == before


def test_a_finished_run_is_left_alone_and_an_unfinished_one_is_told(tmp_path):
    wanted, out = make(count=3), tmp_path / "run"
    draw(wanted, out)
    manifest = (out / "manifest.json").read_text()
    draw(wanted, out)
    assert (out / "manifest.json").read_text() == manifest
    (out / "manifest.json").write_text(manifest.replace('"complete": true', '"complete": false'))
    with pytest.raises(ValueError, match="is not finished: run the same command again"):
        runs.check(wanted, out)


def test_a_run_that_was_killed_before_it_had_a_manifest(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".manifest.json.abc.json").write_text("{")
    assert draw(make(count=2), tmp_path / "run")["complete"]


@pytest.mark.parametrize(
    "text", ["{}", "null", "[]", '{"images": 4, "forwards_per_image": "x", "seconds": {"total": 1}}']
)
def test_traces_that_are_lost_or_damaged_give_no_price(tmp_path, text):
    wanted, out = make(count=3), tmp_path / "run"
    draw(wanted, out)
    (out / "traces" / "000000.json").write_text(text)
    assert runs.totals(wanted, out) == {"traced_images": 0, "seconds_sampling": None, "forwards_per_image": None}


WRONG = [{"count": "6"}, {"law": None}, {"classes": "5"}, {"model": ["x"]}, {"more": 1}]
WRONG += [{"count": 10**12}, {"count": True}, {"batch_size": 0}, {"classes": 0}, {"prompts": [1]}]


@pytest.mark.parametrize("change", [*WRONG, {"law": {"image_size": "x"}}])
def test_manifests_of_wrong_types_or_counts(tmp_path, change):
    wanted = make(count=3).json() | change
    (tmp_path / "manifest.json").write_text(json.dumps({"plan": wanted}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        plan.load(tmp_path / "manifest.json")


def test_names_sort_as_numbers_at_any_count():
    wanted = make(count=1_000_001)
    assert [wanted.name(i) for i in (0, 999_999, 1_000_000)] == ["0000000.png", "0999999.png", "1000000.png"]
    assert make(count=1_000_000).name(7) == "000007.png"


def test_seeds_of_any_size():
    many = replace(make(count=10), labels="random", seed=10**30)
    assert {many.label(i) for i in range(10)} <= set(range(5))
    with pytest.raises(ValueError, match="got image size 0"):
        make(law={"image_size": 0})


def test_devices_that_are_not_there(tmp_path):
    for name in ("banana", "cuda:77"):
        with pytest.raises(ValueError, match="device"):
            runs.sample(make(), lambda device: pipeline(), tmp_path / "run", device=name)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        draw(make(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    wanted, out, save, written = make(), tmp_path / "run", runs.save_picture, []

    def full(path, image, texts):
        if len(written) == 6:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        save(path, image, texts)

    monkeypatch.setattr(runs, "save_picture", full)
    with pytest.raises(ValueError, match=r"No space left on device\); 6 images are there and kept"):
        draw(wanted, out)
    with pytest.raises(ValueError, match=r"lacks 000006\.png, 000007\.png, 000008\.png, 000009\.png: run the same"):
        runs.check(wanted, out)
    monkeypatch.setattr(runs, "save_picture", save)
    draw(wanted, out)
    assert files(out) == files_of_a_fresh_run(wanted, tmp_path)


def files_of_a_fresh_run(wanted, tmp_path):
    draw(wanted, tmp_path / "fresh")
    return files(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "number of images 0"),
        ({"batch_size": 0}, "batch size 0"),
        ({"method": "nope"}, "unknown method"),
        ({"recipe": "fid"}, "no preset 'fid'"),
        ({"law": {"top_p": 3.0}}, "top-p"),
        ({"prompts": ("a boat",)}, "takes no prompts"),
    ],
)
def test_wrong_plans(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_the_small_preset_is_only_in_the_tests():
    assert "small" not in registry.MODELS
