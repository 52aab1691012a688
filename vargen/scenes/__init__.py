"""Pocket scenes: small painted landscapes of ten kinds, made from a label and a seed.

>>> scene = draw(CLASSES.index("harbour"), seed=7)
>>> scene.image.shape
(64, 64, 3)
"""

from vargen.scenes.landscapes import CLASSES, COLOURS, Scene, draw, draw_many

__all__ = ["CLASSES", "COLOURS", "Scene", "draw", "draw_many"]
