"""Speculative decoding with a tree that follows the drafter's confidence, as EAGLE-2 grows it (arXiv 2406.16858).

A node's confidence is the product of the drafter's probabilities along its path. Level by level the `branches` most
confident nodes get their `branches` likeliest tokens as children; of all that stand there in the end, the `nodes` most
confident are verified. Nothing is drawn: the tree is a function of the committed tokens, so that each candidate counts
as certain of itself and is kept with its probability under the large model. Exact.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vargen.core.types import Block
from vargen.samplers.contract import Task
from vargen.samplers.relax import DraftedSettings
from vargen.samplers.tree import MOST_NODES, Tree

MOST_CANDIDATES = 1 << 14


@dataclass(frozen=True)
class DynamicSettings(DraftedSettings):
    """Settings of `speculative-dynamic`; the defaults are EAGLE-2's."""

    depth: int = 6  # levels, each a forward of the drafter
    branches: int = 10  # nodes that are carried on at a level, and children of each
    nodes: int = 59  # drafts that are verified

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depth", "branches", "nodes"):
            if not 1 <= getattr(self, name) <= MOST_NODES:
                raise ValueError(f"got {name} {getattr(self, name)}, expected 1 to {MOST_NODES}")
        if self.depth * min(self.branches, self.nodes) ** 2 > MOST_CANDIDATES:
            raise ValueError(
                f"got depth {self.depth} and branches {self.branches}, more than {MOST_CANDIDATES} candidates in a tree"
            )


class DynamicTree(Tree):
    """Speculative decoding with EAGLE-2's tree: the drafter's likeliest paths are verified (with rule=exact)."""

    Settings: ClassVar[type] = DynamicSettings

    @classmethod
    def block_width(cls, settings: DynamicSettings) -> int | None:
        return 1 + settings.nodes

    def __init__(self, settings: DynamicSettings, task: Task) -> None:
        vocabulary = task.spec.vocabulary
        self._branches = min(settings.branches, settings.nodes, vocabulary)  # more of a node's can never be chosen
        pool = self._branches + (settings.depth - 1) * self._branches**2  # all candidates
        nodes, scratch = min(settings.nodes, pool), (settings.depth - 1) * self._branches
        super().__init__(settings, task, nodes=nodes, deepest=settings.depth, scratch=scratch)
        self._scratch = scratch  # places where the drafter runs what it carries on, behind those of the large model

    def _grow(self) -> None:
        width, batch = self._branches, self._task.batch
        law = self._first_laws()  # (B, 1, V)
        value = torch.zeros_like(law[..., 0])  # of the nodes carried on: log confidence, (B, c)
        carried = torch.zeros_like(self._nodes[:, :1])  # their indices in the pool, 0 being the root
        sees = torch.zeros(batch, 1, self._scratch, dtype=torch.bool, device=law.device)
        places = self._pointers - 1
        pool: list[tuple[Tensor, Tensor, Tensor]] = []  # by level: tokens, log confidence, parents in the pool, (B, n)
        start, begin = 1, self._task.spec.slots + self.extra
        for level in range(self._deepest):
            likely = law.topk(width, dim=-1)
            values = (value[..., None] + likely.values.log()).flatten(1)
            tokens, above = likely.indices.flatten(1), carried.repeat_interleave(width, dim=1)
            pool.append((tokens, values, above))
            if level + 1 == self._deepest:
                break
            best = values.topk(width, dim=1)
            parent = best.indices // width
            value, carried, token = best.values, start + best.indices, tokens.gather(1, best.indices)
            parents = places.gather(1, parent)
            own = torch.arange(width, device=law.device) + level * width
            sees = sees.gather(1, parent[..., None].expand(-1, -1, self._scratch))
            sees = sees | (torch.arange(self._scratch, device=law.device) == own[:, None])
            places, start = (begin + own).expand(batch, -1), start + values.shape[1]
            law = self._drafter.laws(self._carried_block(token, level + 1, places, sees, parents))
        self._choose(*(torch.cat(parts, dim=1) for parts in zip(*pool, strict=True)))

    def _carried_block(self, tokens: Tensor, depth: int, places: Tensor, sees: Tensor, parents: Tensor) -> Block:
        """The block of one level for the drafter; the places of the verified nodes are between slots and scratch."""
        nothing = torch.zeros(*sees.shape[:2], self.extra, dtype=torch.bool, device=sees.device)
        depths = torch.full_like(tokens, depth)
        return replace(self._block(tokens, depths, places, torch.cat([nothing, sees], dim=-1)), parents=parents)

    def _choose(self, tokens: Tensor, values: Tensor, above: Tensor) -> None:
        """Take the most confident nodes of the pool, (B, n) each, in the pool's order: parents before children."""
        batch, count = self._task.batch, self.extra
        # A child is never more confident than its parent; where they are equal, a stable sort leaves the parent first.
        chosen = values.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
        index = torch.zeros(batch, values.shape[1] + 1, dtype=torch.int64, device=values.device)
        index.scatter_(1, chosen + 1, torch.arange(1, count + 1, device=index.device).expand(batch, -1))
        parents = index.gather(1, above.gather(1, chosen))  # (B, count), 0: the root
        self._nodes = torch.cat([self._nodes[:, :1], tokens.gather(1, chosen)], dim=1)
        everyone = torch.arange(1, count + 1, device=index.device)
        own = torch.nn.functional.one_hot(parents, count + 1)[..., 1:].bool()  # (B, count, count): its parent
        sees, up = torch.eye(count, dtype=torch.bool, device=index.device).expand(batch, -1, -1), parents
        depths = torch.ones_like(parents)
        for _ in range(self._deepest - 1):
            sees = sees | own
            depths = depths + (up > 0)
            padded = torch.cat([torch.zeros_like(parents[:, :1]), parents], dim=1)
            up = padded.gather(1, up)
            own = torch.nn.functional.one_hot(up, count + 1)[..., 1:].bool()
        self._depths = torch.cat([torch.zeros_like(depths[:, :1]), depths], dim=1)
        self._sees = torch.cat([torch.zeros_like(sees[:, :1]), sees], dim=1)
        rank = chosen % self._branches  # the pool has the children of each node in a row, likeliest first
        children = torch.zeros(batch, (count + 1) * self._branches, dtype=torch.int64, device=index.device)
        children.scatter_(1, parents * self._branches + rank, everyone.expand(batch, -1))
        self._children = children.unflatten(1, (count + 1, self._branches))
