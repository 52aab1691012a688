"""Emu3 and Janus, tiny and random, through our loop: token for token what transformers' own `generate` draws."""

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import JanusForConditionalGeneration
from wrapped import CODES, EMU, JANUS, SIDE, emu_model, janus_model, words

import vargen
from vargen.core.specs import RasterSpec
from vargen.models import emu3
from vargen.models.emu3 import Emu3
from vargen.models.janus import Janus
from vargen.pipelines.prompted import PromptedPipeline
from vargen.presets.wrapped import SPECS

PROMPTS = ["a red boat", "sea"]
SIZE, SIZES = (32, 48), ((32, 48), (32, 32))


def emu_pipeline(model):
    ids, text = emu3.codes(model.config.vocabulary_map), words(EMU, bos=False)
    made = Emu3(model.model.text_model, model.lm_head, ids, size=SIZE, sizes=SIZES)
    pipe = PromptedPipeline(made, None, text_tokenizer=text)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_emu3_draws_what_transformers_does(monkeypatch):
    monkeypatch.setattr(emu3, "POSITIVE", "")
    monkeypatch.setattr(emu3, "NEGATIVE", "low low")
    model, text = emu_model(), words(EMU, bos=False)
    high, wide = SIZE[0] // 8, SIZE[1] // 8
    names = model.config.vocabulary_map
    visual = [names[f"<|visual token {code:06d}|>"] for code in range(CODES)]

    def allowed(_, ids):
        offset = len(ids) - ids.tolist().index(names["<|image token|>"])
        if offset % (wide + 1) == 0:
            return [names["<|extra_200|>"]]
        ends = {(wide + 1) * high + 1: "<|extra_201|>", (wide + 1) * high + 2: "<|image end|>"}
        return [names[ends[offset]]] if offset in ends else visual

    def read(prompt):
        return torch.tensor([text.encode(f"<bos>{prompt}<|image start|>{high}*{wide}<|image token|>")])

    wanted = torch.empty(0)
    for prompt in PROMPTS:
        ids, negative = read(prompt), read("low low")
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=high * (wide + 1) + 2,
            prefix_allowed_tokens_fn=allowed,
            guidance_scale=3.0,
            negative_prompt_ids=negative,
            negative_prompt_attention_mask=torch.ones_like(negative),
            do_sample=False,
        )
        drawn = out[0, ids.shape[1] :][: high * (wide + 1)].view(high, wide + 1)[:, :-1]
        wanted = drawn - visual[0]
        for method in ("ar", "sjd-exact:window=5"):
            how = {"guidance_scale": 3.0, "top_k": 1, "output_type": "latent"}
            found = emu_pipeline(model)(prompt=prompt, method=method, seed=0, **how).tokens[0]
            assert torch.equal(found, wanted), (prompt, method)
    assert len(wanted.unique()) > 2


def janus_pipeline(model):
    pipe = PromptedPipeline(
        Janus(model.model, begin=4, start=1, nothing=0), None, text_tokenizer=words(JANUS, bos=True)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_janus_draws_what_transformers_does():
    model, text = janus_model(), words(JANUS, bos=True)
    wanted = torch.empty(0)
    for prompt in PROMPTS:
        ids = torch.tensor([[*text.encode(f"<|User|>: {prompt}\n\n<|Assistant|>:"), 4]])
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            do_sample=False,
            guidance_scale=5,
        ).view(SIDE, SIDE)
        for method in ("ar", "sjd-exact:window=5"):
            how = {"guidance_scale": 5.0, "top_k": 1, "output_type": "latent"}
            found = janus_pipeline(model)(prompt=prompt, method=method, seed=0, **how).tokens[0]
            assert torch.equal(found, wanted), (prompt, method)
    assert len(wanted.unique()) > 2
    wide = janus_pipeline(model)(prompt=PROMPTS, seed=0, top_k=1, guidance_scale=5.0, output_type="latent").tokens
    assert torch.equal(wide[1], wanted)  # a shorter prompt beside a longer one


def test_janus_without_guidance():
    """transformers' loop breaks at guidance 1; here there is simply none."""
    out = janus_pipeline(janus_model())(prompt="sea", seed=0, guidance_scale=1.0, output_type="latent")
    assert out.tokens.shape == (1, SIDE, SIDE)


def saved(model, names, folder, *, bos):
    model.save_pretrained(folder, max_shard_size="40KB")
    words(names, bos=bos).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def emu_folder(tmp_path_factory):
    return saved(emu_model(), EMU, tmp_path_factory.mktemp("emu3"), bos=False)


@pytest.fixture(scope="module")
def janus_folder(tmp_path_factory):
    return saved(janus_model(), JANUS, tmp_path_factory.mktemp("janus"), bos=True)


def test_emu3_from_a_folder(emu_folder, monkeypatch):
    monkeypatch.setattr(emu3, "sizes", lambda: SIZES)
    pipe = vargen.load("emu3-gen", checkpoint=emu_folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    for size, method in zip(SIZES, ("sjd-coupled:window=6", "zipar:window=2"), strict=True):
        where = {"height": size[0], "width": size[1], "seed": 0}
        out = pipe(prompt=["a red boat", "sea"], method=method, **where)
        assert [image.size for image in out.images] == [(size[1], size[0])] * 2
    lantern = pipe(prompt="sea", method="sjd-coupled:window=6:rule=lantern:k=3", output_type="pt", seed=0)
    assert lantern.images.isfinite().all()
    assert next(pipe.tokenizer.parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match="emu3-gen reads no pictures"):
        pipe(prompt="sea", image=Image.new("RGB", (8, 8)))


def test_janus_from_a_folder(janus_folder):
    pipe = vargen.load("janus-pro-1b", checkpoint=janus_folder, device="cpu", dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(prompt=["a red boat", "sea"], method="jacobi-2d:window=2", seed=0)
    assert [image.size for image in out.images] == [(8, 8)] * 2
    assert pipe.transformer.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="draws no 8x16 pixels; the sizes nearest to it: 8x8"):
        pipe(prompt="sea", height=16)


def test_published_sizes_are_transformers_own():
    """Of 720 x 720 pixels: tokens a side for each ratio, as the processor rounds them."""
    found = dict(zip(emu3.RATIOS, emu3.sizes(), strict=True))
    assert found[1, 1] == (720, 720)
    assert found[16, 9] == (68 * 8, 120 * 8)
    assert found[3, 4] == (104 * 8, 78 * 8)
    assert SPECS["emu3"] == RasterSpec(90, 91, 32769, 0, newline=32768)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: next(folder.glob("*2-of-*.safetensors")).unlink(), r"lacks model-000\d2-of-"),
        (lambda folder: (folder / "config.json").unlink(), "cannot load Emu3ForConditionalGeneration from"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: rename(folder / "tokenizer.json", "<|image start|>", "<|image begin|>"), "disagree on"),
    ],
)
def test_spoiled_folders(emu_folder, tmp_path, spoil, complaint):
    shutil.copytree(emu_folder, tmp_path / "copy")
    spoil(tmp_path / "copy")
    with pytest.raises(ValueError, match=complaint):
        vargen.load("emu3-gen", checkpoint=tmp_path / "copy", device="cpu")


def rename(path, old, new):
    path.write_text(path.read_text().replace(old, new))
    config = path.with_name("tokenizer_config.json")
    config.write_text(config.read_text().replace(old, new))


def test_other_files_are_refused(emu_folder, janus_folder):
    with pytest.raises(ValueError, match=r"has another model .*'emu3'.*: take deepseek-community/Janus-Pro-1B"):
        vargen.load("janus-pro-1b", checkpoint=emu_folder, device="cpu")
    with pytest.raises(ValueError, match="name no tokenizer_checkpoint"):
        vargen.load("janus-pro-1b", checkpoint=janus_folder, tokenizer_checkpoint=janus_folder, device="cpu")


@torch.no_grad()
def test_codes_in_any_order():
    """The head's rows are found by name, wherever they are."""
    model = emu_model()
    pipe = emu_pipeline(model)
    scattered = Emu3(model.model.text_model, model.lm_head, pipe.transformer.ids, size=SIZE, sizes=SIZES)
    assert scattered._in_order
    scattered._in_order = False
    states = torch.randn(2, 3, 32)
    assert torch.equal(scattered.logits(states), pipe.transformer.logits(states))


def test_rotary_frequencies_stay_in_float32(janus_folder):
    """transformers keeps them so; in bfloat16 angles would be off by whole turns at the end of an image."""
    model = JanusForConditionalGeneration.from_pretrained(janus_folder, dtype=torch.bfloat16)
    wanted = model.model.language_model.rotary_emb.inv_freq
    pipe = vargen.load("janus-pro-1b", checkpoint=janus_folder, device="cpu", dtype=torch.bfloat16)
    for _ in range(2):
        found = pipe.transformer.language.rotary_emb.inv_freq
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)
        pipe.to(torch.float16).to(torch.float32)
    assert next(pipe.transformer.parameters()).dtype == torch.float32


def test_pixels_are_brought_back_from_what_the_processor_made_of_them(emu_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(emu3, "sizes", lambda: SIZES)
    shutil.copytree(emu_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "preprocessor_config.json"
    drawn = []
    for mean, std in ((0.5, 0.5), (0.25, 0.1)):
        path.write_text(json.dumps({"image_mean": [mean] * 3, "image_std": [std] * 3}))
        pipe = vargen.load("emu3-gen", checkpoint=tmp_path / "copy", device="cpu")
        drawn.append(pipe.tokenizer.decode(torch.zeros(1, 2, 2, dtype=torch.int64)))
    assert torch.allclose(drawn[1], drawn[0] * 0.2 - 0.5, atol=1e-6)
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    with pytest.raises(ValueError, match="expected one image_mean"):
        vargen.load("emu3-gen", checkpoint=tmp_path / "copy", device="cpu")
