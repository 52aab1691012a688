"""Tiny random Emu3, Janus and Chameleon models of transformers, with tokenizers that read a few words."""

from typing import Any

import torch
from small import randomised
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    PreTrainedTokenizerFast,
)

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
        "hidden_size": 32,
        "num_attention_heads": 1,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1],
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


CHAMELEON = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>", "<racm3:break>", "<eoss>"]


def spelled(code):
    """A code as Chameleon's vocabulary has it: its digits as letters."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


def chameleon_model(**how: Any) -> Any:
    """Its codes are scattered in the vocabulary, as those of published files are not: 7 to 16, and 18 to 27."""
    names = [*CHAMELEON, *map(spelled, range(10)), "a", *map(spelled, range(10, CODES)), "red", "boat", "sea"]
    image = {"embed_dim": 4, "num_embeddings": CODES, "latent_channels": 4, "resolution": 2 * SIDE, "base_channels": 32}
    config = ChameleonConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        vq_config={**image, "channel_multiplier": [1, 1], "num_res_blocks": 1},
        vocabulary_map={name: i for i, name in enumerate(names)},
        **how,
    )
    return randomised(ChameleonForConditionalGeneration(config), 0, 2.0).eval()


def prompts(rows, pad=0):
    """Ids and mask (B, T) of lists of ids, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
