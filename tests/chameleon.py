"""A tiny Lumina-mGPT in the official format: shards with an index, config.json, tokenizer.json, Meta's VQGAN."""

import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from small import randomised

from vargen.models.chameleon import Chameleon, ChameleonConfig
from vargen.models.lumina_mgpt import LuminaMGPT, Vocabulary
from vargen.tokenizers.vq import VQConfig, VQTokenizer, taming_layout

CODES, FACTOR = 24, 16
SIZES = ((64, 64), (32, 96), (96, 32))
WORDS = ("a", "red", "boat", "sea", "the", "by", "Generate", "an", "image", "of", "prompt")
VQGAN = VQConfig((8, 8, 8, 16, 16), 1, 8, CODES, 4, norm_groups=4, sphere=False, attends=False)


def names() -> dict[str, int]:
    """A vocabulary_map: special tokens, image codes, what else an image is made of, words."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    order = ["<s>", "<pad>", "</s>", "<unk>", *(f"IMGIMG{str(code).translate(letters)}Z" for code in range(CODES))]
    order += ["<eoss>", "<racm3:break>", "<reserved08706>", "<image>", "<reserved08799>"]
    order += [f"<reserved{8800 + n:05d}>" for n in range(5)]
    return {name: id for id, name in enumerate((*order, *WORDS))}


NAMES = names()
CONFIG = ChameleonConfig(
    layers=2, heads=4, kv_heads=4, width=32, hidden=48, vocabulary=len(NAMES) + 3, context=96, groups=1
)


def decoder(config: ChameleonConfig = CONFIG, *, seed: int = 0) -> Chameleon:
    """Random weights whose laws are neither flat nor certain, and hang on the prompt."""
    model = randomised(Chameleon(config), seed, 1.5)
    assert isinstance(model, Chameleon)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(6 if "lm_head" in name else 4 if "o_proj" in name else 1)
    return model


def lumina(size: tuple[int, int] = SIZES[0], *, seed: int = 0, config: ChameleonConfig = CONFIG) -> LuminaMGPT:
    how = {"sizes": SIZES, "factor": FACTOR, "template": "{width}x{height} {prompt}"}
    return LuminaMGPT(decoder(config, seed=seed), Vocabulary.read(NAMES), size=size, **how)


def text():
    """A tokenizer that splits at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(NAMES, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def vqgan() -> VQTokenizer:
    model = randomised(VQTokenizer(VQGAN), 5, 1.0)
    assert isinstance(model, VQTokenizer)
    return model


def write(folder: Path) -> Path:
    """All files of a model, as they are published, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.bfloat16() for key, value in decoder().state_dict().items()}
    keys = sorted(state)
    parts = {
        "model-00001-of-00002.safetensors": keys[: len(keys) // 2],
        "model-00002-of-00002.safetensors": keys[len(keys) // 2 :],
    }
    for file, some in parts.items():
        save_file({key: state[key] for key in some}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, some in parts.items() for key in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shapes = {
        "num_hidden_layers": CONFIG.layers,
        "num_attention_heads": CONFIG.heads,
        "num_key_value_heads": CONFIG.kv_heads,
        "hidden_size": CONFIG.width,
        "intermediate_size": CONFIG.hidden,
        "vocab_size": CONFIG.vocabulary,
        "max_position_embeddings": CONFIG.context,
        "model_parallel_size": 1,
        "swin_norm": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocabulary_map": NAMES,
    }
    (folder / "config.json").write_text(json.dumps(shapes))
    text().save_pretrained(folder)
    layout, tokens = taming_layout(VQGAN), vqgan().state_dict()
    shaped = {key: (value[0], shape) for key, (value, shape) in layout.expected(vqgan()).items()}
    weights = {key: tokens[ours].reshape(shape) for key, (ours, shape) in shaped.items()}
    weights["loss.discriminator.main.0.weight"] = torch.zeros(3)
    torch.save({"state_dict": weights}, folder / "vqgan.ckpt")
    inner = {"ch": 8, "ch_mult": [1, 1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": []}
    params = {"embed_dim": 4, "n_embed": CODES, "ddconfig": inner}
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    return folder
