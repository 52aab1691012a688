"""How wide blocks should be where many images run, of methods that draw the same image at any width.

A wide window settles most tokens a forward, and where one image runs, its forward costs little more than a narrow one.
Of many images it may cost several times as much, and then narrower blocks settle more tokens a second. What a step
costs is learnt as it goes, as a + b images + c images width seconds, and d images more where blocks are wider than a
token; so is how much blocks settle, of which it is known how it grows with the width.
"""

import numpy as np

from vargen.samplers.width import EXTRA, LADDER, PRIOR_EXTRA

STRETCH = 8  # steps for which a width stays, or twice the width: drafts become good as the window passes over them
TRY = 4  # steps of each width at first, to see what they cost; and of another one after so many stretches:
EVERY = 40
PRIOR = 48.0  # steps of an image that what is believed at first is worth
FORGET = 0.998  # what a step counts for when another has come


class Pace:
    """The width of the next block."""

    def __init__(self, window: int) -> None:
        self.widths = (*sorted({1, 2, *LADDER} & set(range(window))), window)
        self._products, self._sums = np.eye(4) * 1e-9, np.zeros(4)  # of a least-squares fit
        self._extra, self._weight = PRIOR_EXTRA * PRIOR, PRIOR  # tokens beyond the first, over those of `_extra_of`
        self._stretch, self._whole, self._left, self._current = -1, 0, 0, window

    def width(self, images: int) -> int:
        """At most so wide the block of so many images should be."""
        if self._left == 0:
            self._stretch += 1
            turn = self._stretch if self._stretch < len(self.widths) else self._stretch // EVERY
            tried = turn == self._stretch or self._stretch % EVERY == 0
            self._current = self.widths[turn % len(self.widths)] if tried else self._best(images)
            self._whole = self._left = TRY if tried else max(STRETCH, 2 * self._current)
        return self._current

    def note(self, images: int, width: int, seconds: float, settled: float) -> None:
        """A step of blocks of a width took so many seconds, and settled so many tokens of an image on average."""
        row = _shape(images, width) / seconds  # so that it is relative errors that count
        self._products = self._products * FORGET + np.outer(row, row)
        self._sums = self._sums * FORGET + row
        if 1 < width == self._current and TRY < self._whole >= self._left * 4 / 3:
            self._extra = self._extra * FORGET + (settled - 1) / _extra_of(width) * images
            self._weight = self._weight * FORGET + images
        self._left = max(0, self._left - 1)

    def _best(self, images: int) -> int:
        """The width that settles most a second."""
        costs = np.linalg.lstsq(self._products, self._sums, rcond=None)[0].clip(min=0)
        extra = max(0.0, self._extra / self._weight)

        def rate(width: int) -> float:
            return (1 + extra * _extra_of(width)) / float(costs @ _shape(images, width) + 1e-9)

        return max(self.widths, key=rate)


def _shape(images: int, width: int) -> np.ndarray:
    return np.array([1.0, images, images * width, images * (width > 1)])


def _extra_of(width: int) -> float:
    """As `EXTRA`, of any width."""
    return float(np.interp(width, list(EXTRA), list(EXTRA.values())))
