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
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vargen.core import Block
from vargen.noise import Purpose
from vargen.samplers import rules
from vargen.samplers.contract import Task
from vargen.samplers.relax import RuleSettings, rule
from vargen.samplers.window import Window

MOST_NODES = 256


def parents_of(text: str) -> list[int]:
    """The parent of each node 1, 2, ... (0 is the last committed token), level by level, from a shape in text.

    `4-2-1`: four candidates, each with two below it, each of these with one. `0+1+00+01`: any tree as its paths, each
    the ranks (0 to 9) of the candidates on it. ValueError where a path stands twice or its parent is not there.
    """
    if re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", text):
        parents, level = [], [0]
        for width in map(int, text.split("-")):
            parents += [node for node in level for _ in range(width)]
            if len(parents) > MOST_NODES:
                break
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
        raise ValueError(f"got tree {text!r}, expected widths as 4-2-1 or paths as 0+1+00+01")
    if len(parents) > MOST_NODES:
        raise ValueError(f"got tree {text} of more than {MOST_NODES} nodes")
    return parents


@dataclass(frozen=True)
class TreeSettings(RuleSettings):
    """Settings of `speculative-tree`."""

    tree: str = "3-2-1"  # candidates per node and level, or paths joined by +

    def __post_init__(self) -> None:
        super().__post_init__()
        parents_of(self.tree)


class TreeSpeculative(Window):
    """Speculative decoding with a tree: several candidates per slot, without replacement (with rule=exact)."""

    Settings: ClassVar[type] = TreeSettings
    exact: ClassVar[bool] = True
    drafted: ClassVar[bool] = True  # the task must bring a drafter

    def __init__(self, settings: TreeSettings, task: Task) -> None:
        parents = [0, *parents_of(settings.tree)]  # of the root: itself
        super().__init__(task, len(parents))
        assert task.drafter is not None
        self._rule = rule(settings, task)
        self.extra = len(parents) - 1  # places in the cache
        self._drafter, device = task.drafter, task.device
        self._drafter.reserve(self.extra)
        depths, kin = [0], [{0}]
        for node in range(1, len(parents)):
            depths.append(depths[parents[node]] + 1)
            kin.append(kin[parents[node]] | {node})
        self._deepest = max(depths)
        below = [[n for n in range(1, len(parents)) if parents[n] == node] for node in range(len(parents))]
        most = max(map(len, below))
        # Per level, the nodes that have children, and per rank those that have so many, with the children: known to the
        # host, so that a step reads nothing from the device to find its way.
        self._feeding = [[n for n in level if below[n]] for level in levels_of(depths)]
        self._ranks = [
            [[(n, below[n][: rank + 1]) for n in nodes if len(below[n]) > rank] for rank in range(most)]
            for nodes in self._feeding
        ]
        self._children = torch.tensor([nodes + [0] * (most - len(nodes)) for nodes in below], device=device)  # 0: none
        self._depths = torch.tensor(depths, device=device)
        self._ancestors = torch.tensor([[n in own for n in range(1, len(parents))] for own in kin], device=device)
        self._nodes = task.seeds.new_zeros(task.batch, len(parents))  # tokens, the last committed one first
        self._q = torch.zeros(task.batch, len(parents), task.spec.vocabulary, device=device)
        self._rows = torch.arange(task.batch, device=device)
        self._moves: tuple[Tensor, Tensor] | None = None

    def propose(self) -> Block:
        last = (self._pointers - 1).clamp(min=0)
        self._nodes[:, :1] = self._buffer.gather(1, last)
        draws = self._uniform(Purpose.GUESS, self.widest)
        for depth in range(self._deepest):
            feeding = self._feeding[depth]
            self._q[:, feeding] = self._laws(feeding, depth)
            for rank, families in enumerate(self._ranks[depth]):
                law = self._q[:, [node for node, _ in families]]
                for earlier in range(rank):  # without replacement
                    law = _without(law, self._nodes[:, [children[earlier] for _, children in families]])
                nodes = [children[rank] for _, children in families]
                if nodes:
                    self._nodes[:, nodes] = rules.draw(law, draws[:, nodes])
        return replace(self._block(list(range(self.widest)), min(self.settled) - 1), moves=self._moves)

    def _laws(self, nodes: list[int], depth: int) -> Tensor:
        """The drafter's laws (B, nodes, V) behind nodes of one level; at first behind the last two committed tokens."""
        if depth > 0:
            return self._drafter.laws(self._block(nodes, max(min(self.settled) - 2, 0)))
        slots = (self._pointers - torch.arange(2, 0, -1, device=self._task.device)).clamp(min=0)
        stop = max(self.settled)
        block = Block(self._buffer.gather(1, slots), slots, max(min(self.settled) - 2, 0), stop, moves=self._moves)
        return self._drafter.laws(block)[:, -1:]

    def _block(self, nodes: list[int], first: int) -> Block:
        """A block of nodes, each of which sees the committed tokens and its ancestors; node 0 has its own slot."""
        count, batch = self._task.spec.slots, self._task.batch
        index = torch.tensor(nodes, device=self._task.device)
        slots = (self._pointers - 1 + self._depths[index]).clamp(max=count - 1)
        places = torch.where(index == 0, slots, count - 1 + index)
        committed = torch.arange(count, device=index.device) < self._pointers  # (B, slots)
        sees = torch.cat(
            [committed[:, None].expand(-1, len(nodes), -1), self._ancestors[index].expand(batch, -1, -1)], dim=-1
        )
        return Block(self._nodes[:, index], slots, first, count + self.extra, sees, places)

    def accept(self, logits: Tensor) -> None:
        p, redraw = self._task.warp(logits), self._uniform(Purpose.REDRAW, self.widest)
        if logits.shape[1] == 1 and self._steps == 0:  # the first token: nothing was drafted
            self._buffer.scatter_(1, self._pointers, rules.draw(p[:, 0], redraw[:, 0])[:, None])
            self._commit(torch.ones_like(self._pointers))
            return
        count, coins = self._task.spec.slots, self._uniform(Purpose.ACCEPT, self.widest)
        node, alive = torch.zeros_like(self._rows), torch.ones_like(self._rows, dtype=torch.bool)
        tokens, path, moved = [], [], torch.zeros_like(self._rows)
        for depth in range(self._deepest + 1):
            child, law = self._try_children(node, p[self._rows, node], coins)
            kept = alive & (child > 0)
            tokens.append(torch.where(kept, self._nodes[self._rows, child], rules.draw(law, redraw[:, depth])))
            path.append(torch.where(kept, child, 0))
            moved, alive = moved + alive, kept
            node = torch.where(kept, child, node)
        target = (self._pointers + torch.arange(len(path), device=node.device)).clamp(max=count - 1)
        source = torch.stack(path, dim=1)
        self._moves = (torch.where(source > 0, count - 1 + source, target), target)
        self._buffer.scatter_(1, self._slots(len(tokens)), torch.stack(tokens, dim=1))
        self._commit(moved[:, None])

    def _try_children(self, node: Tensor, p: Tensor, coins: Tensor) -> tuple[Tensor, Tensor]:
        """The child (B,) kept below `node` (B,), 0 if none is, and the law (B, V) that is left for the token."""
        q, chosen = self._q[self._rows, node], torch.zeros_like(node)
        for rank in range(self._children.shape[1]):
            child = self._children[node, rank]
            token, total = self._nodes[self._rows, child], q.sum(-1)
            tried = (child > 0) & (chosen == 0) & (total > 0)  # a candidate beyond the law's support was never drawn
            law = q / total.clamp(min=1e-30)[:, None]
            kept, rest = self._rule(token, law, p, coins[self._rows, child], self._depths[child] - 1)
            left = rest.sum(-1, keepdim=True)
            refused = (tried & ~kept)[:, None]
            p = torch.where(refused & (left > 0), rest / left.clamp(min=1e-30), p)
            q = torch.where(refused, _without(q, token), q)
            chosen = torch.where(tried & kept, child, chosen)
        return chosen, p


def levels_of(depths: list[int]) -> list[list[int]]:
    """The nodes of each depth."""
    return [[n for n, own in enumerate(depths) if own == d] for d in range(max(depths) + 1)]


def _without(law: Tensor, token: Tensor) -> Tensor:
    """`law` (..., V), not normalised any more, without `token` (...)."""
    return law.scatter(-1, token[..., None], 0.0)
