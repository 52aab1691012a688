"""The one reader of pictures that come in: turned, scaled, laid over white, repainted, or refused."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from vargen.core import png
from vargen.core.image_processor import as_mask, as_picture, open_picture, read_mask, read_picture
from vargen.eval.images import is_whole_png, read_image
from vargen.pipelines import values

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def made(stream, wide=6, high=6, colour=2, interlaced=0):
    """A PNG of 8 bits with every checksum right around whatever `stream` is; None: no pixels at all."""
    header = struct.pack(">IIBBBBB", wide, high, 8, colour, 0, 0, interlaced)
    pixels = b"" if stream is None else chunk(b"IDAT", stream)
    return png.START + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_sixteen_bits_of_grey_are_scaled(tmp_path):
    wide = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    path = save(tmp_path / "grey.png", Image.fromarray(wide))
    wanted = np.rint(wide / 257).astype(np.uint8)
    assert (np.asarray(read_mask(path)) == wanted).all()
    assert (read_image(path) == wanted[..., None]).all()
    assert (np.asarray(as_mask(Image.fromarray(wide.astype(">u2")))) == wanted).all()
    clear = Image.fromarray(wide)
    clear.info["transparency"] = int(wide[2, 3])
    assert np.argwhere(np.asarray(as_mask(clear))).tolist() == [[2, 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_lies_on_its_side_is_turned_upright_once(tmp_path, orientation):
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    image, exif = Image.fromarray(PIXELS), Image.Exif()
    exif[0x0112] = back
    exif[0x010F] = "a camera"
    stored = as_picture_with(image, exif)
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", stored, exif=exif)
    assert (read_image(path) == PIXELS).all()
    assert (np.asarray(as_picture(as_picture(Image.open(path)))) == PIXELS).all()
    assert (np.asarray(read_mask(path)) == np.asarray(image.convert("L"))).all()


def as_picture_with(image, exif):
    out = io.BytesIO()
    image.save(out, format="PNG", exif=exif)
    return as_picture(Image.open(out))


def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PIXELS), exif=b"Exif\0\0II*\0\xff\xff")
    assert (read_image(path) == PIXELS).all()


def test_transparency_is_laid_over_white():
    alpha = np.zeros((6, 8), np.uint8)
    alpha[:, 4:] = 255
    found = np.asarray(as_picture(Image.fromarray(np.dstack([PIXELS, alpha]))))
    assert (found[:, :4] == 255).all()  # and not the colours that are hidden there
    assert (found[:, 4:] == PIXELS[:, 4:]).all()
    palette = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).convert("P")
    palette.info["transparency"] = 5
    shown = np.asarray(as_picture(palette))
    assert (shown[0, 5] == 255).all()
    assert not (shown[0, 4] == 255).any()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_opaque_modes_are_converted_as_pillow_does(mode, tmp_path):
    image = Image.fromarray(PIXELS).convert(mode)
    assert (np.asarray(as_picture(image)) == np.asarray(image.convert("RGB"))).all()
    assert (np.asarray(as_mask(image)) == np.asarray(image.convert("L"))).all()
    if mode == "CMYK":
        path = save(tmp_path / "a.jpg", image)
        assert (read_image(path) == np.asarray(Image.open(path).convert("RGB"))).all()


def test_an_opaque_alpha_changes_nothing(tmp_path):
    image = Image.fromarray(PIXELS).convert("RGBA")
    assert (read_image(save(tmp_path / "a.png", image)) == PIXELS).all()
    white = Image.new("RGBA", (8, 6), "black")
    white.paste("white", (0, 0, 4, 6))
    assert (np.asarray(read_mask(save(tmp_path / "m.png", white)))[:, :4] == 255).all()
    assert not np.asarray(read_mask(tmp_path / "m.png"))[:, 4:].any()


@pytest.mark.parametrize("colour", ["black", "white"])
def test_the_hole_of_a_mask_is_repainted(colour):
    """OpenAI's form: whatever colours are there, what is transparent is repainted, and nothing else."""
    hole = Image.new("RGBA", (8, 6), colour)
    hole.putalpha(Image.fromarray(np.repeat([[0, 0, 100, 255, 255, 255, 255, 255]], 6, 0).astype(np.uint8)))
    assert np.asarray(as_mask(hole))[3].tolist() == [255, 255, 155, 0, 0, 0, 0, 0]
    square = hole.resize((8, 8), Image.Resampling.NEAREST)
    assert values.picture(square, 8, 1)[0, 0, 0].tolist() == pytest.approx([1, 1, 155 / 255, 0, 0, 0, 0, 0])
    assert torch.equal(values.picture(square, 8, 3)[0, :, 0, 0], torch.ones(3))


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (None, "it has fewer pixels than its header says"),
        (b"", "it has fewer pixels than its header says"),
        (b"this is no zlib stream", "its pixels cannot be inflated"),
        (zlib.compress(bytes(19 * 5)), "it has fewer pixels than its header says"),  # Pillow fills up with black
        (zlib.compress(b"\x09" + bytes(19 * 6)), "unrecognized data stream"),
    ],
)
def test_a_png_whose_pixels_are_wrong_is_not_whole(tmp_path, stream, words):
    path = tmp_path / "a.png"
    path.write_bytes(made(stream))
    assert not is_whole_png(path, 6)
    with pytest.raises(ValueError, match=rf"cannot read a picture: .*a\.png is damaged: {words}"):
        read_image(path)
    path.write_bytes(made(zlib.compress(bytes(19 * 6))))
    assert is_whole_png(path, 6)
    assert not read_image(path).any()


def test_a_png_that_no_run_writes_is_not_whole(tmp_path):
    for mode in ("RGBA", "L", "P"):
        assert not is_whole_png(save(tmp_path / "a.png", Image.new(mode, (6, 6))), 6)
    assert not is_whole_png(save(tmp_path / "a.png", Image.new("RGB", (6, 6)), format="BMP"), 6)


def test_interlaced_pngs_are_counted_by_their_passes(tmp_path):
    """Adam7 on 8x8: 15 rows in seven passes, each with its filter."""
    path = tmp_path / "a.png"
    path.write_bytes(made(zlib.compress(bytes(64 + 15)), 8, 8, colour=0, interlaced=1))
    assert read_image(path).shape == (8, 8, 3)
    path.write_bytes(made(zlib.compress(bytes(64 + 14)), 8, 8, colour=0, interlaced=1))
    with pytest.raises(ValueError, match="fewer pixels"):
        read_image(path)
    path.write_bytes(made(zlib.compress(bytes(1 + 3)), 1, 1, interlaced=1))  # six passes have nothing
    assert read_image(path).shape == (1, 1, 3)


def test_what_would_take_long_to_decode_is_refused(tmp_path):
    out = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(out, "JPEG", progressive=True)
    plain = out.getvalue()
    last = plain.rindex(b"\xff\xda")
    chunk = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    tall = io.BytesIO()
    Image.new("L", (1, 40_000)).save(tall, "PNG")
    many = io.BytesIO()
    Image.new("L", (8, 8)).save(many, "PNG")
    at = many.getvalue().index(b"IDAT") - 4
    for data, why in (
        (plain[:-2] + plain[last:-2] * 200 + plain[-2:], "scans, expected at most 100"),
        (many.getvalue()[:at] + chunk * 70_000 + many.getvalue()[at:], "has more than 65,536 chunks"),
        (tall.getvalue(), "expected at most 32,768 on a side"),
    ):
        path = tmp_path / "x.png"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=why):
            read_picture(path)
    path.write_bytes(plain)
    assert read_picture(path).size == (64, 64)


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(made(b"never looked at", 12_000, 12_000))
    with pytest.raises(ValueError, match="has 12000x12000 pixels, expected at most 67,108,864 in all"):
        read_image(path)
    for side, words in ((12_000, "has 12000x12000 pixels"), (40_000, "has too many pixels")):
        header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 1, 1, 0, 0)
        (tmp_path / "a.bmp").write_bytes(header)
        with pytest.raises(ValueError, match=words):
            read_image(tmp_path / "a.bmp")


def test_what_is_no_plain_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")  # opened, it would wait for ever
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for path, words in (
        (tmp_path / "a.png", "is no plain file"),
        (tmp_path / "b.png", "is no plain file"),
        (tmp_path, "is no plain file"),
        (tmp_path / "none.png", "cannot be opened: No such file or directory"),
    ):
        with pytest.raises(ValueError, match=f"cannot read a picture: {path} {words}"):
            open_picture(path)
        assert not is_whole_png(path, 6)


def test_each_refusal_has_one_reason(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    whole = save(tmp_path / "a.jpg", Image.fromarray(PIXELS.repeat(20, 0).repeat(20, 1))).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "f.tiff", Image.fromarray(np.zeros((6, 8), np.float32)))
    save(tmp_path / "a.eps", Image.fromarray(PIXELS)).rename(tmp_path / "eps.png")  # Pillow starts Ghostscript for it
    save(tmp_path / "a.ico", Image.fromarray(PIXELS)).rename(tmp_path / "ico.png")  # has a picture of any size within
    for name, words in (
        ("text.png", "is in no format that is read here, expected PNG, JPEG"),
        ("eps.png", "is in no format that is read here, expected PNG, JPEG"),
        ("ico.png", "is in no format that is read here, expected PNG, JPEG"),
        ("half.jpg", "is damaged: image file is truncated"),
        ("f.tiff", "got a picture of mode F, expected one with 8 bits a channel, or 16 of grey"),
    ):
        with pytest.raises(ValueError, match=words):
            read_picture(tmp_path / name)
    wide = Image.fromarray(PIXELS)
    wide.info["transparency"] = (0, 40_000, 0)
    with pytest.raises(ValueError, match="transparent colour has 16 bits"):
        as_picture(wide)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp"])
def test_what_is_said_is_read_back(tmp_path, suffix):
    said = {"seed": "7", "method": "sjd", "prompt": "ein Boot, überall; 船"}
    path = tmp_path / f"a{suffix}"
    png.save_picture(path, Image.fromarray(PIXELS), said)
    assert png.read_texts(open_picture(path)) == said
    assert open_picture(path).format == png.FORMATS[suffix]
    if suffix in (".png", ".webp"):
        assert (read_image(path) == PIXELS).all()
    assert png.read_texts(open_picture(save(path, Image.fromarray(PIXELS)))) == {}


def test_what_has_no_room_in_exif_is_left_out_longest_first(tmp_path):
    path = tmp_path / "a.jpg"
    png.save_picture(path, Image.fromarray(PIXELS), {"seed": "1," * 40_000, "model": "m"})
    assert png.read_texts(open_picture(path)) == {"model": "m"}


@pytest.mark.parametrize("said", ["[1]", "{", '{"seed": 3}', "[" * 50_000])
def test_a_description_that_somebody_else_wrote(tmp_path, said):
    exif = Image.Exif()
    exif[0x010E] = said
    assert png.read_texts(open_picture(save(tmp_path / "a.jpg", Image.fromarray(PIXELS), exif=exif))) == {}
