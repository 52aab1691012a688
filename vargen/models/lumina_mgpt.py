"""Lumina-mGPT (arXiv 2408.02657) and 2.0 (2507.17801): Chameleon's decoder (2405.09818) over text and image tokens.

An image is a begin token, one for its height and one for its width, its rows of codes with a newline behind each, and
an end token. All but the codes is given: the size tokens are forced, and the end token is never run.

The vocabulary of the raster contract is the image's codes, and the newline behind them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core import messages, noise
from vargen.core.described import as_dataclass
from vargen.core.specs import RasterSpec
from vargen.core.types import Condition, KVCache
from vargen.kernels.attention import Sight
from vargen.models.chameleon import Chameleon, ChameleonConfig
from vargen.models.prompted import Prompted, padded

PICTURE = "<|image|>"  # in a prompt: where a picture stands
SHOWN = 64  # tokens of a prompt, in which its size would be
GRID = 32  # pixels that one step of a size token stands for


@dataclass(frozen=True)
class Vocabulary:
    """The ids that an image is made of, found by their names."""

    first: int  # id of code 0; the others follow in order
    codes: int
    begin: int
    end: int
    newline: int
    separator: int  # behind each turn of the prompt
    grids: tuple[int, ...]  # the id of n grid steps is grids[n - 1]

    @property
    def ids(self) -> tuple[int, ...]:
        """All but the codes in between."""
        last = self.first + self.codes - 1
        return (self.first, last, self.begin, self.end, self.newline, self.separator, *self.grids)

    @classmethod
    def read(cls, names: Mapping[str, int]) -> "Vocabulary":
        """From names and ids, as `vocabulary_map` in a config.json has them. ValueError where one is missing."""
        if wrong := [name for name, id in names.items() if not isinstance(id, int)]:
            raise ValueError(f"got a vocabulary in which {messages.shown(wrong[0])} has no id")
        found = {code: id for name, id in names.items() if (code := code_of(name)) is not None}
        if not found:
            raise ValueError("got a vocabulary without image codes, expected names such as IMGIMGBZ or <MOVQGAN1>")
        first = min(found.values())
        if found != {code: first + code for code in range(len(found))}:
            raise ValueError("got a vocabulary whose image codes do not follow one another in order")
        parts = {"begin": "<racm3:break>", "end": "<eoss>", "newline": reserved(8799), "separator": reserved(8706)}
        if missing := [name for name in (*parts.values(), reserved(8801)) if name not in names]:
            raise ValueError(f"got a vocabulary without {missing[0]}")
        grids = []
        while (name := reserved(8801 + len(grids))) in names:
            grids.append(names[name])
        return cls(first, len(found), **{key: names[name] for key, name in parts.items()}, grids=tuple(grids))


def reserved(number: int) -> str:
    """The name of a reserved token."""
    return f"<reserved{number:05d}>"


def code_of(name: str) -> int | None:
    """The image code that a token's name stands for: letters A to J are digits in Lumina-mGPT's and Chameleon's."""
    if match := re.fullmatch(r"IMGIMG([A-J]+)Z", name):
        return int(match[1].translate(str.maketrans("ABCDEFGHIJ", "0123456789")))
    match = re.fullmatch(r"<MOVQGAN\D*(\d+)\D*>", name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class Shapes:
    """What a model is made of beside its weights; sizes in pixels, height first."""

    decoder: ChameleonConfig
    vocabulary: Vocabulary
    size: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]
    factor: int
    template: str


class LuminaMGPT(Prompted):
    """A Chameleon decoder that draws images of one size under the raster contract."""

    chooses_size: ClassVar[bool] = True
    reads_pictures: ClassVar[bool] = True
    replays: ClassVar[bool] = True

    def __init__(
        self,
        decoder: Chameleon,
        vocabulary: Vocabulary,
        *,
        size: tuple[int, int],
        sizes: tuple[tuple[int, int], ...],
        factor: int,
        template: str,
    ) -> None:
        """`size` and `sizes` in pixels, height first; `factor` pixels per code along one side; `template` of a prompt,
        in which {width}, {height} and {prompt} stand for themselves.
        """
        super().__init__()
        self.decoder, self.vocabulary, self.size, self.sizes = decoder, vocabulary, size, sizes
        self.factor, self.template = factor, template
        self.config, self.words, self.context = decoder.config, decoder.config.vocabulary, decoder.config.context
        v, most = vocabulary, max(max(one) for one in sizes) // GRID
        if not 0 <= min(v.ids) <= max(v.ids) < self.words:
            raise ValueError(f"got a vocabulary with ids beyond the {self.words} of the weights")
        if len(v.grids) < most:
            raise ValueError(f"got a vocabulary with {len(v.grids)} size tokens, expected {most}")
        self.spec = self._layout()

    def _layout(self) -> RasterSpec:
        return spec_of(self.size, self.factor, self.vocabulary.codes)

    def at(self, size: tuple[int, int]) -> "LuminaMGPT":
        how = {"sizes": self.sizes, "factor": self.factor, "template": self.template}
        return type(self)(self.decoder, self.vocabulary, size=size, **how)

    def described(self) -> dict[str, Any]:
        """What `rebuilt` makes it of, without weights."""
        shapes = (self.config, self.vocabulary, self.size, self.sizes, self.factor, self.template)
        return asdict(Shapes(*shapes))

    @classmethod
    def rebuilt(cls, about: Any) -> "LuminaMGPT":
        """The model without weights. ValueError where it cannot be such a one."""
        found = as_dataclass(Shapes, about)
        how = {"size": found.size, "sizes": found.sizes, "factor": found.factor, "template": found.template}
        with torch.device("meta"):
            return cls(Chameleon(found.decoder), found.vocabulary, **how)

    def tokenize(
        self, prompts: Sequence[str], tokenizer: Any, pictures: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of the prompt in its template; guidance is against the image alone, so that no words stand there.

        `pictures` of each prompt, as codes (h, w), take the places of `PICTURE` in it, or stand in front.
        """
        height, width = self.size
        rows = []
        for prompt, shown in zip(prompts, pictures or [()] * len(prompts), strict=True):
            if pictures is not None:  # a task of its own, and no wish for an image of some size
                text = prompt if PICTURE in prompt else f"{PICTURE} " * len(shown) + prompt
            else:
                text = self.template.format(width=width, height=height, prompt=prompt)
            rows.append([self._turn(text, tokenizer, None if pictures is None else shown), []])
        return padded(rows)

    def said_size(self, ids: Tensor, tokenizer: Any) -> tuple[int, int] | None:
        """By the template: a prompt with pictures has none."""
        front, numbers = self.template.partition("{prompt}")[0], {"{width}": r"(?P<w>\d+)", "{height}": r"(?P<h>\d+)"}
        if any(number not in front for number in numbers) or bool((ids == self.vocabulary.begin).any()):
            return None
        parts = [part for part in re.split(r"(\{width\}|\{height\})|\s", front) if part]
        pattern = r"\s*".join(["", *(numbers.get(part) or re.escape(part) for part in parts), r"(?!\d)"])
        found = re.match(pattern, tokenizer.decode(ids[:SHOWN].tolist(), skip_special_tokens=True))
        return (int(found["h"]), int(found["w"])) if found else None

    def _turn(self, text: str, tokenizer: Any, pictures: Sequence[Tensor] | None) -> list[int]:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        ids, parts = [] if start is None else [start], [text] if pictures is None else text.split(PICTURE)
        pictures = pictures or ()
        if len(parts) != len(pictures) + 1:
            raise ValueError(f"got {len(pictures)} pictures for {len(parts) - 1} places {PICTURE} in the prompt")
        for part, shown in zip_longest(parts, pictures):
            ids += tokenizer.encode(part, add_special_tokens=False) if part else []
            ids += [] if shown is None else self.picture(shown)
        return [*ids, self.vocabulary.separator]

    def picture(self, codes: Tensor) -> list[int]:
        """The ids of a whole image of codes (h, w), from its begin token to its end token."""
        v, (high, wide) = self.vocabulary, (side * self.factor // GRID for side in codes.shape)
        rows = [[*(v.first + code for code in row), v.newline] for row in codes.tolist()]
        return [v.begin, v.grids[high - 1], v.grids[wide - 1], *(id for row in rows for id in row), v.end]

    def opening(self) -> list[int]:
        height, width = (pixels // GRID for pixels in self.size)
        return [self.vocabulary.begin, self.vocabulary.grids[height - 1], self.vocabulary.grids[width - 1]]

    def embed_words(self, ids: Tensor) -> Tensor:
        return self.decoder.model.embed_tokens(ids)

    def embed(self, tokens: Tensor) -> Tensor:
        ids = torch.where(tokens == self.vocabulary.codes, self.vocabulary.newline, tokens + self.vocabulary.first)
        return self.decoder.model.embed_tokens(ids)

    def layers(self, x: Tensor, positions: Tensor, sight: Sight, cache: KVCache) -> Tensor:
        return self.decoder(x, positions, sight, cache)

    def logits(self, states: Tensor) -> Tensor:
        """Of the codes; a newline's is never looked at (`RasterSpec.given`)."""
        first, codes = self.vocabulary.first, self.vocabulary.codes
        return F.pad(F.linear(states, self.decoder.lm_head.weight[first : first + codes]).float(), (0, 1))

    def choose_sizes(self, ids: Tensor, mask: Tensor, seeds: Tensor, temperature: float) -> list[tuple[int, int]]:
        """Sizes in pixels that the model itself draws behind each prompt, from the law of its size tokens, unguided.

        Published, any token may be drawn there; here, only those of `sizes` that leave room for the longest prompt.
        """
        prompt, longest = self.text_condition(ids, mask, guided=False), int(mask.sum(-1).max())
        fit = [size for size in self.sizes if self.at(size).room >= longest]
        x = prompt.embedding[:, :-2]
        chosen: list[tuple[int, ...]] = [()] * len(ids)
        g = noise.gumbel(seeds, torch.arange(2, device=seeds.device), noise.Purpose.SIZE, len(self.vocabulary.grids))
        for step in range(2):
            front = Condition(x, None if prompt.padding is None else prompt.padding[:, : x.shape[1]])
            scores = self.size_logits(self.states(front, ids[:, 0, :1])[:, -1]) / temperature + g[:, step]
            for row, before in enumerate(chosen):
                able = sorted({size[step] // GRID - 1 for size in fit if size[:step] == before})
                chosen[row] = (*before, GRID * (1 + able[int(scores[row, able].argmax())]))
            grids = torch.tensor([self.vocabulary.grids[size[-1] // GRID - 1] for size in chosen], device=ids.device)
            x = torch.cat([x, self.embed_words(grids)[:, None]], dim=1)
        return [(size[0], size[1]) for size in chosen]

    def size_logits(self, states: Tensor) -> Tensor:
        """What the head says of size tokens from states (R, d) in front of one: (R, n), one grid step first."""
        return F.linear(states, self.decoder.lm_head.weight[list(self.vocabulary.grids)]).float()

    def empty_cache(self, batch: int, rows: int) -> KVCache:
        c = self.config
        return KVCache(c.layers, batch, rows, c.kv_heads, c.head_dim, dtype=self.dtype, device=self.device)


class Anole(LuminaMGPT):
    """Chameleon as Anole taught it to draw (arXiv 2407.06135): no size tokens, no newlines, one size."""

    chooses_size: ClassVar[bool] = False

    def _layout(self) -> RasterSpec:
        spec = super()._layout()
        return RasterSpec(spec.rows, spec.columns - 1, spec.vocabulary - 1, 0)

    def opening(self) -> list[int]:
        return [self.vocabulary.begin]

    def picture(self, codes: Tensor) -> list[int]:
        v = self.vocabulary
        return [v.begin, *(v.first + code for code in codes.flatten().tolist()), v.end]

    def logits(self, states: Tensor) -> Tensor:
        return super().logits(states)[..., :-1]


def spec_of(size: tuple[int, int], factor: int, codes: int) -> RasterSpec:
    """The layout of an image of `size` pixels."""
    return RasterSpec(size[0] // factor, size[1] // factor + 1, codes + 1, 0, newline=codes)


def crops(target: int, ratio: float = 4.0) -> tuple[tuple[int, int], ...]:
    """The published sizes (height, width) in pixels of about `target` squared, widest first."""
    area, out = (target // GRID) ** 2, []
    wide, high = area, 1
    while wide:
        if max(wide, high) <= ratio * min(wide, high):
            out.append((high * GRID, wide * GRID))
        if (high + 1) * wide <= area:
            high += 1
        else:
            wide -= 1
    return tuple(out)
