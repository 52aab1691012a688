"""GLM-Image's first stage through transformers' classes: a small preview grid of codes, then the full grid, one by one.

A prompt ends in both grids, `<sop>32 32<eop><sop>16 16<eop>`, and the token that starts an image. What is drawn stands
in three-part positions: text counts (p, p, p); a grid begins at q, where the text or the grid before it ended, and its
cell (r, c) has (q, q + r, q + c); what follows begins at q + max(rows, columns). There is no guidance.

Codes alone are drawn. The head also knows the ids that start and end an image, and some that mean nothing; but the
diffusion transformer wants all codes of the full grid, and an image that ended early would be of no use to it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vargen.core.described import as_dataclass
from vargen.core.messages import quoted
from vargen.core.specs import RasterSpec
from vargen.core.types import Condition, KVCache
from vargen.kernels.rope import Halves
from vargen.models.prompted import padded
from vargen.models.wrapped import Wrapped, as_json, rebuilt

FACTOR = 32  # pixels per code of the full grid along one side
PREVIEW = FACTOR // 2  # codes along one side of a square preview
SIZE = (1152, 768)  # the processor's own, height first
AREA = (512**2, 2048**2)  # pixels of an image, least and most
ASPECT = 4  # of the longer side to the shorter one, at most
SHOWN = 48  # tokens at the end of a prompt, in which its grids are


def preview(rows: int, columns: int) -> tuple[int, int]:
    """The preview grid of a full grid, rounded as transformers' processor does."""
    ratio = rows / columns
    return int(math.sqrt(ratio) * PREVIEW), int(math.sqrt(1 / ratio) * PREVIEW)


def spec_of(size: tuple[int, int], codes: int) -> RasterSpec:
    """The layout of an image of `size` pixels, height first."""
    rows, columns = size[0] // FACTOR, size[1] // FACTOR
    return RasterSpec(rows, columns, codes, 0, previews=(preview(rows, columns),))


def sizes() -> tuple[tuple[int, int], ...]:
    """All sizes (height, width) that it draws: multiples of 32 within `AREA`, no longer than `ASPECT` to one."""
    least, most = (area // FACTOR**2 for area in AREA)
    sides = range(1, math.isqrt(most * ASPECT) + 1)
    fit = ((h, w) for h in sides for w in sides if least <= h * w <= most and max(h, w) <= ASPECT * min(h, w))
    return tuple((h * FACTOR, w * FACTOR) for h, w in fit)


def cells(spec: RasterSpec) -> Tensor:
    """Where each slot stands behind the text: (3, slots), of what transformers calls time, height and width."""
    parts, begin = [], 0
    for grid in spec.grids:
        cell = torch.arange(grid.rows * grid.columns, device="cpu")
        parts.append(begin + torch.stack([torch.zeros_like(cell), cell // grid.columns, cell % grid.columns]))
        begin += max(grid.rows, grid.columns)
    return torch.cat(parts, dim=1)


def shares(config: Any) -> Tensor:
    """Which part of a position each frequency of the rotary embedding takes, (frequencies,)."""
    sections = config.rope_parameters.get("mrope_section", [8, 12, 12])
    return torch.tensor([index % 3 for index, count in enumerate(sections) for _ in range(count)], device="cpu")


@dataclass(frozen=True)
class Shapes:
    """What a model is made of beside its weights: transformers' config of the text model, how many codes there are, the
    id that starts an image, rows of the head; sizes in pixels, height first.
    """

    language: dict
    codes: int
    start: int
    head: int
    size: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]


class GlmImage(Wrapped):
    """GLM-Image's language model under the raster contract."""

    guides: ClassVar[bool] = False
    cells: Tensor
    shares: Tensor

    def __init__(
        self,
        language: nn.Module,
        head: nn.Linear,
        *,
        codes: int,
        start: int,
        size: tuple[int, int],
        sizes: tuple[tuple[int, int], ...],
        spec: RasterSpec | None = None,
    ) -> None:
        """transformers' GlmImageTextModel and its head, of which ids below `codes` are image codes, in both alike.

        `spec` has other grids than an image of `size` would.
        """
        config: Any = language.config
        super().__init__(language, config.max_position_embeddings)
        self.head, self.codes, self.start, self.size, self.sizes = head, codes, start, size, sizes
        self.spec = spec_of(size, codes) if spec is None else spec
        self.register_buffer("cells", cells(self.spec).to(head.weight.device), persistent=False)
        self.register_buffer("shares", shares(config).to(head.weight.device), persistent=False)

    def described(self) -> dict[str, Any]:
        """What `rebuilt` makes it of, without weights."""
        shapes = (as_json(self.about), self.codes, self.start, self.head.out_features, self.size, self.sizes)
        return asdict(Shapes(*shapes))

    @classmethod
    def rebuilt(cls, about: Any) -> "GlmImage":
        """The model without weights."""
        from transformers import GlmImageTextModel

        found = as_dataclass(Shapes, about)
        language = rebuilt(GlmImageTextModel, found.language)
        if not found.codes <= found.head or not found.start < language.config.vocab_size:
            raise ValueError("codes or a start token beyond its vocabulary")
        head = nn.Linear(language.config.hidden_size, found.head, bias=False, device="meta")
        how: Any = {"codes": found.codes, "start": found.start, "size": found.size, "sizes": found.sizes}
        made = cls(language, head, **how)
        made.cells, made.shares = cells(made.spec), shares(language.config)
        return made

    def at(self, size: tuple[int, int]) -> "GlmImage":
        return self.drawing(self._spec(size))

    def _spec(self, size: tuple[int, int]) -> RasterSpec:
        """The layout of an image of another size, with a preview where this one has one."""
        spec = spec_of(size, self.codes)
        return spec if self.spec.previews else replace(spec, previews=())

    def editing(self) -> "GlmImage":
        """The same weights, drawing behind prompts with pictures: there is no preview."""
        return self.drawing(replace(self.spec, previews=()))

    def drawing(self, spec: RasterSpec) -> "GlmImage":
        """The same weights, drawing any grids of codes."""
        size = (spec.rows * FACTOR, spec.columns * FACTOR)
        how: Any = {"codes": self.codes, "start": self.start, "size": size, "sizes": self.sizes, "spec": spec}
        return GlmImage(self.language, self.head, **how)

    def tokenize(
        self, prompts: Sequence[str], tokenizer: Any, pictures: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of the prompt, of both grids and of what starts an image; guidance is against nothing, since there is none.

        `pictures` of each prompt, as codes (h, w), come first. ValueError where a prompt says a grid itself, or holds
        image codes.
        """
        marks, said = (tokenizer.grid_bos_token, tokenizer.grid_eos_token), scaffold(self.spec, tokenizer)
        rows = []
        for prompt, shown in zip(prompts, pictures or [()] * len(prompts), strict=True):
            if any(mark in prompt for mark in marks):
                raise ValueError(f"got a prompt with {' or '.join(marks)} in it: give height and width instead")
            if min(_read(prompt, tokenizer), default=self.words) < self.head.out_features:
                raise ValueError("got a prompt with image tokens in it, expected words")
            read = [id for codes in shown for id in (self.start, *codes.flatten().tolist(), tokenizer.eos_token_id)]
            rows.append([[*read, *tokenizer(f"{prompt}{said}")["input_ids"]], []])
        return padded(rows)

    def text_condition(
        self, states: Tensor, mask: Tensor, grids: Sequence[Sequence[tuple[int, int]]] = (), *, guided: bool
    ) -> Condition:
        """As `Prompted` has it; `grids` are those of the pictures in each prompt, rows and columns."""
        started = ((states == self.start) & mask.bool())[:, 0].sum(-1)
        if started.tolist() != [1 + len(shown) for shown in grids or [()] * len(states)]:
            raise ValueError("got a prompt with pictures of unknown sizes in it: give them as image in a call")
        made = super().text_condition(states, mask, guided=guided)
        if not any(grids):
            return made
        rows, count, _ = made.embedding.shape
        found = torch.zeros(3, rows, count, dtype=torch.int64)
        for row, (ids, shown) in enumerate(zip(states[:, 0], grids, strict=True)):
            read = self._along(ids[mask[row, 0].bool()].tolist(), shown)
            found[:, row, count - read.shape[1] :] = read
        return Condition(made.embedding, made.padding, found.to(made.embedding.device))

    def _along(self, ids: Sequence[int], grids: Sequence[tuple[int, int]]) -> Tensor:
        """Where the tokens of a prompt stand, (3, T): text one behind the other, a picture as a grid that is drawn."""
        parts, at, begin = [], 0, 0
        for rows, columns in grids:
            first = ids.index(self.start, at) + 1
            text = begin + torch.arange(first - at)
            begin += first - at
            parts += [text.expand(3, -1), begin + cells(RasterSpec(rows, columns, self.codes, 0)).cpu()]
            begin, at = begin + max(rows, columns), first + rows * columns
        parts.append((begin + torch.arange(len(ids) - at)).expand(3, -1))
        return torch.cat(parts, 1)

    def said_size(self, ids: Tensor, tokenizer: Any) -> tuple[int, int]:
        """By the grids at its end. ValueError where there are none."""
        given = ids[-SHOWN:].tolist()
        for size in (None, *self.sizes):
            said = _read(scaffold(self.spec if size is None else self._spec(size), tokenizer), tokenizer)
            if given[-len(said) :] == said:
                return size or self.size
        raise ValueError("got prompt_embeds that do not end in the grids of an image: take them from encode_prompt")

    def text_of(self, ids: Tensor, tokenizer: Any) -> str:
        """The words of a prompt's ids (T,), without what is behind them."""
        behind = len(_read(scaffold(self.spec, tokenizer), tokenizer))
        return tokenizer.decode(ids[:-behind].tolist(), skip_special_tokens=True)

    def checked(self, ids: Any, mask: Any) -> tuple[Tensor, Tensor]:
        found, words = super().checked(ids, mask)
        last = found[:, 0].gather(1, words[:, 0].sum(-1, keepdim=True) - 1)
        if (last != self.start).any():
            raise ValueError(
                "got prompt_embeds that do not end in the token which starts an image: take them from encode_prompt"
            )
        return found, words

    def opening(self) -> list[int]:
        return []  # `tokenize` has it

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embed_words(tokens)

    def places(self, positions: Tensor, cache: KVCache) -> Tensor:
        """Three-part positions (3, R, n) of those (R, n) that count a row's tokens from its first one on."""
        words = cache.front if cache.shift is None else cache.front - cache.shift[-len(positions) :]
        slots = positions - words
        begin, text = words, positions
        if cache.places is not None:
            shown = cache.places[:, -len(positions) :]
            rows = (positions if cache.shift is None else positions + cache.shift[-len(positions) :]).clamp(
                max=shown.shape[-1] - 1
            )
            begin, text = shown[:, :, -1:] + 1, shown.gather(2, rows.expand(3, -1, -1))
        return torch.where(slots < 0, text, begin + self.cells[:, slots.clamp(min=0)])

    def turns(self, x: Tensor, places: Tensor) -> Halves:
        """The frequencies are shared out among the three parts of `places` (3, R, n), in order."""
        rope: Any = self.language.rotary_emb
        if rope.rope_type != "default":
            return super().turns(x, places)
        angles = places[self.shares].movedim(0, -1) * rope.inv_freq  # (R, n, frequencies)
        cos, sin = (part.to(x.dtype).float()[:, :, None] for part in (angles.cos(), angles.sin()))
        return Halves(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))

    def logits(self, states: Tensor) -> Tensor:
        """Of the codes alone."""
        return self.head(states)[..., : self.codes].float()


def scaffold(spec: RasterSpec, tokenizer: Any) -> str:
    """What follows a prompt: the full grid, the preview if there is one, and what starts an image."""
    marks, grids = (tokenizer.grid_bos_token, tokenizer.grid_eos_token), reversed(spec.grids)
    return "".join(f"{marks[0]}{grid.rows} {grid.columns}{marks[1]}" for grid in grids) + tokenizer.bos_token


def _read(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_words(tokenizer: Any) -> None:
    """ValueError where a text tokenizer lacks what a prompt ends in."""
    named = tokenizer.special_tokens_map
    if lacking := [name for name in ("grid_bos_token", "grid_eos_token", "bos_token") if not named.get(name)]:
        where = quoted(tokenizer.name_or_path)
        raise ValueError(f"the text tokenizer {where} names no {lacking[0]}, which a prompt of GLM-Image ends in")
