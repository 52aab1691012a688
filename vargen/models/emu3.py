"""Emu3 (arXiv 2409.18869) through transformers' classes: text to image, a newline behind each row.

The prompt says the image's size in tokens; guidance is against a negative prompt. Published, guidance mixes
log-probabilities over the whole vocabulary: that differs from mixing logits by a constant for each token, and the law
is the same.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vargen.core.described import as_dataclass
from vargen.core.specs import RasterSpec
from vargen.models.prompted import padded
from vargen.models.wrapped import Worded, as_json, rebuilt

START, IMAGE, LINE = "<|image start|>", "<|image token|>", "<|extra_200|>"
POSITIVE = " masterpiece, film grained, best quality."  # behind every prompt, as the model card has it
NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
SHOWN = 16  # tokens at the end of a prompt, in which its size is
FACTOR = 8  # pixels per token along one side
AREA = 720 * 720
RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))  # width to height


def sizes(area: int = AREA) -> tuple[tuple[int, int], ...]:
    """Height and width in pixels for each of `RATIOS`, as transformers' processor rounds them."""
    sides = (((area / (w * h)) ** 0.5 / FACTOR, w, h) for w, h in RATIOS)
    return tuple((round(h * scale) * FACTOR, round(w * scale) * FACTOR) for scale, w, h in sides)


def codes(names: dict[str, int]) -> Tensor:
    """The id of each image code, and of the newline behind them, from a vocabulary_map. ValueError where one lacks."""
    found = {int(name[-8:-2]): id for name, id in names.items() if name.startswith("<|visual token")}
    if not found or sorted(found) != list(range(len(found))) or LINE not in names:
        raise ValueError(f"got a vocabulary_map without all image codes, or without {LINE}")
    return torch.tensor([*(found[code] for code in range(len(found))), names[LINE]])


@dataclass(frozen=True)
class Shapes:
    """What a model is made of beside its weights: transformers' config, ids of codes and newline, sizes in pixels."""

    language: dict
    ids: tuple[int, ...]
    size: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]


class Emu3(Worded):
    """Emu3's language model under the raster contract."""

    def __init__(
        self,
        language: nn.Module,
        head: nn.Linear,
        ids: Tensor,
        *,
        size: tuple[int, int],
        sizes: tuple[tuple[int, int], ...],
    ) -> None:
        """`ids` are those of `codes`; sizes in pixels, height first."""
        super().__init__(language, head, ids, count := len(ids) - 1)
        self.size, self.sizes = size, sizes
        self.spec = RasterSpec(size[0] // FACTOR, size[1] // FACTOR + 1, count + 1, 0, newline=count)

    def described(self) -> dict[str, Any]:
        """What `rebuilt` makes it of, without weights."""
        return asdict(Shapes(as_json(self.about), tuple(self.ids.tolist()), self.size, self.sizes))

    @classmethod
    def rebuilt(cls, about: Any) -> "Emu3":
        """The model without weights."""
        from transformers import Emu3TextModel

        found = as_dataclass(Shapes, about)
        language = rebuilt(Emu3TextModel, found.language)
        head = nn.Linear(language.config.hidden_size, language.config.vocab_size, bias=False, device="meta")
        ids = torch.tensor(found.ids, device="cpu")
        if not len(ids) or int(ids.max()) >= language.config.vocab_size:
            raise ValueError("ids beyond its vocabulary")
        return cls(language, head, ids, size=found.size, sizes=found.sizes)

    def at(self, size: tuple[int, int]) -> "Emu3":
        return Emu3(self.language, self.head, self.ids, size=size, sizes=self.sizes)

    def tokenize(self, prompts: Sequence[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
        """Of the prompt, and of the negative one, each with the size and the token that begins an image."""
        rows, columns = self.spec.rows, self.spec.columns - 1
        texts = [[f"{prompt}{POSITIVE}", NEGATIVE] for prompt in prompts]
        tail = f"{START}{rows}*{columns}{IMAGE}"
        read = [[f"{tokenizer.bos_token}{part}{tail}" for part in row] for row in texts]
        return padded([[tokenizer.encode(part, add_special_tokens=False) for part in row] for row in read])

    def said_size(self, ids: Tensor, tokenizer: Any) -> tuple[int, int] | None:
        text = "".join(tokenizer.decode(ids[-SHOWN:].tolist()).split())
        found = re.search(rf"{re.escape(''.join(START.split()))}(\d+)\*(\d+){re.escape(''.join(IMAGE.split()))}$", text)
        return (int(found[1]) * FACTOR, int(found[2]) * FACTOR) if found else None

    def opening(self) -> list[int]:
        return []  # `tokenize` has it
