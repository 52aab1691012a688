"""What passes between the rooms: a block of tokens, the key-value cache, a condition.

Slots are the coordinate system of the whole library. Slot s is the s-th image token in raster order; the condition
(class or text) takes `condition_tokens` rows in front, so slot s lives in cache row `condition_tokens + s`. The logits
computed at slot s are the law of slot s + 1, and those of the last condition token the law of slot 0.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels


@dataclass(frozen=True)
class Block:
    """Tokens for one forward pass.

    `first` and `stop` are bounds on the slots that the host knows without reading the device: no slot lies below
    `first` or at or beyond `stop`. They spare work (a shorter cache, no mask, no unconditional rows where guidance has
    ended) and never change a result. From block to block `first` never falls, but for a drafter, which takes a few
    tokens up again.
    """

    tokens: Tensor  # (B, n) int64
    slots: Tensor  # (B, n) int64: where each token stands, and the cache row that it writes
    first: int
    stop: int
    sees: Tensor | None = None  # (B, n, S) bool over places; None: causal by slot
    # A tree's branches share slots, so that each token has a place of its own in the cache, behind the slots in use.
    # With places, `sees` is given, and `stop` bounds them. `moves` (source, target), both (B, m), are places whose rows
    # are copied before the block runs: a path that was accepted goes to the slots it stands for.
    places: Tensor | None = None  # (B, n); None: the slots
    parents: Tensor | None = None  # (B, n): the place of the token before each; None: the slot before
    moves: tuple[Tensor, Tensor] | None = None

    def twice(self) -> "Block":
        """The same block for unconditional rows and for conditional ones, (2B, n): see `mirrored`."""

        def double(value: Tensor) -> Tensor:
            return torch.cat([value if len(value) == 1 else value.flip(0), value])

        return replace(
            self,
            tokens=double(self.tokens),
            slots=double(self.slots),
            sees=None if self.sees is None else double(self.sees),
            places=None if self.places is None else double(self.places),
            parents=None if self.parents is None else double(self.parents),
            moves=None if self.moves is None else (double(self.moves[0]), double(self.moves[1])),
        )


@dataclass(frozen=True)
class Group:
    """Tokens of a continuous model that are drawn together, and what is there when they are."""

    slots: Tensor  # (B, n) int64: what is to be drawn
    known: Tensor  # (B, m) int64, ascending: what is there
    values: Tensor  # (B, S, C) float32: the tokens, read at `known` only
    hidden: Tensor | None = None  # (B, m) bool: entries of `known` that stand for nothing; None: none does


@dataclass(frozen=True)
class Denoising:
    """How a head draws: which heads read which of these, they say."""

    steps: int
    guidance: float = 1.0  # u + s (c - u); 1 is off
    temperature: float = 1.0  # of the noise of each step
    solver: str = "ddpm"
    highest: int = 999  # diffusion timesteps above it are brought down to it
    guidance_high: float = 1.0  # flow times above it are not guided


@dataclass(frozen=True)
class DenoisingPath:
    """A denoising path: where each step starts, and the law of where it leads. Steps are in the order made."""

    states: Tensor  # (T, B, n, C): x before each step
    means: Tensor  # (T, B, n, C): of x behind it
    log_variances: Tensor  # (T, B, n, C); that of the last step is not used: it is made without noise

    @property
    def end(self) -> Tensor:
        """The tokens (B, n, C)."""
        return self.means[-1]


@dataclass(frozen=True)
class Condition:
    """What the image is conditioned on, embedded: (R, T, d), R the conditional rows, then the unconditional ones."""

    embedding: Tensor
    padding: Tensor | None = None  # (R, T) bool: rows of the condition that nobody may see
    places: Tensor | None = None  # (3, R, T): where its tokens stand, if not one behind the other from the first seen

    def mirrored(self) -> "Condition":
        """The same, its rows in the order in which a raster model's cache has them: see `mirrored`."""
        padding = None if self.padding is None else mirrored(self.padding)
        return Condition(mirrored(self.embedding), padding, None if self.places is None else mirrored(self.places, 1))

    def rounded(self, step: int) -> "Condition":
        """The same, padded in front to a multiple of `step` rows, so that few lengths are met."""
        return self.lengthened(-self.embedding.shape[1] % step)

    def lengthened(self, more: int) -> "Condition":
        """The same, with so many rows of padding in front."""
        rows, count, _ = self.embedding.shape
        if not more:
            return self
        padding = self.embedding.new_zeros(rows, count, dtype=torch.bool) if self.padding is None else self.padding
        places = None if self.places is None else F.pad(self.places, (more, 0))
        return Condition(F.pad(self.embedding, (0, 0, more, 0)), F.pad(padding, (more, 0), value=True), places)


def mirrored(rows: Tensor, dim: int = 0) -> Tensor:
    """Conditional rows, then unconditional ones, as a raster model's cache has them: first the unconditional ones, last
    image first, then the conditional ones. So an image more is a row more at either end, and no other row moves.
    """
    conditional, unconditional = rows.chunk(2, dim)
    return torch.cat([unconditional.flip(dim), conditional], dim)


class KVCache:
    """Keys and values of every layer, each (layers, R, S, heads, head_dim), allocated once and written by row.

    A token's keys and values lie beside each other, so that they are written in one. What is seen of them comes heads
    first, as attention takes it.

    A rejected token needs no roll-back: it lies behind every later query until the next write covers it. A block of
    fewer rows than the cache has uses those before row `end`. What is noted of a condition is noted of the rows in use.
    """

    padding: Tensor | None = None  # of the condition, see `Condition`
    places: Tensor | None = None  # likewise
    shift: Tensor | None = None  # (R, 1): padded rows in front, where positions count from the first that is not
    layers: Any = None  # those that are run over it, where a model knows that for all steps
    front: int = 0  # rows of the condition, where the model takes conditions of any length; set with the cache

    def __init__(
        self, layers: int, batch: int, rows: int, heads: int, dim: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._held = torch.zeros(layers, batch, rows, 2, heads, dim, dtype=dtype, device=device)
        self.kernels = Kernels()
        self._rows = [part.flatten(0, 1) for part in self._held]  # of each layer, (R * S, 2, heads, dim)
        self._first = self._held.permute(0, 3, 1, 4, 2, 5)  # heads first, (layers, 2, R, heads, S, dim)
        self._span, self._shown = (slice(0), 0), tuple(self._rows[:0])  # what was seen last, of each layer
        self._room, self._gaps = (0, 0, 0), tuple(zip(self._rows[:0]))  # what was joined last, of each layer
        self._offset = torch.arange(batch, device=device)[:, None] * rows
        self.end = batch

    def note(self, condition: Condition) -> None:
        """What is to be known of the condition of the rows in use, once for all steps."""
        self.padding, self.places = condition.padding, condition.places
        self.shift = None if condition.padding is None else condition.padding.sum(1, keepdim=True)

    def like(self, batch: int, rows: int) -> "KVCache":
        """An empty cache for the same model, for other sizes."""
        layers, _, _, _, heads, dim = self._held.shape
        out = KVCache(layers, batch, rows, heads, dim, dtype=self._held.dtype, device=self._held.device)
        out.kernels, out.layers, out.front = self.kernels, self.layers, self.front
        return out

    def take(self, other: "KVCache", source: list[int], target: list[int], stop: int, behind: int = 0) -> None:
        """Copy the first `stop` keys and values of rows `source` of another cache, or of this one, to rows `target`,
        `behind` so many others.
        """
        self._held[:, target, behind : behind + stop] = other._held[:, source, :stop]

    def part(self, row: int, start: int, stop: int) -> Tensor:
        """Keys and values of a row from place `start` to `stop`, (layers, n, 2, heads, dim), to be read and written."""
        return self._held[:, row, start:stop]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone: they come first from now on."""
        self._held[:, : len(rows)] = self._held[:, rows]

    def rows(self, count: int) -> slice:
        """The rows of a block of so many."""
        return slice(self.end - count, self.end)

    @property
    def keys(self) -> Tensor:
        """All keys, (layers, R, S, heads, head_dim), to be read and written."""
        return self._held[:, :, :, 0]

    @property
    def values(self) -> Tensor:
        """All values, as `keys`."""
        return self._held[:, :, :, 1]

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return self._held.nbytes

    def flat(self, rows: Tensor) -> Tensor:
        """Index (R * n,) into batch and rows together, for `write`, from cache rows (R, n)."""
        return (rows + self._offset[self.rows(len(rows))]).flatten()

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows `source` (R, m) to rows `target` (R, m) in every layer."""
        batch = torch.arange(self.end - len(source), self.end, device=source.device)[:, None]
        for part in (self.keys, self.values):
            part[:, batch, target] = part[:, batch, source]

    def write(self, layer: int, flat: Tensor | None, k: Tensor, v: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Write k and v (R, n, heads, dim) at `flat`; return the layer's first `stop` rows, (R, heads, stop, dim)."""
        return self.write_both(layer, flat, torch.stack([k, v], dim=2), stop)

    def write_both(self, layer: int, flat: Tensor | None, both: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """The same, of keys and values in one (R, n, 2, heads, dim)."""
        assert flat is not None
        compiled = torch.compiler.is_compiling()  # which takes one view of the cache, and no more
        rows = self._held[layer].flatten(0, 1) if compiled else self._rows[layer]
        rows.index_copy_(0, flat, both.flatten(0, 1))
        return self.seen(layer, len(both), stop)

    def seen(self, layer: int, batch: int, stop: int) -> tuple[Tensor, Tensor]:
        """A layer's first `stop` keys and values of a block of `batch` rows, (batch, heads, stop, dim)."""
        rows = self.rows(batch)
        if torch.compiler.is_compiling():
            keys, values = self._held[layer, rows, :stop].permute(2, 0, 3, 1, 4).unbind(0)
            return keys, values
        if self._span != (rows, stop):  # once for all layers
            self._span, self._shown = (rows, stop), self._first[:, :, rows, :, :stop].unbind(0)
        keys, values = self._shown[layer].unbind(0)
        return keys, values

    def join(self, layer: int, first: int, qkv: Tensor, *, keep: bool = True) -> tuple[Tensor, ...]:
        """Append keys and values behind row `first`, of queries, keys and values in one (R, n, 3, heads, dim).

        Heads first: the queries (R, heads, n, dim), and keys and values behind all before, (R, heads, first + n, dim).
        What has no room is returned and not kept; without `keep`, nothing is.
        """
        both, queries = qkv.narrow(2, 1, 2), qkv.select(2, 0).transpose(1, 2)
        kept = min(both.shape[1], self._held.shape[2] - first) if keep else 0
        there, gap, shown = self._until(layer, len(both), first, first + kept)
        if kept:
            gap.copy_(both[:, :kept] if kept < both.shape[1] else both)
        if kept < both.shape[1]:
            shown = torch.cat([there, both[:, kept:] if kept else both], dim=1).permute(2, 0, 3, 1, 4)
        return queries, *shown.unbind(0)

    def _until(self, layer: int, batch: int, first: int, stop: int) -> tuple[Tensor, ...]:
        """A layer's tokens up to `stop` (batch, stop, 2, heads, dim), those from `first` on, and all heads first."""
        if torch.compiler.is_compiling():
            there = self._held[layer, :batch, :stop]
            return there, there[:, first:], there.permute(2, 0, 3, 1, 4)
        if self._room != (batch, first, stop):  # once for all layers
            there = self._held[:, :batch, :stop]
            parts = (there.unbind(0), there[:, :, first:].unbind(0), there.permute(0, 3, 1, 4, 2, 5).unbind(0))
            self._room, self._gaps = (batch, first, stop), tuple(zip(*parts, strict=True))
        return self._gaps[layer]
