"""Raster models that read a prompt's own tokens and draw behind them, all in one sequence of positions.

A condition is the prompt and the few tokens that begin an image and say its size; prompts of a batch are padded on the
left. The unconditional rows are in the same batch, with a shorter condition or another one; every row counts its
positions from its own first token.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vargen.core.dispatch import Kernels
from vargen.core.specs import RasterSpec
from vargen.core.types import Block, Condition, KVCache
from vargen.kernels.attention import Sight
from vargen.models.contract import Model
from vargen.models.llama import Standing, behind, sight_over


class Prompted(Model, ABC):
    """The raster contract (`models/contract.py`) around a decoder that a subclass knows how to run."""

    spec: RasterSpec
    size: tuple[int, int]  # height and width in pixels
    sizes: tuple[tuple[int, int], ...]  # that it can draw
    words: int  # of the text vocabulary
    context: int  # positions that it knows
    guides: ClassVar[bool] = True  # whether it was taught what guidance is against; else that may have no words
    chooses_size: ClassVar[bool] = False  # whether it may: `choose_sizes`
    reads_pictures: ClassVar[bool] = False  # whether `tokenize` takes the codes of pictures behind the tokenizer

    @abstractmethod
    def at(self, size: tuple[int, int]) -> "Prompted":
        """The same weights, drawing images of another size."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
        """Ids (B, 2, T) of each prompt and of what guidance is against, words first, and the mask (B, 2, T) of them."""

    def said_size(self, ids: Tensor, tokenizer: Any) -> tuple[int, int] | None:
        """The size in pixels of which a prompt's ids (T,) speak, height first; None where they say none."""
        return None

    @abstractmethod
    def opening(self) -> list[int]:
        """The ids that follow the prompt and open an image of this size."""

    @abstractmethod
    def embed_words(self, ids: Tensor) -> Tensor:
        """Ids (R, n) of the text vocabulary as the layers take them, (R, n, d)."""

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Image tokens (R, n) as the layers take them, (R, n, d)."""

    @abstractmethod
    def layers(self, x: Tensor, positions: Tensor, sight: Sight, cache: KVCache) -> Tensor:
        """States (R, n, d) of tokens at `positions` (R, n), which enter the cache at the rows of `sight`."""

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """What the output head makes of states (R, n, d): (R, n, V) in float32."""

    @abstractmethod
    def empty_cache(self, batch: int, rows: int) -> KVCache: ...

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def checked(self, ids: Any, mask: Any) -> tuple[Tensor, Tensor]:
        """What `tokenize` gave. ValueError where it is no such thing, or longer than the model can read."""
        found, words = checked(ids, mask, self.words, unguided=not self.guides or len(self.opening()) > 0)
        longest = int(words.sum(-1).max())
        if longest > self.room:
            raise ValueError(
                f"got a prompt of {longest} tokens, expected at most {self.room} beside an image of this size"
            )
        return found, words

    @property
    def room(self) -> int:
        """Tokens that a prompt may have beside an image of this size."""
        return self.context - self.spec.slots - len(self.opening())

    def text_condition(self, states: Tensor, mask: Tensor, *, guided: bool) -> Condition:
        """Embed ids (B, 2, T) under their mask, as `tokenize` gives them, as (B, T', d), or (2B, T', d) if `guided`."""
        if guided and not self.guides:
            raise ValueError(f"{type(self).__name__} draws without guidance: leave guidance_scale at 1")
        ids, words = (rearrange(part[:, : 1 + guided], "b part t -> (part b) t") for part in (states, mask))
        count = words.sum(1, keepdim=True)  # (R, 1)
        longest = int(count.max())
        place = torch.arange(longest, device=ids.device)
        turned = ids.gather(1, (place + count) % longest if longest else count[:, :0])
        opening = torch.tensor(self.opening(), dtype=torch.int64, device=ids.device).expand(len(ids), -1)
        padding = torch.cat([place < longest - count, torch.zeros_like(opening, dtype=torch.bool)], dim=1)
        embedded = self.embed_words(torch.cat([turned, opening], dim=1))
        return Condition(embedded, padding if bool(padding.any()) else None)

    def make_cache(self, batch: int, extra: int = 0, front: int = 1) -> KVCache:
        """An empty cache behind a condition of `front` tokens; see `models/contract.py`."""
        cache = self.empty_cache(batch, front + self.spec.slots + extra)
        cache.front = front
        return cache

    def prefill(self, condition: Condition, cache: KVCache, first: int = 0) -> Tensor:
        batch, count, _ = condition.embedding.shape
        rows = torch.arange(first, count, device=self.device).expand(batch, -1)
        cache.note(condition)
        states = self._run(condition.embedding[:, first:], cache, (rows, rows, first, count, None))
        return self.logits(states[:, -1:])

    def decode(self, block: Block, cache: KVCache) -> Tensor:
        return self.logits(self._run(self.embed(block.tokens), cache, behind(cache.front, block, cache)))

    def _run(self, x: Tensor, cache: KVCache, standing: Standing) -> Tensor:
        slots, rows, first, stop, sees = standing
        sight, positions = sight_over(cache, rows, first, stop, sees, x.dtype), slots
        if cache.shift is not None:
            positions = (slots - cache.shift[-len(slots) :]).clamp(min=0)
        return self.layers(x, positions, sight, cache)

    def forward(self, condition: Condition, tokens: Tensor) -> Tensor:
        """Teacher-forced logits (R, N, V) of image tokens (R, N) under a condition."""
        return self.logits(self.states(condition, tokens)[:, condition.embedding.shape[1] - 1 :])

    def states(self, condition: Condition, tokens: Tensor) -> Tensor:
        """The states (R, T + N - 1, d) of a condition and the image tokens (R, N) behind it, without the last."""
        x = torch.cat([condition.embedding, self.embed(tokens[:, :-1])], dim=1)
        batch, count, _ = x.shape
        cache, rows = Passing(), torch.arange(count, device=x.device).expand(batch, -1)
        cache.front = condition.embedding.shape[1]
        cache.note(condition)
        return self._run(x, cache, (rows, rows, 0, count, None))


class Passing(KVCache):
    """What stands for a cache in training: all keys are there at once, and none is kept."""

    def __init__(self) -> None:
        self.padding, self.kernels = None, Kernels("torch")  # what is trained needs gradients

    def flat(self, rows: Tensor) -> Tensor:
        """Nothing is written."""
        return rows

    def write(self, layer: int, flat: Tensor | None, k: Tensor, v: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """k and v (R, n, heads, dim), heads first."""
        return k.transpose(1, 2), v.transpose(1, 2)


def checked(ids: Any, mask: Any, vocabulary: int, *, unguided: bool = False) -> tuple[Tensor, Tensor]:
    """What a `tokenize` gave and somebody hands in; one prompt may lack the B. ValueError where it cannot be that.

    With `unguided`, what guidance is against may have no words.
    """
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor):
        raise ValueError("got prompt_embeds or prompt_attention_mask that is no tensor: pass both, from encode_prompt")
    if ids.dim() == 2 and mask.dim() == 2:
        ids, mask = ids[None], mask[None]
    if ids.dim() != 3 or ids.shape[1] != 2 or mask.shape != ids.shape or not ids.numel():
        shapes = f"{tuple(ids.shape)} and mask {tuple(mask.shape)}"
        raise ValueError(f"got prompt_embeds {shapes}, expected token ids (B, 2, T) and (B, 2, T), from encode_prompt")
    if ids.dtype != torch.int64 or int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise ValueError(f"got prompt_embeds that are no token ids, expected whole numbers from 0 to {vocabulary - 1}")
    words = mask.bool()
    first = words[:, : 1 if unguided else 2, 0]
    if not ((mask == 0) | (mask == 1)).all() or not first.all() or (words[..., 1:] & ~words[..., :-1]).any():
        raise ValueError("got a prompt_attention_mask that is not of words first and padding behind them")
    return ids, words


def against(read: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, 2, T) of prompts, with those of other prompts for guidance of some `rows` to be against."""
    longest = max(part.shape[-1] for part, _ in (read, other))
    ours, theirs = ([F.pad(part, (0, longest - part.shape[-1])) for part in pair] for pair in (read, other))
    for mine, another in zip(ours, theirs, strict=True):
        mine[list(rows), 1] = another[:, 0]
    return ours[0], ours[1]


def padded(rows: list[list[list[int]]]) -> tuple[Tensor, Tensor]:
    """Ids (B, 2, T) and their mask from lists, words first."""
    longest = max(len(part) for row in rows for part in row)
    ids = torch.tensor([[part + [0] * (longest - len(part)) for part in row] for row in rows])
    lengths = torch.tensor([[len(part) for part in row] for row in rows])
    return ids, torch.arange(longest) < lengths[..., None]
