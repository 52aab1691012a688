"""How wide blocks should be where many images run, of methods that draw the same image at any width.

A wide window settles most tokens a forward, and where one image runs, its forward costs little more than a narrow one.
Of many images it may cost several times as much, and then narrower blocks settle more tokens a second. What a step
costs is learnt as it goes, as a + b images + c images width seconds, and so is what a width settles.
"""

import numpy as np

from vargen.samplers.width import EXTRA, LADDER, PRIOR_EXTRA

STRETCH = 8  # steps for which a width stays: drafts become good as they stand for a while
SETTLING = 4  # of these, those at first from which nothing is learnt of what the width settles
EVERY = 25  # stretches after which a neighbour of the best width is tried again
PRIOR = 24.0  # steps of an image that what is believed at first is worth
FORGET = 0.995  # what a step counts for when another has come


class Pace:
    """The width of the next block."""

    def __init__(self, window: int) -> None:
        self.widths = (*sorted({1, 2, *LADDER} & set(range(window))), window)
        self._products, self._sums = np.eye(3) * 1e-9, np.zeros(3)  # of a least-squares fit
        # Tokens beyond the first that a step of a width settled, of so many images: at first what is believed of it.
        prior = np.interp(self.widths, list(EXTRA), list(EXTRA.values()))
        self._settled = {w: (PRIOR_EXTRA * PRIOR * one, PRIOR) for w, one in zip(self.widths, prior, strict=True)}
        self._steps, self._current = 0, window

    def width(self, images: int) -> int:
        """At most so wide the block of so many images should be."""
        stretch, begun = divmod(self._steps, STRETCH)
        if begun == 0:
            if stretch < len(self.widths):  # each of them once, the widest first
                self._current = self.widths[-1 - stretch]
            else:
                self._current = self._best(images, beside=stretch % EVERY == 0, above=stretch % (2 * EVERY) == 0)
        return self._current

    def note(self, images: int, width: int, seconds: float, settled: float) -> None:
        """A step of blocks of a width took so many seconds, and settled so many tokens of an image on average."""
        row = _shape(images, width) / seconds  # so that it is relative errors that count
        self._products = self._products * FORGET + np.outer(row, row)
        self._sums = self._sums * FORGET + row
        if width == self._current and self._steps % STRETCH >= SETTLING:
            total, weight = self._settled[width]
            self._settled[width] = total * FORGET + (settled - 1) * images, weight * FORGET + images
        self._steps += 1

    def _best(self, images: int, *, beside: bool, above: bool) -> int:
        """The width that settles most a second; or the one beside it."""
        costs = np.linalg.lstsq(self._products, self._sums, rcond=None)[0].clip(min=0)
        rates = [(1 + self._extra(width)) / (costs @ _shape(images, width) + 1e-9) for width in self.widths]
        at = int(np.argmax(rates)) + beside * (1 if above else -1)
        return self.widths[min(max(at, 0), len(self.widths) - 1)]

    def _extra(self, width: int) -> float:
        total, weight = self._settled[width]
        return max(0.0, total / weight)


def _shape(images: int, width: int) -> np.ndarray:
    return np.array([1.0, images, images * width])
