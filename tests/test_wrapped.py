"""Emu3 and Janus, tiny and random, through our loop: token for token what transformers' own `generate` draws."""

from typing import Any

import torch
from small import randomised
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from vargen.models import emu3
from vargen.models.emu3 import Emu3
from vargen.models.janus import Janus
from vargen.raster import RasterPipeline

CODES, SIDE = 20, 4
EMU = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>", "<|image start|>", "<|image token|>", "<|image end|>"]
EMU += ["<|extra_200|>", "<|extra_201|>", *(f"<|visual token {code:06d}|>" for code in range(CODES))]
EMU += ["a", "red", "boat", "sea", "low", "*", *map(str, range(10))]
JANUS = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<begin_of_image>",
    "a",
    "red",
    "boat",
    "sea",
    "<|User|>:",
    "<|Assistant|>:",
]
PROMPTS = ["a red boat", "sea"]


def words(names, *, bos):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    text = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    apart = pre_tokenizers.Split(Regex(r"\d|\*"), "isolated")
    text.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), apart])
    text.add_special_tokens([name for name in names if name.startswith("<")])
    if bos:
        text.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=text, **special)


def emu_model() -> Any:
    text = Emu3TextConfig(
        vocab_size=len(EMU),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    image = {
        "codebook_size": CODES,
        "embed_dim": 4,
        "latent_channels": 4,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "temporal_downsample_factor": 1,
    }
    names = {name: i for i, name in enumerate(EMU)}
    model = Emu3ForConditionalGeneration(Emu3Config(vq_config=image, text_config=text.to_dict(), vocabulary_map=names))
    return randomised(model, 0, 1.0).eval()


def janus_model() -> Any:
    config = JanusConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(JANUS),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 2,
            "projection_dim": 32,
            "num_image_tokens": SIDE * SIDE,
            "depth": 2,
            "mlp_ratio": 2,
        },
        vq_config={
            "embed_dim": 4,
            "num_embeddings": CODES,
            "latent_channels": 8,
            "num_patches": SIDE,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
            "num_hidden_layers": 2,
        },
    )
    model: Any = JanusForConditionalGeneration(config)
    model.generation_config.generation_kwargs = {"boi_token_id": 4}
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return randomised(model, 0, 3.0).eval()


SIZE, SIZES = (32, 48), ((32, 48), (32, 32))


def emu_pipeline(model):
    names, text = model.config.vocabulary_map, words(EMU, bos=False)
    made = Emu3(model.model.text_model, model.lm_head, names, size=SIZE, sizes=SIZES)
    pipe = RasterPipeline(made, None, text_tokenizer=text)
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
    pipe = RasterPipeline(Janus(model.model, 4), None, text_tokenizer=words(JANUS, bos=True))
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
