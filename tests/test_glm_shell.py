"""GLM-Image from a shell, from threads and in files that are drawn again; tiny and random."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from glm_folder import ASKED, load, picture
from PIL import Image
from shell import run

from vargen.core import png
from vargen.core.image_processor import open_picture
from vargen.models import glm_image


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(glm_image, "AREA", (128 * 192, 512 * 512))


def read_of(path):
    return png.read_texts(open_picture(path))


def test_a_shell_draws_what_a_call_draws_and_draws_it_again(repository, tmp_path, capsys):
    """With pictures, which the painter and the first stage both read; files say the size and the steps."""
    flags = ("--model", "glm-image", "--checkpoint", repository, "--height", 128, "--width", 192, "--prompt", "sea «a»")
    picture(1, (512, 640)).save(tmp_path / "source.png")
    how = {"height": 128, "width": 192, "num_inference_steps": 2, "guidance_scale": 3.0, "seed": 7}
    more = ("--num-inference-steps", 2, "--guidance-scale", 3, "--seed", 7, "--num-images", 1)
    for name, beside, given, plain in (
        ("text", (), {}, 271),
        ("edit", ("--image", tmp_path / "source.png"), {"image": Image.open(tmp_path / "source.png")}, 24),
    ):
        old, again = tmp_path / f"{name}.png", tmp_path / f"{name}-again.png"
        run(*flags, *more, *beside, "--out", old)
        assert f"instead of {plain}," in capsys.readouterr().out
        wanted = load(repository)("sea «a»", **how, **given)
        assert Image.open(old).tobytes() == wanted.images[0].tobytes()
        wanted.save(tmp_path / f"{name}-called.png")
        assert read_of(old)["size"] == "192x128"
        for one in (old, tmp_path / f"{name}-called.png"):
            run("--like", one, "--checkpoint", repository, *beside, "--out", again)
            assert "is another picture" not in capsys.readouterr().out
            assert Image.open(again).tobytes() == Image.open(old).tobytes()
            again.unlink()


def test_no_picture_is_dropped(repository):
    pipe = load(repository)
    with pytest.raises(ValueError, match="in a call alone"):
        pipe.read_prompts(["sea"], image=picture(1, (512, 512)))
    with pytest.raises(ValueError, match="without a picture"):
        pipe(["sea", "boat"], image=[[picture(1, (512, 512))], []], **ASKED)


def test_an_editing_pipeline_has_what_was_set(repository):
    pipe = load(repository).at(128, 192)
    pipe.drafters["mine"] = pipe.transformer
    found = pipe._edits(picture(1, (512, 512)), 1)
    assert found.drafters is pipe.drafters
    assert found._bar() == pipe._bar()
    assert not found.transformer.spec.previews
    assert pipe.transformer.spec.previews


def test_threads_paint_with_steps_of_their_own(repository):
    """The painter's scheduler counts steps; in turns of one step each, all of one scheduler would soon be over."""
    pipe, sizes = load(repository), [(128, 192), (192, 128), (160, 160)]
    asked = [{**ASKED, "height": high, "width": wide} for high, wide in sizes]
    wanted = [pipe("sea", seed=1, **how).images[0].tobytes() for how in asked]
    met = threading.Barrier(len(sizes), timeout=60)

    def waits(*_):
        met.wait()

    def draw(how):
        try:
            return pipe("sea", seed=1, **how).images[0].tobytes()
        except Exception:
            met.abort()  # nobody waits for who is gone
            raise

    pipe.painter.transformer.register_forward_pre_hook(waits)
    with ThreadPoolExecutor(len(sizes)) as pool:
        assert list(pool.map(draw, asked)) == wanted
