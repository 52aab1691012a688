"""Whether pictures of pocket scenes show what their captions say: the scene, and the colour that is named."""

import re

import torch

from vargen.eval.images import Images
from vargen.scenes import COLOURS


def understood(caption: str) -> tuple[str, str] | None:
    """The scene and the colour of a caption, one of `scenes.COLOURS`; None where it names no such pair.

    A scene is the one that is named first, a colour the first of those that this scene may have.
    """
    scene = _first({name for name, _ in COLOURS}, caption)
    colour = _first({colour for name, colour in COLOURS if name == scene}, caption)
    return (scene, colour) if scene and colour else None


def _first(words: set[str], text: str) -> str | None:
    """Whichever of `words` stands first in a text, as a word of its own."""
    found = {word: match.start() for word in words if (match := re.search(rf"\b{word}\b", text, re.IGNORECASE))}
    return min(found, key=lambda word: found[word], default=None)


@torch.inference_mode()
def agreement(images: Images, captions: list[str], device: torch.device) -> float:
    """Share of images in which `pocket-judge` sees the scene and the colour of the caption. ValueError where one of
    them names none.
    """
    from vargen.models import pocket

    if len(captions) != images.count:
        raise ValueError(f"got {len(captions)} captions for {images.count} images")
    wanted = [understood(caption) for caption in captions]
    if None in wanted:
        raise ValueError(f"got caption {captions[wanted.index(None)]!r}, expected a pocket scene with its colour")
    judge, right = pocket.load("pocket-judge", device=device), 0
    for start in range(0, images.count, 100):
        pixels = torch.from_numpy(images.read(start, min(start + 100, images.count)).copy())
        seen = judge(pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1).argmax(-1).tolist()
        right += sum(COLOURS[guess] == pair for guess, pair in zip(seen, wanted[start : start + 100], strict=True))
    return right / images.count
