"""Harmon (arXiv 2503.21979): text to image, by a language model between the encoder and the decoder of a MAR.

The encoder reads what is known, the language model (Qwen2, transformers') reads that behind the prompt, one token after
another, and the decoder fills in the rest from both. The prompt's keys and values are computed once for a batch and
never written again. Guidance is against another prompt, not against an empty one.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vargen.core.layout import Layout
from vargen.core.specs import ContinuousSpec
from vargen.core.types import Condition, Group
from vargen.models import mar, t5
from vargen.models.contract import Model
from vargen.models.diffusion import DiffusionHead
from vargen.models.mar import MAR, MARConfig, Positions
from vargen.models.prompted import checked

MARKS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # no system's part
ASKED, UNASKED = "Generate an image: {}", "Generate an image."
THETA = 1e6  # of the rotations

# The official files (`Harmon` in src/models/harmon.py): our key to theirs. What comes with them and is not read here:
# the language model's output head, MAR's classes, and whatever there is of an autoencoder.
LAYOUT = Layout(
    rename=(
        (r"^llm\.", "llm.model."),
        *((key.replace("^", r"^mar\."), "mar." * key.startswith("^") + theirs) for key, theirs in mar.LAYOUT.rename),
    ),
    ignored=r"llm\.lm_head\.weight|mar\.class_emb\.weight|.*vae\..*",
)


@dataclass(frozen=True)
class HarmonConfig:
    """Shapes of a Harmon; the defaults are those of `harmon-0.5b`."""

    mar: MARConfig = field(default_factory=lambda: MARConfig(classes=0))  # its side is that of the position tables
    layers: int = 24  # this one and the next five: of the language model
    heads: int = 14
    kv_heads: int = 2
    width: int = 896
    hidden: int = 4864
    vocabulary: int = 151936
    side: int = 32

    @property
    def spec(self) -> ContinuousSpec:
        """The image's layout."""
        return ContinuousSpec(self.side**2, self.mar.channels, 0)


class Rotations(nn.Module):
    """Cosines and sines (R, n, head_dim) of positions (R, n), as Qwen2 takes them.

    transformers' own module keeps the frequencies in a buffer, which a cast rounds and the meta device leaves empty.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(0, self.dim, 2, device=x.device, dtype=torch.float32)
        angles = position_ids[..., None].float() * THETA ** (-steps / self.dim)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def language_model(config: HarmonConfig) -> Any:
    """transformers' Qwen2 without its output head."""
    from transformers import Qwen2Config, Qwen2Model  # slow to import

    shapes = Qwen2Config(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        rms_norm_eps=1e-6,
    )
    made: Any = Qwen2Model(shapes)
    made.rotary_emb = Rotations(config.width // config.heads)
    return made


@dataclass
class Cache:
    """What is the same for all groups of a batch: the position tables, and the prompts as soon as they are read."""

    rows: int
    positions: Positions
    words: Tensor | None = None  # (R, T) bool: which of the prompts' places are not padding
    prompts: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # of each layer, (R, kv_heads, T, head_dim)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        self.rows = len(rows)
        self.words = None if self.words is None else self.words[rows]
        self.prompts = [(keys[rows], values[rows]) for keys, values in self.prompts]

    @property
    def bytes(self) -> int:
        """Bytes of keys and values held."""
        return sum(part.nbytes for pair in self.prompts for part in pair)


class Harmon(Model):
    """A masked model of continuous tokens that reads text; see `ContinuousModel` in models/contract.py."""

    any_grid: ClassVar[bool] = True

    def __init__(self, config: HarmonConfig) -> None:
        super().__init__()
        if config.width % config.heads or config.heads % config.kv_heads:
            raise ValueError(f"got width {config.width}, {config.heads} heads, {config.kv_heads} of keys: no multiples")
        self.config, outer, inner = config, config.mar.width, config.width
        self.grid = (config.side, config.side)
        self.mar = MAR(replace(config.mar, classes=0))
        self.llm = language_model(config)
        self.proj_in = nn.Sequential(nn.Linear(outer, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.proj_out = nn.Sequential(nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, outer))

    @property
    def spec(self) -> ContinuousSpec:
        return ContinuousSpec(self.grid[0] * self.grid[1], self.config.mar.channels, 0)

    def at(self, grid: tuple[int, int]) -> "Harmon":
        """The same weights for images of another grid (rows, columns): position tables are stretched to it."""
        other = copy(self)
        other.grid = grid
        return other

    @property
    def device(self) -> torch.device:
        return self.mar.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mar.dtype

    @property
    def head(self) -> DiffusionHead:
        return self.mar.head

    def text_condition(self, ids: Tensor, mask: Tensor, *, guided: bool) -> Condition:
        """Rows (R, T, 1) of token ids, -1 where `mask` has none, of ids and mask (B, 2, T) as `tokenize` gives them.

        They are embedded where they are read, in the first `decode`.
        """
        known = ids.to(self.device).masked_fill(~mask.to(self.device, torch.bool), -1)
        return Condition(rearrange(known[:, : 1 + guided], "b part t -> (part b) t 1"))

    def tokenize(self, prompts: Sequence[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
        """Token ids (B, 2, T) of each prompt and of what guidance is against, and the mask (B, 2, T) of the words."""
        return tokenize(prompts, tokenizer)

    def checked(self, ids: Any, mask: Any) -> tuple[Tensor, Tensor]:
        """What `tokenize` gave. ValueError where it is no such thing."""
        return checked(ids, mask, self.config.vocabulary)

    def make_cache(self, rows: int) -> Cache:
        """Nothing read yet."""
        return Cache(rows, self.mar.positions(self.grid))

    def decode(self, condition: Condition, group: Group, cache: Cache) -> Tensor:
        """`z` (R, n, d) of the group's slots; see `models/contract.py`.

        The encoder is told of no prompt, so that the unconditional rows have what the conditional ones have.
        """
        groups, rows = len(group.known), len(condition.embedding)
        copies = rows // cache.rows  # of every image, where several groups are decoded together
        if not cache.prompts:
            parts = condition.embedding.split(groups)
            self._read(torch.cat([part[: groups // copies] for part in parts])[..., 0], cache)
        nobody = Condition(self.mar.unconditional.expand(groups, -1)[:, None])
        x = self.mar.encode(nobody, group, cache.positions)
        said = self._answer(self.proj_in(x).repeat(rows // groups, 1, 1), group, cache)
        x = x.repeat(rows // groups, 1, 1) + self.proj_out(said)
        return self.mar.fill(x, group, cache.positions)

    def image(self, values: Tensor) -> Tensor:
        """Latents (B, C, side, side) of tokens (B, S, C)."""
        return values.transpose(1, 2).unflatten(2, self.grid)

    def _read(self, ids: Tensor, cache: Cache) -> None:
        """Keep what the language model makes of prompts (R, T), whose padding (-1) stands behind all words.

        As published, padding is read like words: nobody before it sees it, and nobody after it will.
        """
        from transformers import DynamicCache

        assert len(ids) == cache.rows, f"got {len(ids)} prompts, expected {cache.rows}"
        cache.words = ids >= 0
        read: Any = DynamicCache()
        self.llm(ids.clamp(min=0), None, None, read)  # by position: the cache's name differs between versions
        cache.prompts = [(layer.keys, layer.values) for layer in read.layers]

    def _answer(self, x: Tensor, group: Group, cache: Cache) -> Tensor:
        """What the language model, its last norm included, makes of visual tokens (R, n, D) behind the prompts.

        The buffer comes first here, and last in there.
        """
        from transformers import DynamicCache

        assert cache.words is not None
        buffer, copies = self.config.mar.buffer, len(x) // cache.rows
        images = len(group.known) // copies
        there = torch.ones_like(group.known, dtype=torch.bool) if group.hidden is None else ~group.hidden
        there = F.pad(there, (0, buffer), value=True).repeat(len(x) // len(there), 1)
        mask = torch.cat([copied(cache.words, copies, images), there], dim=1)
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]
        behind = DynamicCache()  # a new one for every pass, which leaves the prompts as they were
        for layer, pair in enumerate(cache.prompts):
            keys, values = (copied(part, copies, images) for part in pair)
            behind.update(keys, values, layer)
        return self.llm(None, mask, places, behind, x.roll(-buffer, 1)).last_hidden_state.roll(buffer, 1)


def copied(x: Tensor, copies: int, images: int) -> Tensor:
    """Rows (R, ...) for several groups of every image, one below the other; unconditional rows stay behind."""
    if copies == 1:
        return x
    return repeat(x, "(part b) ... -> (part copies b) ...", b=images, copies=copies)


def tokenize(prompts: Sequence[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Token ids (B, 2, T) of each prompt and of what guidance is against, and the mask (B, 2, T) of the words."""
    texts = [TEMPLATE.format(part) for prompt in prompts for part in (ASKED.format(prompt), UNASKED)]
    found = tokenizer(texts, add_special_tokens=True).input_ids
    lengths = torch.tensor([len(row) for row in found])
    length, end = int(lengths.max()), tokenizer.eos_token_id or 0
    ids = torch.tensor([[*row, *[end] * (length - len(row))] for row in found])
    mask = torch.arange(length) < lengths[:, None]
    return ids.unflatten(0, (-1, 2)), mask.unflatten(0, (-1, 2))


def load_tokenizer(source: str | None, published: str, vocabulary: int) -> Any:
    """The text tokenizer in a folder or repository, by default `published`. ValueError where it is not Qwen2's."""
    place, found = source or published, t5.load_tokenizer(source, published)
    if lacking := [mark for mark in MARKS if mark not in found.get_vocab()]:
        raise ValueError(f"the text tokenizer {place} does not know {lacking[0]}: expected that of {published}")
    if len(found) > vocabulary:
        raise ValueError(f"the text tokenizer {place} has {len(found)} tokens, expected at most {vocabulary}")
    return found
