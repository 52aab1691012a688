"""How wide a Jacobi window should be: what a width costs, what it settles, and which pays.

A wider window settles more tokens per forward but makes the forward dearer, the more so where a small model meets few
cores. `auto` therefore weighs measured seconds per step against an estimate of the tokens settled, and counts what the
experiment has lost against plain decoding: once that reaches `LOSS_ALLOWED` of a whole image, it decodes one by one.
Choices depend on times and on how many tokens were committed, never on drafts still standing, so the law stays exact;
which of the equally likely images appears does depend on them.
"""

from typing import Literal

LADDER = (1, 4, 8, 16, 32, 64)
# Tokens beyond the first that a step settles, relative to width 16, roughly: pocket-llamagen with sjd-coupled measures
# 0.38, 0.66, 1, 1.21 and 1.30 from width 4 to 64. Only a starting point: what is observed corrects its scale.
EXTRA = {1: 0.0, 4: 0.45, 8: 0.7, 16: 1.0, 32: 1.2, 64: 1.3}
PRIOR_EXTRA, PRIOR_STEPS = 1.5, 6.0  # before anything is observed, and how many steps that belief is worth
LOSS_ALLOWED = 0.03
REVIEW_EVERY = 4  # steps between changes of width


class WidthPolicy:
    """The width of each block. `window` fixed: always that, narrower where an image ends; auto: by `costs`."""

    def __init__(self, window: int | Literal["auto"], costs: dict[int, float] | None, slots: int) -> None:
        self.auto = window == "auto" and bool(costs)
        self._costs = costs or {}  # of the widths that are worth a try; 1 among them
        self._slots = slots
        if window == "auto":
            # Without measurements, a width that suits most.
            self.widths = tuple(sorted(self._costs)) if self.auto else (4, 8, 16)
        else:  # a fixed window never narrows to 1: a step of width 1 draws without looking at the draft
            window = min(window, slots)
            self.widths = (*(w for w in LADDER if 1 < w < window), window)
        self._extra, self._weight = PRIOR_EXTRA * PRIOR_STEPS, PRIOR_STEPS
        self._loss, self._steps = 0.0, 0
        self.most: int | None = None  # at most so wide, where somebody says so
        self._current = self._best(self.widths) if self.auto else self.widths[-1]

    def width(self, remaining: int) -> int:
        """Width of the next block when the row furthest behind has `remaining` slots to fill."""
        current = self._current if self.most is None else min(self._current, self.most)
        if current == 1 or (current == self.most and current < remaining):
            return current
        return next(w for w in self.widths if w >= max(2, min(remaining, current)))

    def observe(self, width: int, committed: int) -> None:
        """Note that a step of `width` took the row furthest behind so many tokens on: it is what a batch waits for."""
        if not self.auto or width == 1:
            return
        self._extra = self._extra * 0.95 + (committed - 1) / EXTRA[width]
        self._weight = self._weight * 0.95 + 1
        self._loss += self._costs[width] / self._costs[1] - committed
        self._steps += 1
        if self._loss > LOSS_ALLOWED * self._slots:
            self._current = 1
        elif self._steps % REVIEW_EVERY == 0:
            self._current = self._best(self.widths[1:])  # a poor stretch alone does not end it: the loss does

    def _best(self, widths: tuple[int, ...]) -> int:
        extra = self._extra / self._weight
        return max(widths, key=lambda w: (1 + extra * EXTRA[w]) / self._costs[w])
