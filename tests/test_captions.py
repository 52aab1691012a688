"""What a caption of a pocket scene says, and whether a picture shows it."""

import numpy as np
import pytest
import torch

from vargen.eval.captions import agreement, understood
from vargen.eval.images import Images
from vargen.scenes import CLASSES, COLOURS, draw
from vargen.scenes.dataset import HELD_OUT

SCENES = [draw(i % len(CLASSES), HELD_OUT + i) for i in range(200)]


def test_captions_are_understood():
    for scene in SCENES:
        pair = (scene.attributes["scene"], scene.attributes["colour"])
        assert understood(scene.caption) == pair
        assert understood(scene.caption.rsplit(",", 1)[0]) == pair
        assert pair in COLOURS
    assert understood("A RED boat in a harbour at dusk") == ("harbour", "red")
    assert understood("blue mountains with a meadow") == ("mountains", "blue")
    assert understood("a harbour") is None
    assert understood("a red car") is None


def images(scenes):
    pixels = np.stack([scene.image for scene in scenes])
    return Images("scenes", len(pixels), pixels.shape[1:3], lambda a, b: pixels[a:b])


def test_the_judge_sees_scenes_and_colours():
    captions, device = [scene.caption for scene in SCENES], torch.device("cpu")
    assert agreement(images(SCENES), captions, device) > 0.97
    assert agreement(images(SCENES), captions[10:] + captions[:10], device) < 0.5  # the same classes, other colours
    with pytest.raises(ValueError, match="expected a pocket scene with its colour"):
        agreement(images(SCENES[:2]), ["a red boat", captions[1]], device)
