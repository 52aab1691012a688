"""Official LlamaGen files, from the published key tables and not from our modules: shapes, and whole files."""

import math
import zlib
from pathlib import Path

import torch

# layers, heads, width, feed-forward width, parameters with classes, parameters with text
GPT = {
    "b": (12, 12, 768, 2048, 110_888_448, 112_282_368),
    "l": (24, 16, 1024, 2816, 342_910_976, 345_031_680),
    "xl": (36, 20, 1280, 3584, 774_699_520, 777_678_080),
    "xxl": (48, 24, 1536, 4096, 1_410_972_672, 1_414_940_160),
    "xxxl": (48, 40, 2560, 6912, 3_893_027_840, 3_902_261_760),
    "1b": (22, 32, 2048, 5632, 1_199_616_000, 1_205_954_560),
    "3b": (24, 32, 3200, 8704, 3_096_659_200, 3_110_249_600),
    "7b": (32, 32, 4096, 11008, 6_614_589_440, 6_635_655_168),
}
# base width, multipliers of the levels, channels of the latents, codes, width of a code; keys, parameters
VQ = {
    "llamagen-vq-16-c2i": ((128, (1, 1, 2, 2, 4), 256, 16384, 8), 344, 71_883_403),
    "llamagen-vq-8-c2i": ((128, (1, 2, 2, 4), 256, 16384, 8), 300, 70_109_835),
    "llamagen-vq-16-t2i": ((128, (1, 1, 2, 2, 4), 256, 16384, 8), 344, 71_883_403),
}


def gpt(size: str, *, text: bool = False, vocabulary: int = 16384, classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a transformer's file."""
    layers, _, d, f, *_ = GPT[size]
    if text:
        condition = {"cap_proj.fc1.weight": (d, 2048), "cap_proj.fc2.weight": (d, d), "uncond_embedding": (120, 2048)}
    else:
        condition = {"embedding_table.weight": (classes + 1, d)}
    shapes = {f"cls_embedding.{key}": shape for key, shape in condition.items()}
    shapes |= {"tok_embeddings.weight": (vocabulary, d), "norm.weight": (d,), "output.weight": (vocabulary, d)}
    for i in range(layers):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * d, d),
            f"layers.{i}.attention.wo.weight": (d, d),
            f"layers.{i}.feed_forward.w1.weight": (f, d),
            f"layers.{i}.feed_forward.w3.weight": (f, d),
            f"layers.{i}.feed_forward.w2.weight": (d, f),
            f"layers.{i}.attention_norm.weight": (d,),
            f"layers.{i}.ffn_norm.weight": (d,),
        }
    return shapes


def vq(ch: int, multipliers: tuple[int, ...], z: int, codes: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a tokenizer's file."""
    out: dict[str, tuple[int, ...]] = {}
    widths, last = [ch * m for m in multipliers], len(multipliers) - 1

    def layer(key: str, *weight: int) -> None:
        out[f"{key}.weight"], out[f"{key}.bias"] = weight, weight[:1]

    def residual(key: str, before: int, after: int) -> None:
        layer(f"{key}.norm1", before)
        layer(f"{key}.conv1", after, before, 3, 3)
        layer(f"{key}.norm2", after)
        layer(f"{key}.conv2", after, after, 3, 3)
        if before != after:
            layer(f"{key}.nin_shortcut", after, before, 1, 1)

    def attention(key: str, width: int) -> None:
        layer(f"{key}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{key}.{part}", width, width, 1, 1)

    def middle(side: str, width: int) -> None:
        residual(f"{side}.mid.0", width, width)
        attention(f"{side}.mid.1", width)
        residual(f"{side}.mid.2", width, width)

    layer("encoder.conv_in", ch, 3, 3, 3)
    for level, width in enumerate(widths):
        key, before = f"encoder.conv_blocks.{level}", widths[max(level - 1, 0)]
        for block in range(2):
            residual(f"{key}.res.{block}", before if block == 0 else width, width)
            if level == last:
                attention(f"{key}.attn.{block}", width)
        if level < last:
            layer(f"{key}.downsample.conv", width, width, 3, 3)
    middle("encoder", widths[-1])
    layer("encoder.norm_out", widths[-1])
    layer("encoder.conv_out", z, widths[-1], 3, 3)
    layer("quant_conv", dim, z, 1, 1)
    layer("post_quant_conv", z, dim, 1, 1)
    out["quantize.embedding.weight"] = (codes, dim)
    layer("decoder.conv_in", widths[-1], z, 3, 3)
    middle("decoder", widths[-1])
    for level, width in enumerate(reversed(widths)):  # in order of execution
        key, before = f"decoder.conv_blocks.{level}", widths[min(last - level + 1, last)]
        for block in range(3):
            residual(f"{key}.res.{block}", before if block == 0 else width, width)
            if level == 0:
                attention(f"{key}.attn.{block}", width)
        if level < last:
            layer(f"{key}.upsample.conv", width, width, 3, 3)
    layer("decoder.norm_out", ch)
    layer("decoder.conv_out", 3, ch, 3, 3)
    return out


def tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Of `synth.tensor`'s law, but from PyTorch's generator, which is several times as fast: files hold 180 million."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) <= 1:
        return values * 0.1 + (1.0 if key.endswith("weight") else 0.0)
    return values / math.prod(shape[1:]) ** 0.5


def write(path: Path, shapes: dict[str, tuple[int, ...]], *, nested: bool = True) -> Path:
    """An official file with values made from its names."""
    state = {key: tensor(key, shape) for key, shape in shapes.items()}
    if "quantize.embedding.weight" in shapes:
        state["quantize.codebook_used"] = torch.zeros(65536)
    torch.save({"model": state} if nested else state, path)
    return path


# depth: whether one modulation serves all layers, sides of the scales, keys, parameters
SIDES_256, SIDES_512 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
VAR = {
    16: (False, SIDES_256, 220, 310_283_520),
    20: (False, SIDES_256, 272, 600_917_136),
    24: (False, SIDES_256, 324, 1_033_399_360),
    30: (False, SIDES_256, 402, 2_010_020_356),
    36: (True, SIDES_512, 446, 2_353_893_904),
}


def var(depth: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Keys and shapes of a VAR's parameters, and of the buffers that lie beside them in its file."""
    shared, sides, *_ = VAR[depth]
    c, slots = 64 * depth, sum(side**2 for side in sides)
    out: dict[str, tuple[int, ...]] = {"pos_start": (1, 1, c), "pos_1LC": (1, slots, c)}

    def linear(key: str, rows: int, columns: int) -> None:
        out[f"{key}.weight"], out[f"{key}.bias"] = (rows, columns), (rows,)

    linear("word_embed", c, 32)
    out |= {"class_emb.weight": (1001, c), "lvl_embed.weight": (len(sides), c)}
    if shared:
        linear("shared_ada_lin.1", 6 * c, c)
    for i in range(depth):
        block = f"blocks.{i}"
        out |= {f"{block}.attn.scale_mul_1H11": (1, depth, 1, 1), f"{block}.attn.mat_qkv.weight": (3 * c, c)}
        out |= {f"{block}.attn.q_bias": (c,), f"{block}.attn.v_bias": (c,)}
        linear(f"{block}.attn.proj", c, c)
        linear(f"{block}.ffn.fc1", 4 * c, c)
        linear(f"{block}.ffn.fc2", c, 4 * c)
        if shared:
            out[f"{block}.ada_gss"] = (1, 1, 6, c)
        else:
            linear(f"{block}.ada_lin.1", 6 * c, c)
    linear("head_nm.ada_lin.1", 2 * c, c)
    linear("head", 4096, c)
    buffers: dict[str, tuple[int, ...]] = {f"blocks.{i}.attn.zero_k_bias": (c,) for i in range(depth)}
    return out, buffers | {"lvl_1L": (1, slots), "attn_bias_for_masking": (1, 1, slots, slots)}


# layers of encoder and decoder, width, depth and width of the head, of which classes; keys, parameters
MAR = {
    "mar-base": (12, 768, 6, 1024, 1000, 364, 207_924_768),
    "mar-large": (16, 1024, 8, 1280, 1000, 476, 478_326_304),
    "mar-huge": (20, 1280, 12, 1536, 1000, 604, 942_403_104),
}


def mar(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a MAR's parameters."""
    layers, c, depth, w, classes, *_ = MAR[name]
    out: dict[str, tuple[int, ...]] = {"fake_latent": (1, c), "class_emb.weight": (classes, c)}
    out |= {f"{part}_pos_embed_learned": (1, 64 + 256, c) for part in ("encoder", "decoder")}
    out |= {"diffusion_pos_embed_learned": (1, 256, c), "mask_token": (1, 1, c)}

    def linear(key: str, rows: int, columns: int) -> None:
        out[f"{key}.weight"], out[f"{key}.bias"] = (rows, columns), (rows,)

    def norm(key: str, width: int) -> None:
        out[f"{key}.weight"] = out[f"{key}.bias"] = (width,)

    linear("z_proj", c, 16)
    norm("z_proj_ln", c)
    linear("decoder_embed", c, c)
    for part in ("encoder", "decoder"):
        norm(f"{part}_norm", c)
        for i in range(layers):
            block = f"{part}_blocks.{i}"
            norm(f"{block}.norm1", c)
            norm(f"{block}.norm2", c)
            linear(f"{block}.attn.qkv", 3 * c, c)
            linear(f"{block}.attn.proj", c, c)
            linear(f"{block}.mlp.fc1", 4 * c, c)
            linear(f"{block}.mlp.fc2", c, 4 * c)
    net = "diffloss.net"
    linear(f"{net}.time_embed.mlp.0", w, 256)
    linear(f"{net}.time_embed.mlp.2", w, w)
    linear(f"{net}.cond_embed", w, c)
    linear(f"{net}.input_proj", w, 16)
    for j in range(depth):
        block = f"{net}.res_blocks.{j}"
        norm(f"{block}.in_ln", w)
        linear(f"{block}.mlp.0", w, w)
        linear(f"{block}.mlp.2", w, w)
        linear(f"{block}.adaLN_modulation.1", 3 * w, w)
    linear(f"{net}.final_layer.linear", 32, w)
    linear(f"{net}.final_layer.adaLN_modulation.1", 2 * w, w)
    return out
