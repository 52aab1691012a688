"""The window that every Jacobi method shares: drafts behind a committed prefix, revised by one forward per step.

Each row b of a batch has its own commit pointer n_b. A block of width w feeds slots n_b - 1 .. n_b + w - 2 and so
returns the laws of slots n_b .. n_b + w - 1, where the drafts stand. A method only says how drafts are revised
(`_revise`); the revision is committed up to and including the first draft that changed, and the rest become the next
drafts.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vargen.core import noise, rules
from vargen.core.noise import Purpose
from vargen.core.types import Block
from vargen.kernels import sample
from vargen.samplers.contract import Task
from vargen.samplers.width import WidthPolicy
from vargen.samplers.window import Window, stacked

Guess = Literal["uniform", "left", "above", "preview", "sample-left", "sample-above", "sample-preview"]


@dataclass(frozen=True)
class WindowSettings:
    """The settings of every Jacobi method."""

    window: int | Literal["auto"] = "auto"  # drafts per forward; auto: measured, plain decoding included
    # First draft of a slot: uniform, or copied or sampled from the slot to the left or above, or from the preview's.
    guess: Guess = "uniform"

    def __post_init__(self) -> None:
        if self.window != "auto" and self.window < 1:
            raise ValueError(f"got window {self.window}, expected auto or a number of at least 1")


class JacobiWindow(Window):
    """Blocks and first guesses. Subclasses revise; `uses_law` asks for the laws q of the drafts."""

    exact: ClassVar[bool] = True
    uses_law = True

    def __init__(self, settings: WindowSettings, task: Task, more: int = 0) -> None:
        self._settings = settings
        self._policy = WidthPolicy(settings.window, task.costs, task.spec.slots)
        super().__init__(task, max(self._policy.widths), more)
        self._known = self._pointers  # drafts that stand in each row's window, (B, 1)
        self._moved = self._pointers  # tokens committed by the last step, (B, 1)
        self._lowest, self._unseen = 0, list[int]()  # where the slowest row was last seen, and widths of steps since
        self._p: Tensor | None = None  # laws of the last step, (B, w, V)
        self._q: Tensor | None = None  # laws that the drafts of this step were drawn from, (B, w, V)
        # Where pointers are read a step late, a slot may be as far behind as two windows.
        how = {"size": task.spec.vocabulary, "reach": 2 * self.widest, "ahead": max(32, self.widest)}
        self._gumbel = noise.Table(noise.gumbel, task.seeds, Purpose.TOKEN, **how)
        self._ids, flat = task.uniform_guess()
        self._flat = flat[None, None]  # (1, 1, V)
        sampled = settings.guess.startswith("sample-")
        shape = (*self._buffer.shape, task.spec.vocabulary)
        self._laws = task.seeds.new_zeros(shape, dtype=torch.float32) if sampled else None

    @classmethod
    def check(cls, settings: WindowSettings, spec: Any) -> None:
        if settings.guess.endswith("preview") and not spec.previews:
            raise ValueError(f"got guess {settings.guess} for a model that draws no preview")

    @classmethod
    def block_width(cls, settings: WindowSettings) -> int | None:
        return None if settings.window == "auto" else settings.window

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self._known, self._moved = self._known[rows], self._moved[rows]
        self._p = None if self._p is None else self._p[rows]
        self._laws = None if self._laws is None else self._laws[rows]
        self._gumbel.keep(rows)
        self._watch_anew()

    def join(self, other: Any) -> None:
        self._p = stacked(self._p, other._p, (len(self._known), len(other._known)))  # no draft stands yet in new rows
        super().join(other)
        self._known, self._moved = torch.cat([self._known, other._known]), torch.cat([self._moved, other._moved])
        self._laws = None if self._laws is None else torch.cat([self._laws, other._laws])
        self._gumbel.join(other._gumbel)
        self._watch_anew()

    def _watch_anew(self) -> None:
        """The image furthest behind is another one now."""
        self._lowest, self._unseen = min(self.settled), []

    def narrow(self, width: int) -> None:
        """From now on, blocks are at most so wide. Where the method is not `steady`, it draws another image."""
        self._policy.most = width

    @abstractmethod
    def _revise(self, logits: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
        """(kept, token), both (B, w), from the guided `logits` (B, w, V) of this step and the `drafts` (B, w).

        With `uses_law`, `_laws_of_step` has the laws.
        """

    def _laws_of_step(self) -> tuple[Tensor, Tensor]:
        """p, the new laws, and q, those that the drafts were drawn from, both (B, w, V)."""
        assert self._p is not None
        assert self._q is not None
        return self._p, self._q

    def propose(self) -> Block:
        count = self._task.spec.slots
        lowest = min(self.settled)
        width = self._policy.width(count - lowest)
        if width > 1:
            self._guess(width)
        slots = self._slots(width) - 1
        # Past the end of the image, and in finished rows, slots are clamped: what is written there is never seen.
        stop = min(count, max(n for n in self.settled if n < count) + self._slack + width - 1)
        return Block(self._buffer.gather(1, slots), slots.clamp(max=stop - 1), lowest - 1, stop)

    def accept(self, logits: Tensor) -> None:
        width, task = logits.shape[1], self._task
        needed = self._laws is not None or (self.uses_law and width > 1)
        self._p = sample.law(logits, task.warp, task.kernels) if needed else None
        if width == 1:  # nothing to verify: draw as plain decoding does
            revised, moved = self._plain_draw(logits), torch.ones_like(self._pointers)
        else:
            kept, revised = self._revise(logits, self._buffer.gather(1, self._slots(width)))
            moved = (rules.leading(kept)[:, None] + 1).clamp_(max=width)
        self._advance(revised, moved)

    def _plain_draw(self, logits: Tensor) -> Tensor:
        """argmax(log p + g) (B, w), g fixed per slot: the tokens that plain decoding would draw under these laws."""
        width, task = logits.shape[1], self._task
        stops = [n + self._slack + width for n in self.settled]
        return sample.draw(logits, task.warp, self._gumbel, self._slots(width), stops, task.kernels)

    def _advance(self, revised: Tensor, moved: Tensor) -> None:
        """Take the `revised` window (B, w), move the pointers, and tell the policy what the step settled."""
        width, slots = revised.shape[1], self._slots(revised.shape[1])
        self._buffer.scatter_(1, slots, revised)
        if self._laws is not None and self._p is not None:
            self._laws.scatter_(1, slots[..., None].expand_as(self._p), self._p)
        self._known = width - moved
        self._moved = moved
        self._unseen.append(width)
        for lowest in self._commit(moved, most=width):
            self._policy.observe(self._unseen.pop(0), lowest - self._lowest)
            self._lowest = lowest

    def _guess(self, width: int) -> None:
        """Fill the window up to `width` with first guesses, and set the laws that its drafts were drawn from."""
        slots, fresh = self._slots(width), self._offsets[:width] >= self._known  # (B, w)
        tokens, law = self._newlines(slots, *self._first_drafts(slots))
        self._buffer.scatter_(1, slots, torch.where(fresh, tokens, self._buffer.gather(1, slots)))
        if self.uses_law:
            self._q = self._carry(law, fresh)

    def _first_drafts(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, w), and their laws (B or 1, w or 1, V), for new slots; uniform where the source is outside."""
        width = slots.shape[1]
        u = self._uniform(Purpose.GUESS, width)
        tokens, law = self._ids[(u * len(self._ids)).long()], self._flat
        if self._settings.guess == "uniform":
            return tokens, law
        inside, source = self._source(slots)
        if self._laws is None:
            copied = self._buffer.gather(1, source)
            peak = law.new_zeros(*slots.shape, law.shape[-1]).scatter_(2, copied[..., None], 1.0)
        else:
            peak = self._laws.gather(1, source[..., None].expand(-1, -1, law.shape[-1]))
            copied = rules.draw(peak, u)
        return torch.where(inside, copied, tokens), torch.where(inside[..., None], peak, law)

    def _source(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """(inside, source), both (B, w): the slots that first drafts of `slots` come from, where there are any.

        To the left or above it is the nearest slot of the same grid that already holds a token or a draft.
        """
        spec, guess, edge = self._task.spec, self._settings.guess, self._pointers + self._known
        if guess.endswith("preview"):
            source = spec.previewed(slots)
            return (source >= 0) & (source < edge), source.clamp(min=0)
        first, columns = spec.around(slots)
        step = 1 if guess.endswith("left") else columns
        source = slots - step * ((slots - edge) // step + 1)
        if guess.endswith("left"):  # a newline is copied to nowhere
            source = source - spec.ends(source.clamp(min=0)).long()
        return source >= first, source.clamp(min=0)

    def _newlines(self, slots: Tensor, tokens: Tensor, law: Tensor) -> tuple[Tensor, Tensor]:
        """First drafts (B, w) and their laws, certain where a row ends."""
        spec = self._task.spec
        if spec.newline is None:
            return tokens, law
        ends, certain = spec.ends(slots), torch.zeros_like(self._flat)
        certain[..., spec.newline] = 1.0
        return torch.where(ends, spec.newline, tokens), torch.where(ends[..., None], certain, law)

    def _carry(self, law: Tensor, fresh: Tensor) -> Tensor:
        """Laws of this step's drafts (B, w, V): those of the last step, moved along, or `law` for `fresh` slots."""
        batch, width = fresh.shape
        if self._p is None:
            return law.expand(batch, width, -1)
        last = self._p.shape[1]
        rows = (self._offsets[:width] + self._moved).clamp_(max=last - 1)
        rows = rows + torch.arange(batch, device=rows.device)[:, None] * last
        carried = self._p.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, width))
        return torch.where(fresh[..., None], law, carried)
