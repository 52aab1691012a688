"""transformers' decoder layers with a third of the operations: their weights, our norms, rotations, cache, attention.

A small forward is a question of how many operations it has. What is computed is what their `forward` does. Where a
layer is none of those known here, or somebody listens to it or has changed it, their own `forward` runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.core.types import KVCache
from vargen.kernels.attention import Sight, attend
from vargen.kernels.norm import rms_norm
from vargen.kernels.rope import Halves

KNOWN = {  # a layer's class, and whether attention and feed-forward are normalised behind as well
    "LlamaDecoderLayer": False,
    "Emu3DecoderLayer": False,
    "GlmImageTextDecoderLayer": True,
}
NORMS = ("LlamaRMSNorm", "Emu3RMSNorm", "GlmImageRMSNorm")  # which normalise in float32, cast down, then multiply
ATTENTION = ("sdpa", "eager")  # whose numbers are these, but for rounding


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

    def turned(self, x: Tensor) -> Tensor:
        """Heads (R, n, H, D), of which the first channels are turned."""
        some = self.turns.cos.shape[-1]
        if some == self.dim:
            return self.turns.turn(x)
        return torch.cat([self.turns.turn(x[..., :some]), x[..., some:]], dim=-1)


def fits(language: Any) -> bool:
    """Whether `run` does what the layers of a decoder of transformers do by themselves."""
    config = language.config
    if config._attn_implementation not in ATTENTION or config.hidden_act != "silu":
        return False
    return all(map(_plain, _parts(language))) and not (language.training and config.attention_dropout)


def _parts(language: Any) -> Iterator[nn.Module]:
    """The modules whose `forward` is passed by."""
    for layer in language.layers:
        yield from (layer, layer.self_attn, layer.mlp)
        yield from (part for name, part in layer.named_children() if "norm" in name)
    yield language.norm


def _plain(part: nn.Module) -> bool:
    """Whether a module is transformers' own, of a kind that is known, and nobody listens to it."""
    name, watched = type(part).__name__, part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    known = name in KNOWN or name in NORMS or name.removesuffix("Attention") != name or name.removesuffix("MLP") != name
    return known and not watched and type(part).__module__.startswith("transformers.")


def run(language: Any, x: Tensor, places: Tensor, sight: Sight, cache: KVCache) -> Tensor:
    """States (R, n, d) of tokens `x` at `places`, as transformers' rotary module takes them, normalised at the end."""
    cos, sin = (part.float()[:, :, None] for part in language.rotary_emb(x, places))
    half = cos.shape[-1] // 2
    turns = Halves(cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1))
    dim = language.layers[0].self_attn.head_dim
    step = Step(turns, sight, cache, cache.flat(sight.rows), dim)
    for index, layer in enumerate(language.layers):
        x = _layer(layer, x, step, index)
    return step.norm(language.norm, x)


def _layer(layer: Any, x: Tensor, step: Step, index: int) -> Tensor:
    both = KNOWN[type(layer).__name__]
    y = _attention(layer.self_attn, step.norm(layer.input_layernorm, x), step, index)
    x = x + (step.norm(layer.post_self_attn_layernorm, y) if both else y)
    y = _feed_forward(layer.mlp, step.norm(layer.post_attention_layernorm, x), joined=both)
    return x + (step.norm(layer.post_mlp_layernorm, y) if both else y)


def _attention(part: Any, x: Tensor, step: Step, index: int) -> Tensor:
    q, k, v = (each(x).unflatten(-1, (-1, step.dim)) for each in (part.q_proj, part.k_proj, part.v_proj))
    turned = step.turned(torch.cat([q, k], dim=2)).to(v.dtype)
    q, k = turned.split([q.shape[2], k.shape[2]], dim=2)
    k, v = step.cache.write(index, step.flat, k, v, step.sight.stop)
    return part.o_proj(attend(q, k, v, step.sight).flatten(2))


def _feed_forward(part: Any, x: Tensor, *, joined: bool) -> Tensor:
    gate, up = part.gate_up_proj(x).chunk(2, dim=-1) if joined else (part.gate_proj(x), part.up_proj(x))
    return part.down_proj(F.silu(gate) * up)
