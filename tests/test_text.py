"""Text to image: cleaning, encoding, left padding, the mask, and the encoder's life. T5 is a tiny random one."""

import gc
import re
import weakref
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small import CONFIG, llamagen, vq

import vargen
from vargen.commands import main, sample
from vargen.core import registry
from vargen.core.preset import Preset, Recipe, Sources
from vargen.core.types import Block
from vargen.models import t5
from vargen.models.llamagen import CaptionEmbedder, LlamaGen
from vargen.pipelines.raster import RasterPipeline
from vargen.presets import llamagen as presets
from vargen.tokenizers import vq as vq_module

WIDTH, TOKENS = 24, 9
TEXT = replace(CONFIG, caption_width=WIDTH, caption_tokens=TOKENS)
WORDS = ("a", "red", "boat", "on", "the", "sea", "dog", "house", "by", "night")
ONES = torch.ones(4, TOKENS)
PROMPTS = ["a red boat", "the dog", "a house by the sea on a red night on the sea", ""]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny T5 encoder with its tokenizer, saved as transformers does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    path = tmp_path_factory.mktemp("t5")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = T5Config(vocab_size=3 + len(WORDS), d_model=WIDTH, d_kv=6, d_ff=32, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(path)
    return path


def load(folder):
    return t5.load(str(folder), WIDTH, torch.device("cpu"), torch.float32)


def build_model() -> LlamaGen:
    model = llamagen(TEXT)
    assert isinstance(model.cls_embedding, CaptionEmbedder)
    model.cls_embedding.uncond_embedding.copy_(torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)))
    return model


def build(sources, device, dtype):
    return RasterPipeline(build_model(), vq(), *load(sources.text_encoder), preset=PRESETS["small-text"])


PRESETS = {"small-text": Preset("small-text", "", {"default": Recipe(guidance_scale=3.0, top_k=20)}, 0, build)}


@pytest.fixture
def pipe(folder):
    made = build(Sources(text_encoder=str(folder)), torch.device("cpu"), torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("a kangaroo wearing an orange hoodie.", "a kangaroo wearing an orange hoodie."),
        ("A photo of a CAT!!!  http://x.com/abc <b>bold</b> 猫 img_001.png", "a photo of a cat!!! bold"),
        ("two dogs – “running” @joe #123 on page 12", 'two dogs - "running" on'),
        ("this-is-my-cute-cat_photo", "this is my cute cat photo"),
        ("&quot;hello&quot; \\n world...", '"hello" world'),
        (",;a boat", "a boat"),  # one mark is taken off in each of the two rounds
        ("", ""),
    ],
)
def test_cleaning(caption, cleaned):
    assert t5.clean(caption) == cleaned


def test_left_padding_against_a_loop():
    states, mask = torch.randn(5, TOKENS, 3), torch.zeros(5, TOKENS, dtype=torch.int64)
    for row, count in enumerate((0, 1, 4, TOKENS - 1, TOKENS)):
        mask[row, :count] = 1
    turned, words = t5.left_padded(states, mask)
    for row, count in enumerate((0, 1, 4, TOKENS - 1, TOKENS)):
        assert words[row].tolist() == [False] * (TOKENS - count) + [True] * count
        assert torch.equal(turned[row, TOKENS - count :], states[row, :count])
        assert (turned[row, : TOKENS - count] == 0).all()


def test_encoding_equals_the_encoder_on_each_prompt_alone(folder):
    encoder, tokenizer = load(folder)
    states, mask = t5.encode(PROMPTS, encoder, tokenizer, TOKENS)
    assert mask.sum(1).tolist() == [4, 3, TOKENS, 1]  # the end-of-text token counts; the third prompt is cut
    for row, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
        alone = encoder(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(states[row, TOKENS - len(alone) :], alone, rtol=1e-4, atol=1e-5)


def test_cached_equals_uncached_under_every_mask(folder):
    model = build_model()
    mask = torch.zeros(4, TOKENS, dtype=torch.bool)
    for row, count in enumerate((1, 3, TOKENS, TOKENS)):
        mask[row, TOKENS - count :] = True
    mask[3, 4:6] = False  # as without left padding, the words need not stand last
    states = torch.randn(4, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2)) * mask[..., None]
    condition = model.text_condition(states, mask, guided=True)
    ids = torch.randint(CONFIG.vocabulary, (4, 36), generator=torch.Generator().manual_seed(3)).repeat(2, 1)
    full, cache = model(condition, ids), model.make_cache(8)
    out = [model.prefill(condition, cache)]
    for start, stop in ((0, 1), (1, 7), (7, 35)):
        slots = torch.arange(start, stop).expand(8, -1)
        out.append(model.decode(Block(ids[:, start:stop], slots, start, stop), cache))
    torch.testing.assert_close(torch.cat(out, 1), full, rtol=1e-4, atol=1e-4)
    noisy = states + 100 * torch.randn(states.shape) * ~mask[..., None]  # what the mask hides changes nothing
    other = model.text_condition(noisy, mask, guided=True)
    torch.testing.assert_close(model(other, ids)[:4], full[:4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["ar", "sjd:window=4", "sjd-coupled:window=8", "sjd-exact:window=5"])
def test_an_image_does_not_depend_on_the_prompts_beside_it(pipe, method):
    together = pipe(prompt=PROMPTS, method=method, seed=0, output_type="latent")
    assert "text" in together.trace.seconds
    for row, prompt in enumerate(PROMPTS):
        alone = pipe(prompt=prompt, method=method, seed=row, output_type="latent")
        assert torch.equal(alone.tokens[0], together.tokens[row])
    assert not torch.equal(together.tokens[0], pipe(prompt=PROMPTS[1], method=method, seed=0).tokens[0])


def test_exact_mode_draws_the_images_of_ar(pipe):
    tokens = [
        pipe(prompt=PROMPTS, method=m, seed=3, num_images_per_prompt=2, cfg_interval=i, output_type="latent").tokens
        for m in ("ar", "sjd-exact:window=6")
        for i in (-1, 10)
    ]
    assert torch.equal(tokens[0], tokens[2])
    assert torch.equal(tokens[1], tokens[3])
    assert not torch.equal(tokens[0], tokens[1])


def test_the_encoder_is_released_and_prompts_stay_usable(pipe):
    encoded = pipe.encode_prompt(PROMPTS)
    expected = pipe(prompt=PROMPTS, seed=1, method="ar", output_type="latent").tokens
    alive = weakref.ref(pipe.text_encoder)
    pipe.release_text_encoder()
    gc.collect()
    assert alive() is None
    given = {"prompt_embeds": encoded[0], "prompt_attention_mask": encoded[1]}
    assert torch.equal(pipe(**given, seed=1, method="ar", output_type="latent").tokens, expected)
    with pytest.raises(ValueError, match="no text encoder here: it was released"):
        pipe(prompt="a boat")
    one = next(iter(pipe.stream(prompt_embeds=encoded[0][0], prompt_attention_mask=encoded[1][0], seed=1)))
    assert one.tokens.shape == (1, 36)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, "either a prompt or prompt_embeds"),
        ({"class_labels": [1]}, "takes no class: give a prompt"),
        ({"prompt": []}, "expected text or a list of texts"),
        ({"prompt": [3]}, "expected text or a list of texts"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, TOKENS, WIDTH)}, "either a prompt or prompt_embeds"),
        ({"prompt_embeds": torch.zeros(1, TOKENS, WIDTH)}, "pass both"),
        (
            {"prompt_embeds": torch.zeros(1, 5, WIDTH), "prompt_attention_mask": torch.ones(1, 5)},
            rf"expected \(B, {TOKENS}, {WIDTH}\)",
        ),
        ({"prompt_embeds": torch.zeros(0, TOKENS, WIDTH), "prompt_attention_mask": ONES[:0]}, "expected"),
        ({"prompt_embeds": torch.zeros(2, 2, TOKENS, WIDTH), "prompt_attention_mask": ONES}, "expected"),
        ({"prompt_embeds": torch.zeros(1, TOKENS, WIDTH), "prompt_attention_mask": torch.tensor(1)}, "expected"),
        ({"prompt_embeds": torch.zeros(4, TOKENS, WIDTH) / 0, "prompt_attention_mask": ONES}, "finite"),
        ({"prompt_embeds": torch.ones(4, TOKENS, WIDTH).long(), "prompt_attention_mask": ONES}, "finite"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "number of images 0"),
        ({"prompt": "a", "preset": "fid"}, "no preset 'fid'; there are default"),
    ],
)
def test_wrong_calls(pipe, wanted, words):
    with pytest.raises(ValueError, match=words):
        pipe(**wanted)


def test_text_encoders_that_do_not_load(folder, tmp_path):
    with pytest.raises(ValueError, match="states of width 24, expected 2048"):
        t5.load(str(folder), 2048, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=f"{tmp_path} has no tokenizer: expected one of tokenizer.json"):
        t5.load(str(tmp_path), WIDTH, torch.device("cpu"), torch.float32)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=f"cannot load a text encoder from {tmp_path}"):
        t5.load(str(tmp_path), WIDTH, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="there is no such folder"):
        t5.load("/nowhere/t5", WIDTH, torch.device("cpu"), torch.float32)


def test_a_text_encoder_without_all_its_weights_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if "block.1" not in key}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights, or has them in another shape: encoder"):
        t5.load(str(tmp_path), WIDTH, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.bfloat16)],
)
def test_the_text_encoder_never_runs_in_float16(folder, dtype, expected):
    encoder, _ = t5.load(str(folder), WIDTH, torch.device("cpu"), dtype)
    assert next(encoder.parameters()).dtype == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_pipeline_keeps_its_other_parts(pipe, dtype):
    pipe.to(dtype)
    assert pipe.dtype == pipe.transformer.dtype == dtype
    assert pipe.tokenizer.dtype == torch.float32
    assert next(pipe.text_encoder.parameters()).dtype == torch.float32
    assert len(pipe(prompt=PROMPTS, seed=0, method="sjd:window=4").images) == 4


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_published_preset_is_built_from_official_files(folder, tmp_path, monkeypatch, dtype):
    """`llamagen-t2i-xl-256` itself, its shapes made small, from files with the official names in one folder."""
    name = "llamagen-t2i-xl-256"
    monkeypatch.setitem(presets.SHAPES, name, TEXT)
    monkeypatch.setitem(presets.TOKENIZERS, "llamagen-vq-16-t2i", vq().config)
    model, images = build_model(), vq()
    published = {vq_module.LLAMAGEN.published(key): value for key, value in images.state_dict().items()}
    for key in published:
        if re.search(vq_module.LLAMAGEN.pointwise or "", key):
            published[key] = published[key][..., None, None]
    torch.save({"model": model.state_dict()}, tmp_path / "t2i_XL_stage1_256.pt")
    torch.save({"model": published}, tmp_path / "vq_ds16_t2i.pt")
    made = vargen.load(name, checkpoint=tmp_path, text_encoder=folder, device="cpu", dtype=getattr(torch, dtype))
    assert (made.transformer.dtype, made.tokenizer.dtype) == (getattr(torch, dtype), torch.float32)
    out = made(prompt=PROMPTS, seed=0, method="ar", output_type="pt")
    assert (out.trace.settings["guidance_scale"], out.trace.settings["top_k"]) == (7.5, 1000)
    if dtype == "float32":
        mine = RasterPipeline(model, images, *load(folder), preset=made.preset)
        assert torch.equal(mine(prompt=PROMPTS, seed=0, method="ar", output_type="pt").images, out.images)


def test_command_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.MODELS, "small-text", "test_text:PRESETS")
    argv = ["--model", "small-text", "--text-encoder", str(folder), "--method", "sjd", "--window", "4"]
    argv += ["--prompt", "a red boat", "--prompt", "the dog", "--out", str(tmp_path / "a.png")]
    main.guarded(sample.command, argv)
    assert Image.open(tmp_path / "a.png").size == (768, 192)
    assert "4 images by sjd" in capsys.readouterr().out
    for extra, words in ((["--class", "a"], "no --class"), ([], "give --prompt")):
        with pytest.raises(SystemExit):
            main.guarded(sample.command, ["--model", "small-text", "--text-encoder", str(folder), *extra])
        assert words in capsys.readouterr().err
