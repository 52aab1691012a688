"""Pictures say how they were drawn, and are drawn again from it; what a stranger says is checked."""

import json

import numpy as np
import pytest
import small
from PIL import Image
from shell import refused, run
from torchvision.transforms.v2.functional import pil_to_tensor as to_image

from vargen.core import png, registry
from vargen.core.image_processor import open_picture
from vargen.server.orders import Batch, Done, Order
from vargen.server.painter import Painter


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    for name in small.PRESETS:
        monkeypatch.setitem(registry.MODELS, name, "small:PRESETS")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_picture_is_drawn_again_byte_for_byte(tmp_path, capsys, batch, suffix):
    law = ("--temperature", 0.9, "--top-k", 20, "--guidance-scale", 1.5, "--preset", "plain", "--image-size", 20)
    run("--model", "small", "--class", "b", "--class", 3, "--num-images", 5, "--seed", 7, "--batch-size", batch, *law,
        "--method", "sjd-coupled:guess=left", "--window", 4, "--out", tmp_path / f"a.{suffix}")  # fmt: skip
    for name in ("a-0", "a-3", "a"):
        old, new = tmp_path / f"{name}.{suffix}", tmp_path / name / f"again.{suffix}"
        run("--like", old, "--out", new)
        assert new.read_bytes() == old.read_bytes()
        assert f"{new} is {old}, byte for byte" in capsys.readouterr().out


def test_a_file_and_a_trace_say_what_was_drawn_with_what(tmp_path):
    out = ("--out", tmp_path / "a.png", "--trace", tmp_path / "t.json")
    run("--model", "small", "--class", "b", "--class", 3, "--num-images", 4, "--batch-size", 3, *out)
    texts = png.read_texts(open_picture(tmp_path / "a-1.png"))
    assert (texts["class"], texts["preset"], texts["dtype"], texts["size"]) == ("3", "default", "float32", "12x12")
    assert json.loads(texts["batch"]) == {"index": 1, "seeds": [0, 1, 2], "class": [1, 3, 1]}
    assert "batch" not in png.read_texts(open_picture(tmp_path / "a-3.png"))  # which was drawn alone
    drawn = json.loads((tmp_path / "t.json").read_text())["drawn"]
    assert drawn["class"] == [1, 3, 1, 3]
    assert drawn["weights"] == texts["weights"]
    assert len(texts["weights"]) == 16


def test_other_weights_are_told(tmp_path, monkeypatch, capsys):
    run("--model", "small", "--class", "b", "--num-images", 1, "--out", tmp_path / "a.png")
    other = small.pipeline()
    other.transformer.output.weight.mul_(1.5)
    monkeypatch.setattr("vargen.commands.flags.load", lambda options: other)
    capsys.readouterr()
    run("--like", tmp_path / "a.png", "--out", tmp_path / "b.png")
    assert "was drawn by other weights, which --checkpoint may name" in capsys.readouterr().out


def test_repainted_pictures_want_what_they_were_made_from(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for name, picture in zip(("in", "other"), pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 4))).save(tmp_path / "mask.png")
    made = ("--image", tmp_path / "in.png", "--mask-image", tmp_path / "mask.png")
    run("--model", "small-scales", "--class", "c", "--num-images", 2, *made, "--out", tmp_path / "a.png")
    again = ("--like", tmp_path / "a-1.png", "--out", tmp_path / "b.png")
    run(*again, *made)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a-1.png").read_bytes()
    assert "was made from a picture: give it by --image" in refused(capsys, *again)
    made = ("--image", tmp_path / "other.png", *made[2:])
    assert "was made from another --image" in refused(capsys, *again, *made)


def test_pictures_of_a_call_and_of_the_server_are_drawn_again(tmp_path):
    pipe = small.pipeline()
    (saved,) = pipe(["b"], method="sjd-exact", window=4, seed=3, guidance_scale=1.5).save(tmp_path)
    run("--like", saved, "--out", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == saved.read_bytes()
    orders = [Order("small", "sjd-exact:window=4", None, (), None, None, label, (label, 9)) for label in (1, 2)]
    events = list(Painter({"small": pipe}).paint(Batch(tuple(orders), (0, 1)), lambda ticket: True))
    pictures = [data for event in events if isinstance(event, Done) for data in event.pictures]
    assert len(pictures) == 4
    for number, data in enumerate(pictures):
        path = tmp_path / f"served-{number}.png"
        path.write_bytes(data)
        assert "batch" not in png.read_texts(open_picture(path))  # what strangers asked for is nobody's business
        run("--like", path, "--out", tmp_path / f"drawn-{number}.png")
        assert (tmp_path / f"drawn-{number}.png").read_bytes() == data


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "1", "L", "tensor"])
def test_pictures_that_a_call_repainted_are_drawn_again(tmp_path, kind):
    """Pictures and masks are told apart as they are read, in whatever mode they came."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image, mask = Image.fromarray(pixels), Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 4)))
    mask.convert("L" if kind == "tensor" else kind).save(tmp_path / "mask.png")
    image.convert("RGBA").save(tmp_path / "in.png")
    given = {"image": image.convert("RGBA"), "mask_image": mask.convert("L" if kind == "tensor" else kind)}
    if kind == "tensor":
        given = {"image": to_image(image) / 255, "mask_image": to_image(mask)[0] / 255}
    (saved,) = small.scale_pipeline()("c", seed=3, **given).save(tmp_path)
    run(
        "--like",
        saved,
        "--out",
        tmp_path / "b.png",
        "--image",
        tmp_path / "in.png",
        "--mask-image",
        tmp_path / "mask.png",
    )
    assert (tmp_path / "b.png").read_bytes() == saved.read_bytes()


def test_what_cannot_be_the_same_says_why(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("--model", "small", "--class", "b", "--num-images", 1, "--method", "ar", "--out", "a.jpg")
    run("--like", "a.jpg")
    assert "out/sample.jpg is a.jpg, byte for byte" in capsys.readouterr().out
    run("--like", "a.jpg", "--out", "b.png")
    assert "is of another format: name one such by --out" in capsys.readouterr().out


def test_a_description_that_is_no_text(tmp_path, capsys):
    for value in (5, 70_000):
        exif = Image.Exif()
        exif[png.DESCRIPTION] = value
        Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", exif=exif)
        assert "does not say how it was drawn" in refused(capsys, "--like", tmp_path / "photo.jpg")


GOOD = {"seed": "1", "model": "small", "method": "ar", "settings": "{}", "class": "1"}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"model": ""}, "does not say how it was drawn: it names no model"),
        ({"model": "small\n\x1b[31mall is well"}, "unknown model"),
        ({"method": "ar:checkpoint=/etc/passwd"}, "has no setting"),
        ({"method": "sjd:window=100000000"}, "got window 100000000, expected at most 256"),
        ({"method": "sjd", "settings": '{"window": 100000000}'}, "got window 100000000, expected at most 256"),
        ({"settings": "[" * 100_000}, "nests more than 64 deep"),
        ({"settings": "[]"}, "its settings are no object"),
        ({"settings": '{"temperature": NaN}'}, "temperature nan"),
        ({"settings": '{"quantize": "int99"}'}, "got quantize"),
        ({"seed": "1e9"}, "got seed"),
        ({"seed": "9" * 5000}, "got seed"),
        ({"class": "77"}, "got class 77"),
        ({"preset": "fid"}, "has no preset"),
        ({"dtype": "float8"}, "got dtype"),
        ({"image_size": "99999999"}, "image size"),
        ({"batch": '{"seeds": [1], "class": [1, 2]}'}, "got 1 seeds for 2 images"),
        ({"batch": '{"seeds": [1, 2], "class": [1, 2], "index": 5}'}, "got index 5"),
        ({"batch": '{"seeds": [1, 2], "class": [1, 2], "size": 1e9}'}, "got batch size"),
        ({"batch": '{"seeds": 5, "class": [1, 2]}'}, "does not say how it was drawn"),
        ({"batch": json.dumps({"seeds": list(range(20_000)), "class": [1] * 20_000})}, "got 20000 seeds"),
        ({"image": "x" * 3000}, "repaints no pictures"),
        ({"batch": "[1]"}, "names no images that it was drawn beside"),
        ({"class": ""}, "unknown class ''"),
        ({"device": "vargen: all is well"}, "got device"),
        ({"negative_prompt": '["a", "b"]'}, "had negative prompts of their own"),
        ({"free_size": "true"}, "its size was chosen by the model"),
    ],
)
def test_what_a_strangers_file_says_is_checked(tmp_path, capsys, texts, words):
    path = tmp_path / "a.png"
    path.write_bytes(png.encode(Image.new("RGB", (12, 12)), GOOD | texts))
    said = refused(
        capsys, "--like", path, "--out", tmp_path / "b.png", *(["--image", path] if "image" in texts else [])
    )
    assert words in said
    assert len(said) < 1500
    assert not (tmp_path / "b.png").exists()


def test_a_picture_that_says_nothing_and_flags_that_do_not_go_with_it(tmp_path, capsys):
    Image.new("RGB", (12, 12)).save(tmp_path / "a.png")
    assert "does not say how it was drawn" in refused(capsys, "--like", tmp_path / "a.png")
    for flag in ("--seed", "--num-images", "--top-k"):
        assert f"it takes no {flag}" in refused(capsys, "--like", tmp_path / "a.png", flag, 3)
    assert "cannot read a picture" in refused(capsys, "--like", tmp_path / "none.png")
