"""A whole repository of GLM-Image, tiny and random: all parts of diffusers' pipeline, in a folder as published."""

from pathlib import Path
from typing import Any

import torch
from glm import CASE, CODES, END, PAD, START, theirs
from PIL import Image
from small import randomised
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageImageProcessor,
    GlmImageProcessor,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

import vargen

WORDS = ["<sop>", "<eop>", "a", "red", "boat", "sea", "night", *map(str, range(10))]
FIRST_WORD = 80
ASKED = {"height": 128, "width": 192, "num_inference_steps": 2, "method": "sjd-exact:window=16"}
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|dit_token_64|><|image|><|dit_token_65|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def words() -> Any:
    """A text tokenizer with the names of the published one, over the golden case's ids."""
    names = {f"<|dit_token_{code}|>": code for code in range(72)}
    names |= {"<|endoftext|>": PAD, "<|image|>": 151, "<unk>": 79}
    names |= {word: FIRST_WORD + i for i, word in enumerate(WORDS)}
    text = Tokenizer(models.WordLevel(names, "<unk>"))
    apart = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    text.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), apart])
    text.add_special_tokens([name for name in names if name.startswith("<")])
    special: dict[str, Any] = {"grid_bos_token": "<sop>", "grid_eos_token": "<eop>", "image_token": "<|image|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=text,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        bos_token=f"<|dit_token_{START}|>",
        eos_token=f"<|dit_token_{END}|>",
        padding_side="left",
        extra_special_tokens=special,
    )


def processor() -> Any:
    """transformers' own, for images and words."""
    law: Any = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "temporal_patch_size": 1}
    bounds: Any = {"shortest_edge": 512**2, "longest_edge": 2048**2}
    images = GlmImageImageProcessor(patch_size=16, merge_size=1, size=bounds, **law)
    return GlmImageProcessor(images, words(), chat_template=TEMPLATE)


def first(context: int = 2048) -> Any:
    """The golden case's model, with room for whole images; it reads pictures in patches as large as published."""
    text, seen = CASE["config"]["text_config"], CASE["config"]["vision_config"]
    about = {**CASE["config"], "text_config": {**text, "max_position_embeddings": context}}
    about |= {"vision_config": {**seen, "patch_size": 16, "image_size": 128}}
    torch.manual_seed(3)
    model: Any = GlmImageForConditionalGeneration(GlmImageConfig.from_dict(about))
    model.load_state_dict({k: v for k, v in theirs().state_dict().items() if "patch_embed" not in k}, strict=False)
    with torch.no_grad():
        model.lm_head.weight[CODES:] = 0.0  # ids that are no codes are never the likeliest
    model.generation_config.update(pad_token_id=PAD, eos_token_id=END)
    return model.eval().requires_grad_(False)


def pipeline(model: Any = None) -> Any:
    """diffusers' GlmImagePipeline."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, GlmImagePipeline, GlmImageTransformer2DModel

    torch.manual_seed(0)
    shapes: Any = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    dit = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=CODES,
        **shapes,
    )
    levels: Any = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 4, "layers_per_block": 1}
    kinds: Any = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    mean: Any = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = AutoencoderKL(latent_channels=4, use_quant_conv=False, use_post_quant_conv=False, **levels, **kinds, **mean)
    glyphs = T5EncoderModel(T5Config(vocab_size=384, d_model=32, d_ff=32, d_kv=8, num_heads=2, num_layers=1))
    parts: Any = {"transformer": randomised(dit, 1, 1.0), "vae": vae, "text_encoder": glyphs.eval()}
    schedule = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75)
    made: Any = GlmImagePipeline(
        tokenizer=ByT5Tokenizer(),
        processor=processor(),
        vision_language_encoder=first() if model is None else model,
        scheduler=schedule,
        **parts,
    )
    made.set_progress_bar_config(disable=True)
    return made


def saved(folder: Path) -> Path:
    """The repository in a folder."""
    pipeline().save_pretrained(folder)
    return folder


def load(folder: Path, **how: Any) -> Any:
    """Our pipeline of it."""
    pipe = vargen.load("glm-image", checkpoint=folder, **how)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Of coloured squares, (width, height) pixels."""
    rows = torch.randint(0, 256, (size[1] // 32, size[0] // 32, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(rows.to(torch.uint8).numpy()).resize(size)
