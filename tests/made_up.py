"""Sets of random pictures, for tests of the evaluation."""

import numpy as np
from PIL import Image

from vargen.eval.images import Images


def made_up(count, size=8, seed=0):
    def read(start, stop):
        return np.stack([np.random.RandomState(seed + i).randint(0, 256, (size, size, 3)) for i in range(start, stop)])

    return Images(f"{count} made-up images", count, (size, size), lambda a, b: read(a, b).astype(np.uint8))


def save_folder(images, path):
    path.mkdir()
    for index, pixels in enumerate(images.read(0, images.count)):
        Image.fromarray(pixels).save(path / f"{index:04d}.png")
    return path
