"""GLM-Image from a repository's folder to a picture, with all parts of diffusers' pipeline tiny and random."""

import io
import json
import shutil

import pytest
import torch
from glm import ours
from glm_folder import ASKED, load, pipeline, words
from PIL import Image
from transformers import PreTrainedTokenizerFast

import vargen
from vargen.models import glm_image
from vargen.pipelines.glm_image import GlmImagePipeline
from vargen.pipelines.glm_painting import Painting
from vargen.server.orders import Batch, Done, Order
from vargen.server.painter import Painter


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(glm_image, "AREA", (128 * 192, 512 * 512))


def test_a_picture_is_what_diffusers_paints_of_the_same_codes(repository):
    pipe, theirs = load(repository), pipeline()
    out = pipe(["a red boat", "sea 'a'"], seed=[3, 4], **ASKED)
    assert [image.size for image in out.images] == [(192, 128)] * 2
    sized = pipe.at(128, 192)
    assert out.tokens.shape == (2, sized.transformer.spec.slots)
    preview, full = sized.transformer.spec.split(out.tokens)
    assert preview.shape == (2, 13, 19)
    assert full.shape == (2, 4, 6)
    for row, text in enumerate(["a red boat", "sea 'a'"]):
        prior = full[row].repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()[None]
        how = {"height": 128, "width": 192, "num_inference_steps": 2, "guidance_scale": 1.5, "output_type": "pil"}
        seeded = torch.Generator().manual_seed(3 + row)
        wanted = theirs(prompt=text, prior_token_ids=prior, generator=seeded, **how).images[0]
        assert wanted.tobytes() == out.images[row].tobytes()
        again = sized.decode(out.tokens[row : row + 1], prompt=text, seed=3 + row)  # with the usual 50 steps
        assert again[0].tobytes() != wanted.tobytes()
    assert out.trace.settings["num_inference_steps"] == 2
    assert out.trace.settings["guidance_scale"] == 1.5


def test_each_image_of_a_prompt_has_codes_of_its_own(repository):
    pipe = load(repository)
    out = pipe("a red boat", num_images_per_prompt=3, seed=1, output_type="latent", height=128, width=192)
    assert len({tuple(row.tolist()) for row in out.tokens}) == 3
    assert torch.equal(out.images, out.tokens)


def test_words_guidance_and_steps_reach_the_painter(repository):
    pipe = load(repository)
    first = pipe("sea", seed=1, **ASKED)
    for change in ({"guidance_scale": 4.0}, {"num_inference_steps": 3}):
        other = pipe("sea", seed=1, **{**ASKED, **change})
        assert torch.equal(first.tokens, other.tokens)
        assert first.images[0].tobytes() != other.images[0].tobytes()
    sized = pipe.at(128, 192)
    plain, quoted = (sized.decode(first.tokens, "np", prompt=text) for text in ("sea", "sea 'night'"))
    assert (plain != quoted).any()
    for kind, shape in (("np", (1, 128, 192, 3)), ("pt", (1, 3, 128, 192))):
        assert tuple(sized.decode(first.tokens, kind).shape) == shape
    assert sized.decode(first.tokens, "pil")[0].size == (192, 128)
    grid = sized.transformer.spec.split(first.tokens)[-1]
    assert sized.decode(grid)[0].tobytes() == sized.decode(first.tokens)[0].tobytes()


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(torch.zeros(1, 5, dtype=torch.int64), "expected"), (torch.full((1, 4, 6), 64), "no ids"), ([1], "expected")],
)
def test_tokens_that_are_none(repository, tokens, said):
    with pytest.raises(ValueError, match=said):
        load(repository).at(128, 192).decode(tokens)


def test_a_stream_paints_at_the_end(repository):
    pipe, last = load(repository), None
    for last in pipe.stream("sea", seed=2, height=128, width=192, method="sjd-exact:window=16"):
        assert last.tokens.shape == (1, 24 + 19 * 13)
    assert last is not None
    pipe.at(128, 192).painting = pipe.painting
    image = last.images()[0]
    assert isinstance(image, Image.Image)
    assert image.size == (192, 128)


def test_the_folder_itself_is_a_name(repository):
    assert vargen.load(repository).preset.name == "glm-image"


def test_the_first_stage_alone_gives_codes(repository, tmp_path):
    folder = tmp_path / "first"
    shutil.copytree(repository / "vision_language_encoder", folder)
    for file in (repository / "processor").iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    pipe = load(folder)
    assert pipe("sea", seed=0, output_type="latent", height=128, width=192).tokens.shape[0] == 1
    with pytest.raises(ValueError, match="diffusion transformer"):
        pipe("sea", seed=0, height=128, width=192)


@pytest.fixture
def copy(repository, tmp_path):
    return shutil.copytree(repository, tmp_path / "copy")


def rewrite(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: rewrite(f / "model_index.json", lambda x: x.update(_class_name="Other")), "expected a GlmImage"),
        (lambda f: shutil.rmtree(f / "processor"), "lacks processor"),
        (lambda f: shutil.rmtree(f / "vision_language_encoder"), "lacks vision_language_encoder"),
        (lambda f: shutil.rmtree(f / "transformer"), "diffusion transformer"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"no"), "diffusion transformer"),
        (
            lambda f: rewrite(
                f / "vision_language_encoder" / "config.json",
                lambda x: x["text_config"]["rope_parameters"].pop("mrope_section"),
            ),
            "lacks rope_parameters.mrope_section",
        ),
        (
            lambda f: rewrite(f / "vision_language_encoder" / "config.json", lambda x: x.update(model_type="janus")),
            "another model",
        ),
        (
            lambda f: rewrite(
                f / "processor" / "tokenizer_config.json",
                lambda x: [x.pop(key) for key in [*x] if key == "grid_bos_token" or key.endswith("special_tokens")],
            ),
            "grid_bos_token",
        ),
        (
            lambda f: rewrite(
                f / "vision_language_encoder" / "config.json", lambda x: x.update(image_start_token_id=63)
            ),
            "another token",
        ),
    ],
)
def test_folders_that_are_damaged(copy, break_it, said):
    break_it(copy)
    with pytest.raises(ValueError, match=said) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_no_pickle_is_read(copy):
    """A painter whose weights are in a format that can run code is refused, and nothing of it is run."""
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="diffusion transformer"):
        load(copy)


def test_other_files_have_no_place(repository):
    with pytest.raises(ValueError, match="tokenizer_checkpoint"):
        load(repository, tokenizer_checkpoint=repository)
    with pytest.raises(ValueError, match="no folder"):
        load(repository / "nowhere")


def test_the_first_stage_makes_room_for_the_painter(repository, monkeypatch):
    """The order of moves, on a machine without a second device."""
    pipe, moves = load(repository), []
    with pytest.raises(ValueError, match="on the CPU already"):
        pipe.enable_model_cpu_offload()
    pipe._offloads = True
    monkeypatch.setattr(GlmImagePipeline, "_moved", lambda self, device: moves.append(("first", device.type)))
    paint = GlmImagePipeline._paint
    monkeypatch.setattr(GlmImagePipeline, "_paint", lambda *given: moves.append("paint") or paint(*given))
    pipe(["sea", "boat"], seed=1, **ASKED)
    assert moves == [("first", "cpu"), "paint", "paint", ("first", "cpu")]


def orders(*seeds, **how):
    given = {"method": "sjd-exact:window=16", "preset": None, "law": (), "size": (128, 192), "image_size": None}
    return tuple(Order("glm-image", subject="sea 'a'", seeds=(seed,), **{**given, **how}) for seed in seeds)


def test_a_server_draws_codes_together_and_paints_each_image_alone(repository, monkeypatch):
    pipe = load(repository)
    sized = pipe.at(128, 192)
    monkeypatch.setattr(sized, "painting", Painting(2))
    monkeypatch.setattr(pipe, "painting", Painting(2))
    painter = Painter({"glm-image": pipe})
    (card,) = painter.cards
    assert not card.sketches
    events = list(painter.paint(Batch(orders(3, 4), (0, 1)), lambda ticket: True))
    done = {event.order: event for event in events if isinstance(event, Done)}
    assert sorted(done) == [0, 1]
    for index, seed in enumerate((3, 4)):
        alone = pipe("sea 'a'", seed=seed, **ASKED).images[0]
        assert Image.open(io.BytesIO(done[index].pictures[0])).tobytes() == alone.tobytes()


def test_words_survive_whatever_they_are(repository):
    """The painter reads the prompt as it was given, not as the first stage's tokens spell it."""
    pipe, texts = load(repository).at(128, 192), ["「海」 and “née”", "sea 'a'", "boat"]
    heard = []
    pipe._paint = lambda codes, text, seed, sources: heard.append(text) or torch.zeros(1, 3, 128, 192)
    pipe(texts, seed=1, batch_size=2, num_inference_steps=1, method="ar", num_images_per_prompt=2)
    assert heard == [text for text in texts for _ in range(2)]
    read = pipe.encode_prompt(["boat sea"])
    pipe(prompt_embeds=read[0], prompt_attention_mask=read[1], seed=1, method="ar")
    assert heard[-1] == "boat sea"


def test_a_diffusers_that_does_not_know_it(repository, monkeypatch):
    real = __import__

    def without(name, *given):
        found = real(name, *given)
        if name == "diffusers" and given and "GlmImagePipeline" in (given[2] or ()):
            raise ImportError("cannot import name GlmImagePipeline")
        return found

    monkeypatch.setattr("builtins.__import__", without)
    with pytest.raises(ValueError, match="has no GlmImagePipeline: install"):
        load(repository)


def test_a_text_tokenizer_without_its_marks_is_refused():
    """Whoever brings it: a saved folder, or a call."""
    bare = PreTrainedTokenizerFast(tokenizer_object=words().backend_tokenizer, bos_token="<|dit_token_64|>")
    with pytest.raises(ValueError, match="names no grid_bos_token"):
        GlmImagePipeline(ours(), text_tokenizer=bare)
