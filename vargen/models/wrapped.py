"""transformers' language models under the raster contract: their layers, our loop, our cache.

transformers' attention asks a cache to take new keys and values and to give all of them back; ours does that by slot.
"""

import inspect
import json
from abc import ABC
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.core.described import as_dataclass
from vargen.core.messages import shown
from vargen.core.pretrained import load_model
from vargen.core.types import KVCache
from vargen.kernels.attention import Sight
from vargen.kernels.rope import Halves
from vargen.models import lean
from vargen.models.prompted import Prompted
from vargen.tokenizers.contract import ImageTokenizer


class Slots:
    """Our cache as transformers' layers use one, for one forward pass."""

    def __init__(self, cache: KVCache, rows: Tensor, stop: int) -> None:
        self._cache, self._flat, self._stop = cache, cache.flat(rows), stop

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take keys and values (R, heads, n, dim) of a layer; give all that are to be seen, (R, heads, stop, dim)."""
        return self._cache.write(layer, self._flat, keys.transpose(1, 2), values.transpose(1, 2), self._stop)


def rebuilt(kind: type, about: Any) -> Any:
    """A model of transformers on the meta device, of what its config says; only what is computed is made."""
    config: Any = kind
    config = config.config_class.from_dict(about)
    with torch.device("meta"):
        module = kind(config)
    for part in module.modules():
        if "inv_freq" in part._buffers:  # which the meta device leaves empty
            with torch.device("cpu"):
                made: Any = type(part)
                part._buffers.update(made(config=part.config)._buffers)
    return module


@dataclass(frozen=True)
class Decoder:
    """The shapes of a decoder of transformers, by the names that models here have for them."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    hidden: int

    @classmethod
    def of(cls, config: Any) -> "Decoder":
        """From transformers' config, whose fields differ from family to family."""
        heads, width = config.num_attention_heads, config.hidden_size
        shared = getattr(config, "num_key_value_heads", None) or heads
        dim = getattr(config, "head_dim", None) or width // heads
        return cls(config.num_hidden_layers, heads, shared, dim, width, config.intermediate_size)


class Wrapped(Prompted, ABC):
    """A decoder of transformers. Subclasses say what an image's tokens are."""

    replays: ClassVar[bool] = True

    def __init__(self, language: nn.Module, context: int) -> None:
        super().__init__()
        self.language, self.context = language, context
        self.about: Any = language.config  # transformers' own
        self.config, self.words = Decoder.of(self.about), self.about.vocab_size
        named = inspect.signature(type(language).forward).parameters
        known = [name for name in ("cache", "past_key_values") if name in named]  # it changed in transformers 5.2x
        if not known or "inputs_embeds" not in named:
            from transformers import __version__ as release  # slow to import

            raise ValueError(
                f"{type(language).__name__} of transformers {release} takes neither cache nor past_key_values: install "
                "a release that is known here, such as 5.24"
            )
        self._cache_name = known[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves and casts the weights; rotary frequencies are moved alone, since transformers keeps them in float32."""
        held = [(part, part._buffers["inv_freq"]) for part in self.modules() if "inv_freq" in part._buffers]
        out = super()._apply(fn, recurse)
        for part, frequencies in held:
            part._buffers["inv_freq"] = None if frequencies is None else frequencies.to(self.device)
        return out

    def embed_words(self, ids: Tensor) -> Tensor:
        embed: Any = self.language.embed_tokens
        return embed(ids)

    def layers(self, x: Tensor, positions: Tensor, sight: Sight, cache: KVCache) -> Tensor:
        places = self.places(positions.expand(len(x), -1), cache)
        if cache.layers is not None:
            return lean.run(self.language, cache.layers, x, self.turns(x, places), sight, cache)
        mask, stop = sight.mask, sight.stop
        if mask is None:  # transformers would make one of its own
            mask = x.new_zeros(1, 1, x.shape[1], stop).expand(len(x), -1, -1, -1)
        inputs = {"inputs_embeds": x, "position_ids": places, "attention_mask": mask.to(x.dtype)}
        given = {self._cache_name: Slots(cache, sight.rows, stop)}
        return self.language(**inputs, **given, use_cache=False).last_hidden_state

    def turns(self, x: Tensor, places: Tensor) -> Halves:
        """How heads of tokens `x` at `places` are turned."""
        return lean.rotations(self.language, x, places)

    def places(self, positions: Tensor, cache: KVCache) -> Tensor:
        """Positions (R, n), which count a row's tokens, as the layers take them."""
        return positions

    def empty_cache(self, batch: int, rows: int) -> KVCache:
        c = self.config
        cache = KVCache(c.layers, batch, rows, c.kv_heads, c.head_dim, dtype=self.dtype, device=self.device)
        cache.layers = lean.layers(self.language)
        return cache


class Worded(Wrapped, ABC):
    """One whose image codes are ids of the text vocabulary, embedded as words are and judged by the words' head."""

    ids: Tensor

    def __init__(self, language: nn.Module, head: nn.Linear, ids: Tensor, codes: int) -> None:
        """`ids` (V,) are those of so many codes, and behind them of what else stands in an image."""
        config: Any = language.config
        super().__init__(language, config.max_position_embeddings)
        self.head, self._codes = head, codes
        self.register_buffer("ids", ids, persistent=False)
        self._first = int(ids[0])
        self._in_order = torch.equal(ids[:codes].cpu(), torch.arange(self._first, self._first + codes))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embed_words(self.ids[tokens])

    def logits(self, states: Tensor) -> Tensor:
        """Of the codes; a newline's is never looked at (`RasterSpec.given`)."""
        weight, ids, stop = self.head.weight, self.ids[: self._codes], self._first + self._codes
        if self._in_order and 2 * self._codes > len(weight):  # the whole head, which may be packed
            found = self.head(states)[..., self._first : stop]
        else:
            found = F.linear(states, weight[self._first : stop] if self._in_order else weight[ids])
        return F.pad(found.float(), (0, len(self.ids) - self._codes))


def pretrained(kind: type, folder: Path) -> Any:
    """A model of transformers from a folder, in the types of its files. ValueError where weights are missing."""
    model, info = load_model(kind, folder, kind.__name__, dtype="auto")
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if wrong := sorted(map(str, info[what])):
            why = f"{what.replace('_', ' ')} {shown(wrong[0])}"
            raise ValueError(f"the weights in {folder} do not fit {kind.__name__}: {why}")
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class ImagesShapes:
    """What `Images` is made of beside its weights."""

    model: str
    config: dict
    factor: int
    flat: bool
    sphere: bool
    mean: float
    std: float


def as_json(config: Any) -> dict[str, Any]:
    """All that a config of transformers says."""
    return json.loads(config.to_json_string(use_diff=False))


class Images(ImageTokenizer):
    """An image tokenizer of transformers, in float32: ids (B, h, w) to images (B, 3, H, W), nominally in [-1, 1]."""

    def __init__(
        self, vqmodel: nn.Module, factor: int, *, flat: bool, sphere: bool, mean: float = 0.5, std: float = 0.5
    ) -> None:
        """`factor` pixels per token along one side; `flat` where its ids come without rows; codes on the `sphere`.

        What it decodes is normalised by `mean` and `std` of pixels in [0, 1].
        """
        super().__init__()
        self.vqmodel, self._factor, self._flat = vqmodel.float(), factor, flat
        self._sphere, self._law = sphere, (2 * std, 2 * mean - 1)
        self._normalised = {"mean": mean, "std": std}

    @property
    def factor(self) -> int:
        return self._factor

    @property
    def stored_codes(self) -> Tensor:
        quantizer: Any = self.vqmodel.quantize
        return quantizer.embedding.weight

    def codebook(self) -> Tensor:
        return F.normalize(self.stored_codes, dim=-1) if self._sphere else self.stored_codes

    def described(self) -> dict[str, Any]:
        """What `rebuilt` makes it of, without weights."""
        model: Any = self.vqmodel
        law = {"factor": self._factor, "flat": self._flat, "sphere": self._sphere, **self._normalised}
        return {"model": type(model).__name__, "config": as_json(model.config), **law}

    @classmethod
    def rebuilt(cls, about: Any) -> "Images":
        """The tokenizer without weights. ValueError where it is none that is known."""
        from transformers.models.emu3.modeling_emu3 import Emu3VQVAE
        from transformers.models.janus.modeling_janus import JanusVQVAE

        found, known = as_dataclass(ImagesShapes, about), {"Emu3VQVAE": Emu3VQVAE, "JanusVQVAE": JanusVQVAE}
        if found.model not in known:
            raise ValueError(f"unknown image tokenizer {shown(found.model)}")
        law = {"flat": found.flat, "sphere": found.sphere, "mean": found.mean, "std": found.std}
        return cls(rebuilt(known[found.model], found.config), found.factor, **law)

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of ids (B, h, w)."""
        decode: Any = self.vqmodel.decode
        found, (scale, shift) = decode(tokens.flatten(1) if self._flat else tokens), self._law
        return found if self._law == (1.0, 0.0) else found * scale + shift
