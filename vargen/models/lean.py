"""transformers' decoder layers with half the operations: their weights, our norms, rotations, cache and attention.

A small forward is a question of how many operations it has. What is computed is what their `forward` does. Where a
layer is none of those known here, or somebody listens to it or has changed it, their own `forward` runs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vargen.core.types import KVCache
from vargen.kernels.attention import Sight, attend
from vargen.kernels.norm import add_norm, rms_norm
from vargen.kernels.rope import Halves, enter
from vargen.kernels.silu_mul import silu_mul

KNOWN = {  # a layer's class, and whether attention and feed-forward are normalised behind as well
    "LlamaDecoderLayer": False,
    "Emu3DecoderLayer": False,
    "GlmImageTextDecoderLayer": True,
}
NORMS = ("LlamaRMSNorm", "Emu3RMSNorm", "GlmImageRMSNorm")  # which normalise in float32, cast down, then multiply
ATTENTION = ("sdpa", "eager")  # whose numbers are these, but for rounding
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """What a layer of transformers has: its norms, in order, and products of queries, keys, values and so on."""

    norms: tuple[Any, ...]
    qkv: tuple[Product, ...]
    out: Product
    up: tuple[Product, ...]  # gate and up, or both in one
    down: Product


@dataclass(frozen=True)
class Step:
    """What every layer of one forward shares."""

    turns: Halves
    sight: Sight
    cache: KVCache
    flat: Tensor
    dim: int  # of a head

    def norm(self, part: Any, x: Tensor) -> Tensor:
        return rms_norm(x, part.weight, part.variance_epsilon, self.cache.kernels)

    def added(self, part: Any, x: Tensor, change: Tensor | None) -> tuple[Tensor, Tensor]:
        return add_norm(x, change, part.weight, part.variance_epsilon, self.cache.kernels)

    def enter(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (R, n, H, D), of whose heads the first channels are turned, and all keys and values."""
        some = self.turns.cos.shape[-1]
        if some == self.dim:
            return enter(q, k, v, self.turns, self.cache, layer, self.flat, self.sight.stop)
        both = torch.cat([q, k], dim=2)
        both = torch.cat([self.turns.turn(both[..., :some]), both[..., some:]], dim=-1)
        q, k = both.split((q.shape[2], k.shape[2]), dim=2)
        return q, *self.cache.write(layer, self.flat, k, v, self.sight.stop)


def layers(language: Any) -> list[Layer] | None:
    """The layers of a decoder of transformers, for one cache; None where their own `forward` has to run."""
    config = language.config
    if config._attn_implementation not in ATTENTION or config.hidden_act != "silu":
        return None
    if not all(map(_plain, _parts(language))) or (language.training and config.attention_dropout):
        return None
    return [_layer_of(layer) for layer in language.layers]


def _parts(language: Any) -> Iterator[nn.Module]:
    """The modules whose `forward` is passed by."""
    for layer in language.layers:
        yield from (layer, layer.self_attn, layer.mlp)
        yield from (part for name, part in layer.named_children() if "norm" in name)
    yield language.norm


def _plain(part: nn.Module) -> bool:
    """Whether a module is transformers' own, of a kind that is known, and nobody listens to it."""
    name = type(part).__name__
    known = name in KNOWN or name in NORMS or name.endswith(("Attention", "MLP"))
    return known and not _watched(part) and type(part).__module__.startswith("transformers.")


def _watched(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


def _layer_of(layer: Any) -> Layer:
    attention, feed = layer.self_attn, layer.mlp
    behind = KNOWN[type(layer).__name__]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [layer.post_self_attn_layernorm, layer.post_mlp_layernorm] if behind else []
    up = (feed.gate_up_proj,) if behind else (feed.gate_proj, feed.up_proj)
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    products = (tuple(map(_product, qkv)), _product(attention.o_proj), tuple(map(_product, up)))
    return Layer(tuple(norms), *products, _product(feed.down_proj))


def _product(part: nn.Module) -> Product:
    """A linear layer, or whatever stands in its place, called as directly as may be."""
    return part.forward if isinstance(part, nn.Linear) and not _watched(part) else part


def rotations(language: Any, x: Tensor, places: Tensor) -> Halves:
    """Those of tokens at `places`, which are as transformers' rotary module takes them."""
    cos, sin = (part.float()[:, :, None] for part in language.rotary_emb(x, places))
    half = cos.shape[-1] // 2
    return Halves(cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1))


def run(language: Any, parts: list[Layer], x: Tensor, turns: Halves, sight: Sight, cache: KVCache) -> Tensor:
    """States (R, n, d) of tokens `x`, normalised at the end."""
    step = Step(turns, sight, cache, cache.flat(sight.rows), language.layers[0].self_attn.head_dim)
    change = None
    for index, layer in enumerate(parts):
        x, change = _layer(layer, x, change, step, index)
    return step.added(language.norm, x, change)[1]


def _layer(layer: Layer, x: Tensor, change: Tensor | None, step: Step, index: int) -> tuple[Tensor, Tensor]:
    """States, and what is to be added to them, from those of the layer before."""
    first, second, *behind = layer.norms
    x, y = step.added(first, x, change)
    y = _attention(layer, y, step, index)
    x, y = step.added(second, x, step.norm(behind[0], y) if behind else y)
    gate, up = layer.up[0](y).chunk(2, dim=-1) if behind else (each(y) for each in layer.up)
    y = layer.down(silu_mul(gate, up, step.cache.kernels))
    return x, step.norm(behind[1], y) if behind else y


def _attention(layer: Layer, x: Tensor, step: Step, index: int) -> Tensor:
    shape = (*x.shape[:2], -1, step.dim)
    q, k, v = step.enter(index, *(each(x).view(shape) for each in layer.qkv))
    return layer.out(attend(q, k, v, step.sight).flatten(2))
