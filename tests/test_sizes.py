"""Images of other sizes, and of what speaks of sizes: embeddings, pictures, folders that are something else."""

import copy
import json

import chameleon
import harmon_plain
import pytest
import torch
import torch.nn.functional as F
import wrapped
from every_kind import emu, lumina
from PIL import Image
from small import latent_pipeline, randomised

import vargen
from vargen.models import emu3
from vargen.models.emu3 import Emu3
from vargen.models.mar import stretched
from vargen.pipelines.continuous import ContinuousPipeline
from vargen.pipelines.prompted import PromptedPipeline
from vargen.tokenizers.kl import KLConfig, KLTokenizer

LATENT = {"seed": 3, "output_type": "latent"}
METHOD = "mar:iterations=3:steps=2"


@pytest.fixture(scope="module")
def harmon(tmp_path_factory):
    images = KLConfig((8, 8), 1, harmon_plain.SMALL.mar.channels, norm_groups=4)
    model = harmon_plain.small(tmp_path_factory.mktemp("harmon"))
    words = harmon_plain.text_tokenizer()
    pipe = ContinuousPipeline(model, randomised(KLTokenizer(images), 0, 1.0), text_tokenizer=words)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_harmon_draws_any_grid(harmon):
    high, wide = harmon.size
    out = harmon(prompt=["a red boat"], height=2 * high, width=wide + 2, method=METHOD, seed=0)
    assert out.images[0].size == (wide + 2, 2 * high)
    side = harmon.transformer.config.side
    assert out.tokens.shape[1] == 2 * side * (side + 1)
    there = harmon.at(2 * high, wide + 2)
    assert there is harmon.at(2 * high, wide + 2)
    assert there.transformer.llm is harmon.transformer.llm
    assert harmon.at(high, wide) is harmon
    assert torch.equal(there.decode(out.tokens, "pt"), harmon.at(2 * high, wide + 2).decode(out.tokens, "pt"))
    assert (
        list(harmon.stream(prompt=["a dog"], width=wide + 2, method=METHOD, seed=0))[-1].images()[0].width == wide + 2
    )


def test_its_position_tables_are_stretched(harmon):
    mar = harmon.transformer.mar
    table, front, side = mar.encoder_positions[0], mar.config.buffer, mar.config.side
    grid = table[front:].T.reshape(1, -1, side, side)
    wanted = F.interpolate(grid, size=(3, 7), mode="bilinear", align_corners=False).flatten(2)[0].T
    assert torch.equal(stretched(table, front, (3, 7)), torch.cat([table[:front], wanted]))
    assert torch.equal(mar.positions((side, side)).encoder, table)


def test_a_drafter_comes_along(harmon):
    pipe = ContinuousPipeline(harmon.transformer, harmon.tokenizer, text_tokenizer=harmon.text_tokenizer)
    pipe.set_progress_bar_config(disable=True)
    # Of laws that differ by rounding alone, little or nothing is left to replace a rejected draft from: it ends.
    pipe.drafter = pipe.drafters["small"] = copy.deepcopy(harmon.transformer)
    wide = pipe.size[1] + 2
    out = pipe(prompt=["a dog"], width=wide, method="csd:iterations=3:upper=3:lower=2", **LATENT)
    assert out.trace.drafter_forwards > 0
    assert pipe.at(width=wide).drafter.grid == pipe.at(width=wide).transformer.grid  # pyright: ignore


def test_sizes_that_it_cannot_draw(harmon):
    for high, wide, why in (
        (5, 8, "draws no 8x5 pixels, expected multiples of 2 with 16 to 4096 tokens of 2x2 in all"),
        (2, 2, "draws no 2x2 pixels"),
        (2000, 2000, "draws no 2000x2000 pixels"),
        (0, 8, "got height 0"),
    ):
        with pytest.raises(ValueError, match=why):
            harmon(prompt="a dog", height=high, width=wide, method=METHOD, seed=0)
    with pytest.raises(ValueError, match="draws no 16x16 pixels: all its images are 8x8"):
        latent_pipeline().at(16, 16)


def test_embeddings_of_another_size_are_refused():
    model, text = wrapped.emu_model(), wrapped.words(wrapped.EMU, bos=False)
    ids, sizes = emu3.codes(model.config.vocabulary_map), ((32, 48), (32, 32))
    made = Emu3(model.model.text_model, model.lm_head, ids, size=sizes[0], sizes=sizes)
    pipe = PromptedPipeline(made, None, text_tokenizer=text)
    pipe.set_progress_bar_config(disable=True)
    for own, other in (sizes, sizes[::-1]):
        states, mask = pipe.at(*own).encode_prompt(["a red boat", "sea"])
        given = {"prompt_embeds": states, "prompt_attention_mask": mask, "method": "ar", **LATENT}
        assert len(pipe(**given, height=own[0], width=own[1]).tokens) == 2
        why = f"ask for an image of {own[1]}x{own[0]} pixels, and {other[1]}x{other[0]} is drawn: encode prompts"
        with pytest.raises(ValueError, match=why):
            pipe(**given, height=other[0], width=other[1])


class Letters:
    """A tokenizer whose ids are letters."""

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def test_a_template_says_the_size():
    model = chameleon.lumina()  # its template is {width}x{height} {prompt}
    for text, said in (("96x32 a boat", (32, 96)), (" 64 x 64 96x32", (64, 64)), ("a 96x32 boat", None), ("", None)):
        assert model.said_size(torch.tensor([ord(letter) for letter in text]), Letters()) == said
    picture = [model.vocabulary.begin, *map(ord, "96x32 a boat")]
    assert model.said_size(torch.tensor(picture), Letters()) is None
    model.template = "{prompt}"
    assert model.said_size(torch.tensor([*map(ord, "96x32 a boat")]), Letters()) is None


def test_pictures_that_do_not_fit():
    pipe = lumina()
    picture = Image.new("RGB", (64, 64))
    assert pipe.encode_prompt("a boat", [picture])[0].shape[1] == 2
    with pytest.raises(ValueError, match=r"got a prompt of \d+ tokens, 64 of them its pictures, expected at most"):
        pipe.encode_prompt("a boat", [[picture] * 4])
    with pytest.raises(ValueError, match="reads no pictures"):
        emu().encode_prompt("a boat", [picture])


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        (
            "janus-pro-1b",
            "multi_modality",
            "original form of deepseek-ai/Janus-Pro-1B, .*: take deepseek-community/",
        ),
        ("emu3-gen", "Emu3", "original form of BAAI/Emu3-Gen, which needs code of its own .*: take BAAI/Emu3-Gen-hf"),
        ("emu3-gen", "chameleon", "has another model .*'chameleon'.*: take BAAI/Emu3-Gen-hf"),
    ],
)
def test_original_folders_say_what_they_are(tmp_path, name, kind, why):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError, match=why):
        vargen.load(name, checkpoint=tmp_path, device="cpu")


def test_pickled_shards_say_what_they_are(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "janus"}))
    for file in ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"):
        (tmp_path / file).write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"its weights in pytorch_model-00001-of-00002\.bin, expected safetensors"):
        vargen.load("janus-pro-1b", checkpoint=tmp_path, device="cpu")
