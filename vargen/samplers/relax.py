"""Which rule decides on a draft: the settings that every drafting method shares, and the rule that they ask for.

`lantern.py`, `gsd.py` and `cool.py` beside this have a rule each; the exact one is in `core/rules.py`. Only
`exact`, and each of the others at its neutral setting, leaves the law of plain decoding as it is.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vargen.core import rules
from vargen.core.rules import Rule
from vargen.samplers import neighbours
from vargen.samplers.contract import Task
from vargen.samplers.cool import cool
from vargen.samplers.gsd import gsd
from vargen.samplers.lantern import lantern

RuleName = Literal["exact", "lantern", "lantern++", "gsd", "cool"]


@dataclass(frozen=True)
class RuleSettings:
    """How drafts are accepted."""

    rule: RuleName = "exact"
    k: int = 1000  # lantern, lantern++: most neighbours of a draft that may count as the draft; 0 is neutral
    delta: float = 0.1  # lantern: bound of their mass, a total variation; 0 is neutral
    factor: float = 1.0  # lantern++: bound of their mass as a multiple of the draft's; 0 is neutral
    group: int = 14  # gsd: ids in a draft's group, by rank; 1 is neutral
    tolerance: float = 2.0  # cool: weight of the first draft; 1 is neutral, with decay 0
    decay: float = 0.7  # cool: weights fall by exp(-decay) from draft to draft

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"got k {self.k}, expected 0 or more")
        if not 0 <= self.delta <= 1:
            raise ValueError(f"got delta {self.delta}, expected a number from 0 to 1")
        if not 0 <= self.factor < float("inf"):
            raise ValueError(f"got factor {self.factor}, expected 0 or more")
        if self.group < 1:
            raise ValueError(f"got group {self.group}, expected 1 or more")
        if not 0 < self.tolerance <= 1e6 or not 0 <= self.decay <= 100:
            raise ValueError(
                f"got tolerance {self.tolerance} and decay {self.decay}, expected above 0 to 1e6, and 0 to 100"
            )


@dataclass(frozen=True)
class DraftedSettings(RuleSettings):
    """The settings of every method that drafts with another model."""

    drafter: str = ""  # eagle, or a model by name; empty: the one that was loaded with the model, or that ships for it


def rule(settings: RuleSettings, task: Task) -> Rule:
    """The rule that `settings` ask for. ValueError where the model's codes are unknown, or fewer than `k`."""
    name = settings.rule
    if name == "exact" or (name.startswith("lantern") and settings.k == 0):
        return lambda draft, q, p, u, offset: rules.exact(draft, q, p, u)
    if name == "cool":

        def falling(draft: Tensor, q: Tensor, p: Tensor, u: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
            return cool(draft, q, p, u, settings.tolerance * torch.exp(-settings.decay * offset))

        return falling
    if task.codebook is None:
        raise ValueError(f"rule {name} needs the codes of the image tokenizer, which this model does not tell")
    if len(task.codebook) != task.spec.vocabulary:
        have, want = len(task.codebook), task.spec.vocabulary
        raise ValueError(f"rule {name} needs a code for every id: there are {have} codes and {want} ids")
    kernels = task.kernels
    if name == "gsd":
        codebook, group = task.codebook, min(settings.group, 2 * task.spec.vocabulary)
        ranks = {"below": group // 2, "above": (group - 1) // 2}
        return lambda draft, q, p, u, offset: gsd(draft, q, p, u, codebook, kernels, **ranks)
    near = neighbours.table(task.codebook, settings.k)
    bound = {"delta": settings.delta} if name == "lantern" else {"factor": settings.factor}
    return lambda draft, q, p, u, offset: lantern(draft, q, p, u, near, kernels, **bound)
