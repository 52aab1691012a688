"""Speculative decoding with a tree of drafts: several candidates per slot, verified in one forward (SpecTr, arXiv
2310.15141; SpecInfer, 2305.09781; recursive rejection, 2402.14160).

The candidates below a node are drawn from the drafter's law without replacement. They are tried one after another:
each is kept with probability min(1, p / q); where it is not, p becomes max(p - q, 0) and q loses it, both normalised.
Where none is kept, the token comes from the p that is left. So the token is ~ p whatever the drafter: exact. Another
`rule` judges each candidate in the place of this one, and leaves what it leaves: approximate (`relax.py`).

All nodes share the slots of their depths, so that each is cached at a place behind the image and sees the committed
tokens and its own ancestors; the path that was accepted is then moved to its slots.
"""

import re
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vargen.core import rules
from vargen.core.noise import Purpose
from vargen.core.types import Block
from vargen.kernels import sample
from vargen.samplers.contract import Task
from vargen.samplers.relax import DraftedSettings, RuleSettings, rule
from vargen.samplers.window import Window

MOST_NODES = 256
SHAPES = {  # by the names of their authors: EAGLE's (arXiv 2401.15077), and the one of LANTERN++ (2502.06352)
    "mc_sim_7b_63": "0+1+2+3+00+01+02+10+11+20+21+30+000+001+002+010+011+020+021+100+0000+0001+0002+00000+00001",
    "naive_extend_57": (
        "0+1+2+3+4+00+01+02+03+10+11+12+20+21+22+30+31+40+000+001+002+003+010+011+012+020+021+022+030+031+100+101+110"
        "+200+0000+0001+0002+0003+0010+0011+0012+0020+0021+0030+0100+0101+0110+0200+00000+00001+00002+00010+00011+00100"
        "+00101+00110+00200"
    ),
}


def parents_of(text: str) -> list[int]:
    """The parent of each node 1, 2, ... (0 is the last committed token), level by level, from a shape in text.

    `4-2-1`: four candidates, each with two below it, each of these with one. `0+1+00+01`: any tree as its paths, each
    the ranks (0 to 9) of the candidates on it. A name in `SHAPES` stands for such paths. ValueError where a path stands
    twice or its parent is not there.
    """
    text = SHAPES.get(text, text)
    if re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", text):
        parents, level = [], [0]
        for width in map(int, text.split("-")):
            if len(parents) + len(level) * width > MOST_NODES:
                raise ValueError(f"got tree {text} of more than {MOST_NODES} nodes")
            parents += [node for node in level for _ in range(width)]
            level = list(range(len(parents) - len(level) * width + 1, len(parents) + 1))
    elif re.fullmatch(r"\d+(\+\d+)*", text):
        paths = sorted(text.split("+"), key=lambda path: (len(path), path))
        if len(set(paths)) < len(paths):
            raise ValueError(f"got tree {text}, in which a path stands twice")
        places = {"": 0} | {path: index + 1 for index, path in enumerate(paths)}
        for path in paths:
            before = path[:-1] + str(int(path[-1]) - 1) if path[-1] != "0" else path[:-1]
            if path[:-1] not in places or before not in places:
                raise ValueError(f"got tree {text}, in which {path} lacks its parent or the candidate before it")
        parents = [places[path[:-1]] for path in paths]
    else:
        raise ValueError(f"got tree {text!r}, expected widths as 4-2-1, paths as 0+1+00+01, or {' or '.join(SHAPES)}")
    if len(parents) > MOST_NODES:
        raise ValueError(f"got tree {text} of more than {MOST_NODES} nodes")
    return parents


def family(parents: list[int]) -> tuple[list[list[int]], list[int]]:
    """The children of each node by rank, and the depth of each, from `parents_of`; node 0 is the root."""
    below, depths = [[] for _ in range(len(parents) + 1)], [0]
    for node, parent in enumerate(parents, start=1):
        below[parent].append(node)
        depths.append(depths[parent] + 1)
    return below, depths


class Tree(Window):
    """A tree of at most `nodes` drafts behind the last committed token, node 0. Subclasses grow it.

    `_grow` fills in, for rows and nodes, a node's token, its depth, which nodes it sees and its children by rank, 0
    where there is none; and `_q`, the law of the children of each node, or None where they were chosen and not drawn.
    """

    exact: ClassVar[bool] = True
    partner: ClassVar[str | None] = "drafter"  # the setting that names the other model

    def __init__(self, settings: RuleSettings, task: Task, *, nodes: int, deepest: int, scratch: int = 0) -> None:
        super().__init__(task, nodes + 1)
        assert task.drafter is not None
        self._rule, self._drafter = rule(settings, task), task.drafter
        self.extra, self._deepest = nodes, deepest  # places in the cache; levels
        self._drafter.reserve(nodes + scratch)
        self._begun = False
        self._renew()

    def _renew(self) -> None:
        batch, nodes, device = self._task.batch, self.extra, self._task.device
        self._nodes = self._task.seeds.new_zeros(batch, nodes + 1)
        self._depths = torch.zeros_like(self._nodes)
        self._sees = torch.zeros(batch, nodes + 1, nodes, dtype=torch.bool, device=device)  # itself too
        self._children = self._nodes[..., None]
        self._q: Tensor | None = None  # (B, nodes + 1, V)
        self._rows = torch.arange(batch, device=device)

    @abstractmethod
    def _grow(self) -> None: ...

    def propose(self) -> Block:
        last = (self._pointers - 1).clamp(min=0)
        self._nodes[:, :1] = self._buffer.gather(1, last)
        self._grow()
        places = self._task.spec.slots - 1 + torch.arange(self.widest, device=self._task.device)
        block = self._block(self._nodes, self._depths, places.expand_as(self._nodes), self._sees)
        return replace(block, moves=self._moves)

    def _first_laws(self) -> Tensor:
        """The drafter's laws (B, 1, V) behind the last committed token; it is fed all that the last step may have."""
        slots = (self._pointers - torch.arange(self._deepest + 1, 0, -1, device=self._task.device)).clamp(min=0)
        first = max(min(self.settled) - self._deepest - 1, 0)
        block = Block(self._buffer.gather(1, slots), slots, first, max(self.settled), moves=self._moves)
        return self._drafter.laws(block)[:, -1:]

    def _block(self, tokens: Tensor, depths: Tensor, places: Tensor, sees: Tensor) -> Block:
        """A block of nodes (B, n), each of which sees the committed tokens and its own; node 0 has its own slot."""
        count = self._task.spec.slots
        slots = (self._pointers - 1 + depths).clamp(max=count - 1)
        places = torch.where(depths == 0, slots, places)
        committed = torch.arange(count, device=slots.device) < self._pointers  # (B, slots)
        sees = torch.cat([committed[:, None].expand(-1, sees.shape[1], -1), sees], dim=-1)
        return Block(tokens, slots, min(self.settled) - 1, sees.shape[-1], sees, places)

    def accept(self, logits: Tensor) -> None:
        p, redraw = sample.law(logits, self._task.warp, self._task.kernels), self._uniform(Purpose.REDRAW, self.widest)
        if not self._begun:  # the first token: nothing was drafted
            self._begun = True
            self._buffer.scatter_(1, self._pointers, rules.draw(p[:, 0], redraw[:, 0])[:, None])
            self._commit(torch.ones_like(self._pointers))
            return
        count, coins = self._task.spec.slots, self._uniform(Purpose.ACCEPT, self.widest)
        node, alive = torch.zeros_like(self._rows), torch.ones_like(self._rows, dtype=torch.bool)
        tokens, path = [], []
        for depth in range(self._deepest + 1):
            children = self._children[self._rows, node]  # (B, K)
            q = None if self._q is None else self._q[self._rows, node]
            drafts, u = self._nodes.gather(1, children), coins.gather(1, children)
            offset = torch.full_like(node, depth)
            rank, rest = rules.among(self._rule, drafts, children > 0, q, p[self._rows, node], u, offset)
            child = children.gather(1, rank.clamp(min=0)[:, None]).squeeze(1)
            alive = alive & (rank >= 0)
            tokens.append(torch.where(alive, self._nodes[self._rows, child], rules.draw(rest, redraw[:, depth])))
            path.append(torch.where(alive, child, 0))
            node = torch.where(alive, child, node)
        target = (self._pointers + torch.arange(len(path), device=node.device)).clamp(max=count - 1)
        source = torch.stack(path, dim=1)
        self._moves = (torch.where(source > 0, count - 1 + source, target), target)
        self._buffer.scatter_(1, self._slots(len(tokens)), torch.stack(tokens, dim=1))
        kept = (source > 0).sum(1, keepdim=True)
        self._tally(self._depths[:, 1:], kept)
        self._commit(kept + 1)


@dataclass(frozen=True)
class TreeSettings(DraftedSettings):
    """Settings of `speculative-tree`."""

    tree: str = "3-2-1"  # candidates per node and level, or paths joined by +, or a published shape by name

    def __post_init__(self) -> None:
        super().__post_init__()
        parents_of(self.tree)


class TreeSpeculative(Tree):
    """Speculative decoding with a tree: several candidates per slot, without replacement (with rule=exact)."""

    Settings: ClassVar[type] = TreeSettings

    @classmethod
    def block_width(cls, settings: TreeSettings) -> int | None:
        return 1 + len(parents_of(settings.tree))

    def __init__(self, settings: TreeSettings, task: Task) -> None:
        parents = [0, *parents_of(settings.tree)]  # of the root: itself
        below, depths = family(parents[1:])
        kin = [{0}]
        for node in range(1, len(parents)):
            kin.append(kin[parents[node]] | {node})
        most = max(map(len, below))
        # Per level, the nodes that have children, and per rank those that have so many, with the children: known to the
        # host, so that a step reads nothing from the device to find its way.
        levels = [[n for n, own in enumerate(depths) if own == depth and below[n]] for depth in range(max(depths))]
        self._feeding = [torch.tensor(nodes, device=task.device) for nodes in levels]
        self._ranks = [
            [[(n, below[n][: rank + 1]) for n in nodes if len(below[n]) > rank] for rank in range(most)]
            for nodes in levels
        ]

        children = [nodes + [0] * (most - len(nodes)) for nodes in below]
        sees = [[n in own for n in range(1, len(parents))] for own in kin]
        self._shape = [torch.tensor(part, device=task.device) for part in (parents, depths, children, sees)]
        super().__init__(settings, task, nodes=len(parents) - 1, deepest=max(depths))

    def _renew(self) -> None:
        super()._renew()
        batch = self._task.batch
        shape = (part.expand(batch, *part.shape) for part in self._shape)
        self._parents, self._depths, self._children, self._sees = shape
        rows = (batch, len(self._shape[0]), self._task.spec.vocabulary)
        self._q = self._task.seeds.new_zeros(rows, dtype=torch.float32)

    def _grow(self) -> None:
        assert self._q is not None
        draws = self._uniform(Purpose.GUESS, self.widest)
        for depth, feeding in enumerate(self._feeding):
            self._q[:, feeding] = self._laws(feeding) if depth else self._first_laws()
            for rank, families in enumerate(self._ranks[depth]):
                law = self._q[:, [node for node, _ in families]]
                for earlier in range(rank):  # without replacement
                    law = rules.without(law, self._nodes[:, [children[earlier] for _, children in families]])
                nodes = [children[rank] for _, children in families]
                if nodes:
                    self._nodes[:, nodes] = rules.draw(law, draws[:, nodes])

    def _laws(self, nodes: Tensor) -> Tensor:
        """The drafter's laws (B, n, V) behind `nodes` (n,) of one level, none of them node 0."""
        start = self._task.spec.slots - 1
        places, parents = ((start + x).expand(len(self._rows), -1) for x in (nodes, self._parents[0, nodes]))
        block = self._block(self._nodes[:, nodes], self._depths[:, nodes], places, self._sees[:, nodes])
        root = self._parents[0, nodes] == 0
        return self._drafter.laws(replace(block, parents=torch.where(root, self._pointers - 1, parents)))
