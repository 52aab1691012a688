"""Lumina-mGPT from files in the official format, written whole and then spoiled one way at a time."""

import json
from dataclasses import replace

import pytest
import torch
from chameleon import CODES, NAMES, VQGAN, decoder, vqgan, write
from PIL import Image
from safetensors.torch import load_file, save_file

import vargen
from vargen.commands import sample
from vargen.presets import lumina as presets

NAME = "lumina-mgpt-7b-768"
IDS = torch.zeros(1, 2, 3, dtype=torch.int64)
LATENT = {"output_type": "latent", "seed": 3}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return write(tmp_path_factory.mktemp("lumina"))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    small = replace(presets.MODELS[NAME], target=64, template="{width}x{height} {prompt}")
    monkeypatch.setitem(presets.MODELS, NAME, small)
    monkeypatch.setitem(presets.TOKENIZERS, "chameleon-vqgan", VQGAN)
    monkeypatch.setitem(presets.PRESETS, NAME, presets._preset(NAME))


@pytest.fixture
def folder(official, tmp_path):
    """A copy to be spoiled."""
    for path in official.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def load(folder, **options):
    pipe = vargen.load(NAME, checkpoint=folder, tokenizer_checkpoint=folder, device="cpu", **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_folder_loads_and_draws(official):
    pipe = load(official)
    state = pipe.transformer.decoder.state_dict()
    assert all(torch.equal(value, state[key].bfloat16()) for key, value in decoder().bfloat16().state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(pipe.tokenizer.parameters(), vqgan().parameters(), strict=True))
    out = pipe(prompt=["a red boat", "the sea"], method="sjd-coupled:window=4", seed=0)
    assert [image.size for image in out.images] == [(64, 64)] * 2
    wide = pipe(prompt="a red boat", height=32, width=128, method="zipar:window=2", seed=0)
    assert wide.images[0].size == (128, 32)
    assert wide.tokens.shape == (1, 2, 8)
    again = pipe.at(32, 128)
    states, mask = again.encode_prompt("a red boat")
    more = again(prompt_embeds=states, prompt_attention_mask=mask, method="zipar:window=2", seed=0)
    assert torch.equal(more.tokens, wide.tokens)


def test_one_file_instead_of_shards(official, folder):
    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    for path in folder.glob("model*"):
        path.unlink()
    save_file({key: value for part in parts for key, value in part.items()}, folder / "model.safetensors")
    how = {"prompt": "a boat", "method": "ar", **LATENT}
    assert torch.equal(load(folder)(**how).tokens, load(official)(**how).tokens)


def test_streaming_and_lantern(official):
    pipe = load(official)
    steps = list(pipe.stream(prompt="a red boat", method="sjd-coupled:window=4:rule=lantern:k=3", seed=1))
    assert steps[-1].settled == [pipe.transformer.spec.slots]
    assert steps[0].images()[0].size == (64, 64)


def test_command_line(official, tmp_path, capsys):
    out = tmp_path / "drawn.png"
    flags = ["--checkpoint", str(official), "--tokenizer-checkpoint", str(official), "--device", "cpu"]
    sample.command(
        [*flags, "--model", NAME, "--prompt", "a red boat", "--height", "32", "--width", "128", "--out", str(out)]
    )
    assert "2 images" in capsys.readouterr().out

    assert Image.open(out.with_name("drawn-0.png")).size == (128, 32)


def spoil_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def spoil_index(folder):
    (folder / "model.safetensors.index.json").write_text("[]")


def spoil_all_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()


def config(folder, **changes):
    path = folder / "config.json"
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def renamed(**changes):
    return {changes.get(name, name): id for name, id in NAMES.items()}


def spoil_order(folder):
    config(folder, vocabulary_map=renamed(IMGIMGAZ="IMGIMGBZ", IMGIMGBZ="IMGIMGAZ"))


def spoil_map(folder):
    config(folder, vocabulary_map={name: id for name, id in NAMES.items() if name != "<racm3:break>"})


def spoil_count(folder):
    config(folder, vocabulary_map={name: id for name, id in NAMES.items() if id != 3 + CODES})


def spoil_tokenizer(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"<reserved08706>"', '"<reserved00000>"'))


def spoil_yaml(folder):
    path = folder / "vqgan.yaml"
    path.write_text(path.read_text().replace("n_embed: 24", "n_embed: 25"))


SPOILED = [
    (spoil_shard, r"lacks model-00002-of-00002.safetensors of 2 files"),
    (spoil_index, "is damaged: expected JSON with a weight_map"),
    (spoil_all_weights, r"no weights file in .* expected model.safetensors"),
    (spoil_order, "do not follow one another in order"),
    (spoil_map, "without <racm3:break>"),
    (spoil_count, "has 23 image codes, expected 24"),
    (lambda folder: config(folder, vocabulary_map=None), "has no vocabulary_map"),
    (lambda folder: config(folder, hidden_size=None), "config.json lacks hidden_size"),
    (lambda folder: config(folder, intermediate_size=40), "has intermediate_size 40, and its weights have 48"),
    (lambda folder: (folder / "config.json").write_text("{"), r"cannot read .*config.json"),
    (lambda folder: config(folder, num_hidden_layers="2"), "has num_hidden_layers '2', expected a whole number"),
    (lambda folder: config(folder, num_attention_heads=0), "has num_attention_heads 0, expected a whole number"),
    (
        lambda folder: config(folder, rope_scaling={"type": "linear", "factor": 2.0}),
        r"has rope_scaling .* only None is built",
    ),
    (spoil_tokenizer, "the text tokenizer gives <reserved08706> the id None"),
    (spoil_yaml, r"vqgan.yaml is of another image tokenizer"),
    (lambda folder: (folder / "vqgan.ckpt").unlink(), r"no weights file .* name vqgan.ckpt"),
]


@pytest.mark.parametrize(("spoil", "complaint"), SPOILED)
def test_spoiled_files(folder, spoil, complaint):
    spoil(folder)
    with pytest.raises(ValueError, match=complaint):
        load(folder)


def test_bad_requests(official):
    pipe = load(official)
    for how, complaint in (
        ({"prompt": "  "}, "empty prompt"),
        ({"prompt": "sea " * 200}, "got a prompt of 20. tokens, expected at most 73"),
        ({"prompt": "sea", "height": 48}, "draws no 64x48 pixels; the sizes nearest to it: 64x64"),
        ({"prompt": "sea", "height": "x"}, "got height 'x', expected a whole number"),
        ({"prompt": "sea", "height": 32, "width": 128, "image_size": 64}, "a square, for images that are none"),
        ({"class_labels": 1}, "takes no class"),
        ({}, "give either a prompt or prompt_embeds"),
        ({"prompt": "sea", "method": "speculative"}, "needs a drafter"),
        ({"prompt": "sea", "method": "speculative:drafter=eagle"}, "no EAGLE head|cannot draft"),
        ({"prompt": "\ud800 sea"}, "holds half of a character"),
        ({"prompt_embeds": IDS, "prompt_attention_mask": torch.zeros(1, 2, 3)}, "words first"),
        ({"prompt_embeds": IDS, "prompt_attention_mask": torch.full((1, 2, 3), float("nan"))}, "words first"),
        ({"prompt": "sea", "method": "var"}, "does not draw with raster models"),
        ({"prompt_embeds": torch.zeros(1, 2, 3), "prompt_attention_mask": torch.ones(1, 2, 3)}, "no token ids"),
    ):
        with pytest.raises(ValueError, match=complaint):
            pipe(**how)
    with pytest.raises(ValueError, match="no folder"):
        load(official / "nothing")


def test_a_model_drafts_for_another_at_every_size(official):
    pipe, plain = load(official, drafter=NAME, drafter_checkpoint=official), load(official)
    for size in ({}, {"height": 32, "width": 128}):
        how = {"prompt": ["a red boat", "sea"], **LATENT, **size}
        out = pipe(method="speculative:length=3", **how)
        assert out.tokens.shape == plain(method="ar", **how).tokens.shape
        assert out.trace.drafts_kept > 0.9 * out.trace.drafts  # it drafts for itself


def test_a_picture_is_read(official, tmp_path, capsys):
    Image.new("RGB", (90, 90), "red").save(tmp_path / "red.png")
    flags = ["--checkpoint", str(official), "--tokenizer-checkpoint", str(official), "--device", "cpu", "--model", NAME]
    flags += ["--prompt", "the boat", "--num-images", "2", "--method", "ar"]
    flags += ["--out", str(tmp_path / "drawn.png")]  # not the default: its window hangs on how fast the machine is
    sample.command([*flags, "--image", str(tmp_path / "red.png")])
    assert "2 images" in capsys.readouterr().out
    pipe, red = load(official), Image.open(tmp_path / "red.png")
    how = {"prompt": ["the boat"] * 2, "method": "ar", "seed": 0}
    with_it = pipe(image=[red] * 2, **how)
    for index, image in enumerate(with_it.images):
        assert image.tobytes() == Image.open(tmp_path / f"drawn-{index}.png").tobytes()
    assert not torch.equal(with_it.tokens, pipe(**how).tokens)
    with pytest.raises(ValueError, match="got pictures for 1 prompts and 2 prompts"):
        pipe(prompt=["a", "the"], image=red)
    states, mask = pipe.encode_prompt("a")
    with pytest.raises(ValueError, match="got an image and no prompt"):
        pipe(prompt_embeds=states, prompt_attention_mask=mask, image=red)
