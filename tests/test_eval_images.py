"""Sets of images on disk: what is read, what is written in the ADM format, and what is refused by name."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from vargen.eval import images as sets

PIXELS = np.random.RandomState(0).randint(0, 256, (7, 6, 8, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for index, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(path / f"{index:03d}.png")
    (path / ".hidden.png").write_bytes(b"half of a file")
    (path / "notes.txt").write_text("not an image")
    return path


def all_of(images, batch=3):
    return np.concatenate(list(images.batches(batch)))


def test_a_folder_is_read_in_order_of_names(folder):
    images = sets.open_images(folder)
    assert (images.count, images.size) == (7, (6, 8))
    assert (all_of(images) == PIXELS).all()


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_is_read_in_a_stream(tmp_path, compressed):
    path = tmp_path / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, PIXELS)
    images = sets.open_images(path)
    assert (images.count, images.size) == (7, (6, 8))
    assert (all_of(images) == PIXELS).all()
    assert (images.read(5, 6) == PIXELS[5:6]).all()  # forward, and back again
    assert (images.read(1, 3) == PIXELS[1:3]).all()


def test_packed_files_are_numpy_s_and_take_the_classes_in_turn(folder, tmp_path):
    labels = [0, 0, 0, 1, 1, 2, 0]
    order = [0, 3, 5, 1, 4, 2, 6]
    assert sets.interleaved(labels) == order
    sets.pack(sets.open_images(folder), tmp_path / "a.npz", labels)
    with np.load(tmp_path / "a.npz") as file:
        assert (file["arr_0"] == PIXELS[order]).all()
        assert file["arr_1"].tolist() == [0, 1, 2, 0, 1, 0, 0]
        assert (file["arr_0"].dtype, file["arr_1"].dtype) == (np.uint8, np.int64)
    again = sets.open_images(tmp_path / "a.npz")
    sets.pack(again, tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as file:
        assert (file["arr_0"] == PIXELS[order]).all()


def test_twins_are_refused_and_nothing_is_left(folder, tmp_path):
    Image.fromarray(PIXELS[2]).save(folder / "009.png")
    with pytest.raises(ValueError, match=r"images 2 and 7 of .* are the same"):
        sets.pack(sets.open_images(folder), tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_labels_of_another_number(folder, tmp_path):
    with pytest.raises(ValueError, match="got 3 labels for 7 images"):
        sets.pack(sets.open_images(folder), tmp_path / "a.npz", [1, 2, 3])


def test_a_truncated_image_is_named(folder):
    path = folder / "004.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"004\.png is damaged"):
        all_of(sets.open_images(folder))
    assert not sets.is_whole_png(path, 6)


@pytest.mark.parametrize(("mode", "shown"), [("RGBA", 255), ("LA", 255), ("I;16", 0), ("CMYK", 255)])
def test_transparency_16_bits_and_cmyk_are_converted(folder, mode, shown):
    Image.new(mode, (8, 6)).save(folder / "004.png", format="TIFF" if mode == "CMYK" else "PNG")
    assert (all_of(sets.open_images(folder))[4] == shown).all()


def test_every_changed_byte_is_found(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS[0][:6, :6]).save(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not sets.is_whole_png(path, 6)


def test_a_wrong_size_is_named(folder):
    Image.new("RGB", (5, 5)).save(folder / "004.png")
    with pytest.raises(ValueError, match=r"004\.png is 5x5, expected 8x6"):
        all_of(sets.open_images(folder))


def test_whole_pngs(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (6, 6)).save(path)
    whole = path.read_bytes()
    assert sets.is_whole_png(path, 6)
    assert not sets.is_whole_png(path, 7)
    assert not sets.is_whole_png(tmp_path / "none.png", 6)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert not sets.is_whole_png(path, 6)


@pytest.mark.parametrize("cut", [0, 50, 0.5, -1])
def test_a_damaged_npz_is_named(tmp_path, cut):
    path = tmp_path / "a.npz"
    np.savez(path, PIXELS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if 0 < cut < 1 else int(cut)])
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        all_of(sets.open_images(path))


def test_an_npz_that_ends_early_or_was_changed(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (9, 6, 8, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(PIXELS.tobytes())
    with pytest.raises(ValueError, match="arr_0 ends before its 9 images"):
        all_of(sets.open_images(path))
    np.savez(path, PIXELS)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # the zip's checksum tells
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: Bad CRC-32"):
        all_of(sets.open_images(path), batch=7)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(3)}, "no arr_0"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8)}, r"\(2, 4, 4\) uint8, expected \(N, H, W, 3\)"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "float32, expected"),
        ({"arr_0": np.asfortranarray(PIXELS)}, "stored by columns"),
        ({"arr_0": PIXELS[:0]}, r"\(0, 6, 8, 3\) uint8, expected"),
        ({"arr_0": np.array([{}], dtype=object)}, "object, expected"),
    ],
)
def test_other_arrays(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        sets.open_images(tmp_path / "a.npz")


def test_nothing_there(tmp_path):
    for path, words in (
        (tmp_path, "no images in"),
        (tmp_path / "x.npz", "no file"),
        (tmp_path / "x.txt", "or an .npz"),
    ):
        with pytest.raises(ValueError, match=words):
            sets.open_images(path)


def test_one_image_too_large_is_refused_unread(tmp_path):
    """A small file may say that it holds an image of gigabytes; nothing of it is read."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (1, 40_000, 40_000, 3)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(ValueError, match=r"an image in .*a\.npz has 40000x40000 pixels, expected at most 67,108,864"):
        sets.open_images(path)


def test_more_images_than_bytes_are_refused_unread(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 6, 8, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(PIXELS.tobytes())
    with pytest.raises(ValueError, match="arr_0 ends before its 1000000000000000 images"):
        sets.open_images(path)


def test_every_changed_byte_of_a_header_is_one_sentence(tmp_path):
    """numpy hands it to Python's tokenizer, whose errors are none of its own."""
    path, out = tmp_path / "a.npz", io.BytesIO()
    np.save(out, PIXELS)
    whole = out.getvalue()
    said = []
    for place in range(len(whole) - PIXELS.nbytes):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128):
            content = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("arr_0.npy", content)
            try:
                sets.open_images(path)
            except ValueError as error:
                said.append(str(error))
    assert len(said) > 300
    assert all("a.npz" in words and "\n" not in words for words in said)


def test_batches_of_large_images_are_smaller():
    sizes = []

    def read(start, stop):
        sizes.append(stop - start)
        return PIXELS[:1]

    list(sets.Images("large", 12, (8192, 8192), read).batches(64))
    assert sizes == [5, 5, 2]
