"""Whether pictures of pocket scenes show what their captions say: the scene, and the colour that is named."""

import torch

from vargen.eval.images import Images
from vargen.scenes import COLOURS


def understood(caption: str) -> tuple[str, str] | None:
    """The scene and the colour of a caption, one of `scenes.COLOURS`; None where it names no such pair.

    A scene is the one that is named first, a colour the first of those that this scene may have.
    """
    text = caption.casefold()
    found = {name: text.index(name) for name, _ in COLOURS if name in text}
    if not found:
        return None
    scene = min(found, key=lambda name: found[name])
    colours = {colour: text.index(colour) for name, colour in COLOURS if name == scene and colour in text}
    return (scene, min(colours, key=lambda colour: colours[colour])) if colours else None


@torch.inference_mode()
def agreement(images: Images, captions: list[str], device: torch.device) -> float:
    """Share of images in which `pocket-judge` sees the scene and the colour of the caption. ValueError where one of
    them names none.
    """
    from vargen.models import pocket

    wanted = [understood(caption) for caption in captions]
    if None in wanted:
        raise ValueError(f"got caption {captions[wanted.index(None)]!r}, expected a pocket scene with its colour")
    judge, right = pocket.load("pocket-judge", device=device), 0
    for start in range(0, images.count, 100):
        pixels = torch.from_numpy(images.read(start, min(start + 100, images.count)).copy())
        seen = judge(pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1).argmax(-1).tolist()
        right += sum(COLOURS[guess] == pair for guess, pair in zip(seen, wanted[start:], strict=False))
    return right / images.count
