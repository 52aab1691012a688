"""Harmon by hand, for one image and one prompt: official keys, no cache, no batch, one pass over text and image.

Here are also the official key tables, a small model of that format, and a small text tokenizer.
"""

import math
from typing import Any

import synth
import torch
from torch import Tensor

from vargen.core import checkpoints
from vargen.models.harmon import LAYOUT, Harmon, HarmonConfig
from vargen.models.mar import MARConfig

Shapes = dict[str, tuple[int, ...]]
WORDS = ("a", "red", "boat", "on", "the", "sea", "dog", "house", "by", "night")
VOCABULARY = ("<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "Generate", "an", "image", ":", ".", *WORDS)
SMALL = HarmonConfig(MARConfig(2, 2, 16, 2, 24, 4, 4, 0, 3), 3, 4, 2, 24, 40, len(VOCABULARY), side=6)
# layers, width, depth and width of the head, parameters with the class table; then layers, width, heads of keys,
# width of a head, hidden width, parameters without the output head
SIZES = {
    "harmon-0.5b": ((12, 768, 6, 1024, 207_924_768), (24, 896, 2, 64, 4864, 494_032_768)),
    "harmon-1.5b": ((20, 1280, 12, 1536, 942_403_104), (28, 1536, 2, 128, 8960, 1_543_714_304)),
}
SIZES["harmon-1.5b-o"] = SIZES["harmon-1.5b"]


def linear_shapes(out: Shapes, key: str, rows: int, columns: int) -> None:
    out[f"{key}.weight"], out[f"{key}.bias"] = (rows, columns), (rows,)


def mar_shapes(layers: int, c: int, depth: int, w: int, side: int, channels: int, buffer: int) -> Shapes:
    out: Shapes = {"fake_latent": (1, c), "mask_token": (1, 1, c), "class_emb.weight": (1000, c)}
    out |= {f"{half}_pos_embed_learned": (1, buffer + side**2, c) for half in ("encoder", "decoder")}
    out["diffusion_pos_embed_learned"] = (1, side**2, c)
    out |= {f"{norm}.{p}": (c,) for norm in ("z_proj_ln", "encoder_norm", "decoder_norm") for p in ("weight", "bias")}
    linear_shapes(out, "z_proj", c, channels)
    linear_shapes(out, "decoder_embed", c, c)
    for block in (f"{half}_blocks.{i}" for half in ("encoder", "decoder") for i in range(layers)):
        out |= {f"{block}.{norm}.{p}": (c,) for norm in ("norm1", "norm2") for p in ("weight", "bias")}
        linear_shapes(out, f"{block}.attn.qkv", 3 * c, c)
        linear_shapes(out, f"{block}.attn.proj", c, c)
        linear_shapes(out, f"{block}.mlp.fc1", 4 * c, c)
        linear_shapes(out, f"{block}.mlp.fc2", c, 4 * c)
    net = "diffloss.net"
    linear_shapes(out, f"{net}.time_embed.mlp.0", w, 256)
    linear_shapes(out, f"{net}.time_embed.mlp.2", w, w)
    linear_shapes(out, f"{net}.cond_embed", w, c)
    linear_shapes(out, f"{net}.input_proj", w, channels)
    for i in range(depth):
        out |= {f"{net}.res_blocks.{i}.in_ln.{p}": (w,) for p in ("weight", "bias")}
        linear_shapes(out, f"{net}.res_blocks.{i}.mlp.0", w, w)
        linear_shapes(out, f"{net}.res_blocks.{i}.mlp.2", w, w)
        linear_shapes(out, f"{net}.res_blocks.{i}.adaLN_modulation.1", 3 * w, w)
    linear_shapes(out, f"{net}.final_layer.linear", 2 * channels, w)
    linear_shapes(out, f"{net}.final_layer.adaLN_modulation.1", 2 * w, w)
    return out


def qwen_shapes(layers: int, d: int, kv_heads: int, dim: int, hidden: int, vocabulary: int) -> Shapes:
    out: Shapes = {"embed_tokens.weight": (vocabulary, d), "norm.weight": (d,)}
    for layer in (f"layers.{i}" for i in range(layers)):
        out |= {f"{layer}.{norm}.weight": (d,) for norm in ("input_layernorm", "post_attention_layernorm")}
        linear_shapes(out, f"{layer}.self_attn.q_proj", d, d)
        linear_shapes(out, f"{layer}.self_attn.k_proj", kv_heads * dim, d)
        linear_shapes(out, f"{layer}.self_attn.v_proj", kv_heads * dim, d)
        out[f"{layer}.self_attn.o_proj.weight"] = (d, d)
        out |= {f"{layer}.mlp.{name}_proj.weight": (hidden, d) for name in ("gate", "up")}
        out[f"{layer}.mlp.down_proj.weight"] = (d, hidden)
    return out


def official(mar: tuple[int, ...], llm: tuple[int, ...]) -> Shapes:
    """Every key of a file, those included that are not read, but for an autoencoder's."""
    c, d = mar[1], llm[1]
    out: Shapes = {f"mar.{key}": shape for key, shape in mar_shapes(*mar).items()}
    out |= {f"llm.model.{key}": shape for key, shape in qwen_shapes(*llm).items()}
    out["llm.lm_head.weight"] = out["llm.model.embed_tokens.weight"]
    for key, (rows, columns) in {"proj_in.0": (d, c), "proj_in.2": (d, d)}.items():
        linear_shapes(out, key, rows, columns)
    for key, (rows, columns) in {"proj_out.0": (d, d), "proj_out.2": (c, d)}.items():
        linear_shapes(out, key, rows, columns)
    return out


def small_file() -> dict[str, Tensor]:
    """The small model's weights as a file has them."""
    m, c = SMALL.mar, SMALL
    mar = (m.layers, m.width, m.head_depth, m.head_width, m.side, m.channels, m.buffer)
    return {
        key: synth.tensor(key, shape)
        for key, shape in official(mar, (c.layers, c.width, 2, c.width // c.heads, c.hidden, c.vocabulary)).items()
    }


def small(folder: Any, config: HarmonConfig = SMALL) -> Harmon:
    """The small model, by way of its file."""
    torch.save(small_file(), folder / "harmon.pth")
    with torch.device("meta"):
        model = Harmon(config)
    checkpoints.load_into(model, folder / "harmon.pth", LAYOUT)
    return model.eval().requires_grad_(False)


def text_tokenizer(**options: Any) -> Any:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(list(VOCABULARY[:2]))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", unk_token="<unk>", **options)


class Plain:
    """The forward pass from a file's weights."""

    def __init__(self, weights: dict[str, Tensor], config: HarmonConfig) -> None:
        self.w, self.c = weights, config

    def z(self, words: list[int], values: Tensor, known: list[int], drawn: list[int]) -> Tensor:
        """What the head is told (n, d) of `drawn`, of an image (S, C) of which `known` is there."""
        buffer, slots = self.c.mar.buffer, self.c.side**2
        x = torch.stack([self.w["mar.fake_latent"][0]] * buffer + [self.linear("mar.z_proj", values[s]) for s in known])
        places = [*range(buffer), *(buffer + s for s in known)]
        x = self.norm("mar.z_proj_ln", x + self.table("encoder", buffer)[places])
        for i in range(self.c.mar.layers):
            x = self.block(f"mar.encoder_blocks.{i}", x)
        x = self.norm("mar.encoder_norm", x)
        seen = self.mlp("proj_in", x)
        said = self.read(words, torch.cat([seen[buffer:], seen[:buffer]]))
        x = x + self.mlp("proj_out", torch.cat([said[-buffer:], said[:-buffer]]))
        whole = self.w["mar.mask_token"][0].repeat(buffer + slots, 1)
        whole[places] = self.linear("mar.decoder_embed", x)
        x = whole + self.table("decoder", buffer)
        for i in range(self.c.mar.layers):
            x = self.block(f"mar.decoder_blocks.{i}", x)
        return (self.norm("mar.decoder_norm", x)[buffer:] + self.table("diffusion", 0))[drawn]

    def table(self, name: str, buffer: int) -> Tensor:
        """A position table for the image's own size, bilinear from one of n x n places."""
        table, n, side = self.w[f"mar.{name}_pos_embed_learned"][0], self.c.mar.side, self.c.side
        out = list(table[:buffer])
        for i in range(side):
            for j in range(side):
                y, x = (max(0.0, (k + 0.5) * n / side - 0.5) for k in (i, j))
                top, left = math.floor(y), math.floor(x)
                total = torch.zeros_like(table[0])
                for row, a in ((top, 1 - y + top), (min(top + 1, n - 1), y - top)):
                    for column, b in ((left, 1 - x + left), (min(left + 1, n - 1), x - left)):
                        total = total + a * b * table[buffer + row * n + column]
                out.append(total)
        return torch.stack(out)

    def read(self, words: list[int], seen: Tensor) -> Tensor:
        """The language model's last features of what is seen (n, D), behind the words."""
        x = torch.cat([self.w["llm.model.embed_tokens.weight"][words], seen])
        later = torch.ones(len(x), len(x)).triu(1).bool()
        for i in range(self.c.layers):
            key = f"llm.model.layers.{i}"
            x = x + self.causal(f"{key}.self_attn", self.scale(f"{key}.input_layernorm", x), later)
            h = self.scale(f"{key}.post_attention_layernorm", x)
            gate, up = (h @ self.w[f"{key}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (gate / (1 + torch.exp(-gate)) * up) @ self.w[f"{key}.mlp.down_proj.weight"].T
        return self.scale("llm.model.norm", x)[len(words) :]

    def causal(self, key: str, x: Tensor, later: Tensor) -> Tensor:
        dim, out = self.c.width // self.c.heads, []
        q, k, v = (self.linear(f"{key}.{name}_proj", x).split(dim, dim=1) for name in "qkv")
        for head in range(self.c.heads):
            pair = head // (self.c.heads // self.c.kv_heads)
            scores = self.turn(q[head]) @ self.turn(k[pair]).T / dim**0.5
            out.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v[pair])
        return torch.cat(out, 1) @ self.w[f"{key}.o_proj.weight"].T

    def turn(self, x: Tensor) -> Tensor:
        """Each pair (k, k + half) of a vector at place p turned by p * 1e6^(-k / half)."""
        half, out = x.shape[1] // 2, x.clone()
        for p in range(len(x)):
            for k in range(half):
                angle = p * 1e6 ** (-k / half)
                a, b = x[p, k], x[p, k + half]
                out[p, k] = a * math.cos(angle) - b * math.sin(angle)
                out[p, k + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def block(self, key: str, x: Tensor) -> Tensor:
        dim, out = self.c.mar.width // self.c.mar.heads, []
        q, k, v = self.linear(f"{key}.attn.qkv", self.norm(f"{key}.norm1", x)).chunk(3, 1)
        for part in range(self.c.mar.heads):
            some = slice(part * dim, part * dim + dim)
            out.append((q[:, some] @ k[:, some].T / dim**0.5).softmax(-1) @ v[:, some])
        x = x + self.linear(f"{key}.attn.proj", torch.cat(out, 1))
        h = self.linear(f"{key}.mlp.fc1", self.norm(f"{key}.norm2", x))
        return x + self.linear(f"{key}.mlp.fc2", h * (1 + torch.erf(h / 2**0.5)) / 2)

    def linear(self, key: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{key}.weight"].T + self.w[f"{key}.bias"]

    def mlp(self, key: str, x: Tensor) -> Tensor:
        h = self.linear(f"{key}.0", x)
        return self.linear(f"{key}.2", h / (1 + torch.exp(-h)))

    def norm(self, key: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{key}.weight"] + self.w[f"{key}.bias"]

    def scale(self, key: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{key}.weight"]
