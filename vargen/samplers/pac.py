"""Proactive drafting on a Jacobi window, as in SJD-PAC (arXiv 2603.18599), over coupled speculative Jacobi decoding.

The step that ends a window's run of kept drafts is the one whose draft was refused. So the first slots of the window
hold several candidates each, a small tree: besides the draft x_j, others drawn from its law q_j without replacement.
They are verified by recursive rejection, and the window goes on behind whichever was kept. All nodes of a depth share
one set of candidates: q_j is what it was before anything in this window was decided, whatever path leads there.

Exact: each candidate is judged by the law behind its own path, as in `tree.py`; drafts behind the committed tokens are
revised as in `sjd.py`, under the laws of the path that was kept, where it was run, or else of the window's own drafts.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core import rules
from vargen.core.noise import Purpose
from vargen.core.types import Block
from vargen.kernels import sample
from vargen.samplers.contract import Task
from vargen.samplers.jacobi import WindowSettings
from vargen.samplers.relax import RuleSettings
from vargen.samplers.sjd import CoupledJacobi
from vargen.samplers.tree import family, parents_of


@dataclass(frozen=True)
class ProactiveSettings(RuleSettings, WindowSettings):
    """Settings of `sjd-pac`."""

    coupling: ClassVar[str] = "maximal"
    # Candidates per node and level, or paths; those of rank 0 are the window's own drafts. The paper's: 3-3-3 to 4-4-4.
    # Where laws are flat, as those of pocket-llamagen, many candidates for the first slot settle more for less.
    # A window no wider than the tree is deep does without it.
    tree: str = "32"

    def __post_init__(self) -> None:
        WindowSettings.__post_init__(self)
        RuleSettings.__post_init__(self)
        parents_of(self.tree)


class Shape:
    """The nodes of a tree on a window, numbered: 0 is the last committed token, 1 to `depth` are the window's own
    drafts (rank 0 behind one another, whether the tree has them or not), and the `others` stand behind these.
    """

    def __init__(self, parents: list[int], device: torch.device) -> None:
        """Of a tree as `parents_of` gives it."""
        (below, depths), line = family(parents), [0]
        parents = [0, *parents]
        while below[line[-1]]:
            line.append(below[line[-1]][0])
        self.depth, self.candidates = max(depths), max(map(len, below))
        others = [node for node in range(1, len(parents)) if node not in line]
        number = {node: d for d, node in enumerate(line)} | {n: self.depth + 1 + i for i, n in enumerate(others)}
        children = [[0] * self.candidates for _ in range(self.depth + 1 + len(others))]
        for d in range(self.depth):
            children[d][0] = d + 1
        ranks, forks, kin = [], [], []
        for index, node in enumerate(others):
            above = number[parents[node]]
            ranks.append(below[parents[node]].index(node))
            children[above][ranks[-1]] = number[node]
            inherited = kin[above - self.depth - 1] if above > self.depth else [False] * len(others)
            forks.append(forks[above - self.depth - 1] if above > self.depth else above)
            kin.append([own or i == index for i, own in enumerate(inherited)])
        of_others = [depths[node] for node in others]
        # Where a path that is given up goes on: along rank 0, or else with the window's own drafts.
        levels = [*range(self.depth + 1), *of_others]
        follow = [kids[0] or min(d + 1, self.depth) for kids, d in zip(children, levels, strict=True)]

        def tensor(values: list) -> Tensor:
            return torch.tensor(values, device=device, dtype=torch.int64)

        self.others = len(others)
        self.children, self.follow = tensor(children), tensor(follow)  # (nodes, candidates), 0: none; (nodes,)
        self.depths, self.ranks = tensor(of_others), tensor(ranks)  # of the others, (others,)
        self.forks = tensor(forks)  # (others,): depth of the last window draft on each one's path
        self.kin = tensor(kin).bool().view(len(others), len(others))  # the others on each one's path, itself too


class ProactiveJacobi(CoupledJacobi):
    """Coupled speculative Jacobi decoding with a tree of candidates at the window's start (with rule=exact)."""

    Settings: ClassVar[type] = ProactiveSettings

    def __init__(self, settings: ProactiveSettings, task: Task) -> None:
        self._shape = shape = Shape(parents_of(settings.tree), task.device)
        super().__init__(settings, task, more=shape.depth * (shape.candidates - 1))
        self.extra = shape.others  # places in the cache
        self._grown = False  # whether the block just proposed has a tree
        self._renew()

    def _renew(self) -> None:
        task, shape = self._task, self._shape
        self._rows = torch.arange(task.batch, device=task.device)
        self._candidates = task.seeds.new_zeros(task.batch, shape.depth, shape.candidates)

    def propose(self) -> Block:
        block, shape = replace(super().propose(), moves=self._moves), self._shape
        self._moves, self._grown = None, block.tokens.shape[1] > shape.depth
        if not self._grown:
            return block
        count, device = self._task.spec.slots, self._task.device
        self._draw_candidates()
        tokens = self._candidates[:, shape.depths - 1, shape.ranks]
        slots = (self._pointers - 1 + shape.depths).clamp(max=count - 1)
        places = (count + torch.arange(shape.others, device=device)).expand_as(slots)
        bounds = torch.cat([block.slots + 1, self._pointers + shape.forks], dim=1)  # the first slot that is not seen
        kin = F.pad(shape.kin, (0, 0, block.slots.shape[1], 0)).expand(len(slots), -1, -1)
        return replace(
            block,
            tokens=torch.cat([block.tokens, tokens], dim=1),
            slots=torch.cat([block.slots, slots], dim=1),
            stop=count + shape.others,
            sees=torch.cat([torch.arange(count, device=device) < bounds[..., None], kin], dim=-1),
            places=torch.cat([block.slots, places], dim=1),
        )

    def _draw_candidates(self) -> None:
        """Fill in (B, depth, K): the window's own drafts, and those drawn beside them without replacement."""
        assert self._q is not None
        depth, more = self._shape.depth, self._shape.candidates - 1
        draws = self._uniform(Purpose.GUESS, self.widest + self._more, self.widest).unflatten(1, (depth, more))
        law = self._q[:, :depth]
        self._candidates[..., 0] = self._buffer.gather(1, self._slots(depth))
        for rank in range(1, more + 1):
            law = rules.without(law, self._candidates[..., rank - 1])
            self._candidates[..., rank] = rules.draw(law, draws[..., rank - 1])

    def accept(self, logits: Tensor) -> None:
        if not self._grown:
            return super().accept(logits)
        laws = sample.law(logits, self._task.warp, self._task.kernels)
        width, depth = logits.shape[1] - self.extra, self._shape.depth
        tokens, path, line = self._walk(laws, width)
        self._p = laws[self._rows[:, None], line]
        slots = self._slots(width)
        kept, revised = self._revise(logits, self._buffer.gather(1, slots))
        tried = torch.arange(depth, device=path.device) <= (path > 0).sum(1, keepdim=True)
        revised[:, :depth] = torch.where(tried, tokens, revised[:, :depth])
        own = path[:, -1] == depth  # the window's own drafts were kept so far: they go on behind the tree
        beyond = torch.where(own, rules.leading(kept[:, depth:]), 0)
        moved = ((path > 0).sum(1) + beyond + 1).clamp(max=width)
        target = slots[:, :depth].clamp(max=self._task.spec.slots - 1)
        self._moves = (torch.where(path > depth, self._task.spec.slots + path - depth - 1, target), target)
        return self._advance(revised, moved[:, None])

    def _walk(self, laws: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """From the laws (B, n, V) of the block: the token behind each kept node and the nodes kept (B, depth), 0 behind
        the last; and where in the block the law of each slot of the window is (B, w), on this path and where it leads.
        """
        shape, node = self._shape, torch.zeros_like(self._rows)
        line = torch.arange(width, device=node.device).repeat(len(node), 1)
        alive, tokens, path = torch.ones_like(node, dtype=torch.bool), [], []
        redraw = self._uniform(Purpose.REDRAW, width)
        assert self._q is not None
        for offset in range(shape.depth):
            children, drafts = shape.children[node], self._candidates[:, offset]
            p, q, u = laws[self._rows, line[:, offset]], self._q[:, offset], self._coins(offset)
            place = torch.full_like(node, offset)
            rank, rest = rules.among(self._rule, drafts, children > 0, q, p, u, place)
            best, alive = rank.clamp(min=0)[:, None], alive & (rank >= 0)
            tokens.append(torch.where(alive, drafts.gather(1, best)[:, 0], rules.draw(rest, redraw[:, offset])))
            node = torch.where(alive, children.gather(1, best)[:, 0], shape.follow[node])
            path.append(torch.where(alive, node, 0))
            line[:, offset + 1] = torch.where(node > shape.depth, node - shape.depth - 1 + width, offset + 1)
        return torch.stack(tokens, dim=1), torch.stack(path, dim=1), line

    def _coins(self, offset: int) -> Tensor:
        """What decides on the candidates (B, K) of a slot; on the window's own draft, what always would."""
        more = self._shape.candidates - 1
        start = self.widest + offset * more
        others = self._uniform(Purpose.ACCEPT, start + more, start)
        return torch.cat([self._uniform(Purpose.ACCEPT, offset + 1, offset), others], dim=1)
