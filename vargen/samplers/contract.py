"""What a sampler is: a few methods around its own state. `engine/loops.py` owns the loops and calls the model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from vargen.core import noise
from vargen.core.dispatch import Kernels
from vargen.core.noise import PathNoise, Purpose
from vargen.core.specs import ContinuousSpec, Kind, RasterSpec, ScaleSpec
from vargen.core.types import Block, Group
from vargen.core.warp import MOST, Warp


class Drafter(Protocol):
    """What drafts for a model that verifies; it keeps its own cache, written by slot."""

    forwards: int
    kernels: Kernels

    def reserve(self, extra: int) -> None:
        """Begin, with so many places in the cache behind the image's slots."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""
        ...

    def join(self, other: Any) -> None:
        """Take the images of another one as well, behind its own."""
        ...

    def laws(self, block: Block) -> Tensor:
        """Laws (B, n, V) of the slots behind a block of tokens, which enters the drafter's cache.

        A step's first block brings every token that the last step may have committed: the drafter's cache may hold
        other tokens there. Its `moves` say where the large model ran what was kept of a tree.
        """
        ...


@dataclass(frozen=True)
class Task:
    """What a sampler is asked to fill: one image per seed."""

    spec: RasterSpec
    seeds: Tensor  # (B,) int64, on the model's device
    warp: Warp
    costs: dict[int, float] | None = None  # measured seconds per step by width of block, where a sampler wants them
    drafter: "Drafter | None" = None  # where the method drafts with another model
    codebook: Tensor | None = None  # (V, D), the code of each id as the image tokenizer uses it, where it is known
    kernels: Kernels = field(default_factory=Kernels)
    late: bool = False  # whether commit pointers may be read a step late, so that a replayed forward need not wait

    @property
    def batch(self) -> int:
        return len(self.seeds)

    @property
    def device(self) -> torch.device:
        return self.seeds.device

    def kept(self, rows: Tensor) -> "Task":
        """The task of the images `rows` (k,) alone."""
        return replace(self, seeds=self.seeds[rows])

    def joined(self, other: "Task") -> "Task":
        """The task of another's images as well, behind its own."""
        return replace(self, seeds=torch.cat([self.seeds, other.seeds]))

    def uniform_guess(self) -> tuple[Tensor, Tensor]:
        """The ids (n,) that a draft from nowhere may be, and its law (V,)."""
        allowed = self.warp.allowed
        every = self.seeds.new_ones(self.spec.vocabulary, dtype=torch.float32) if allowed is None else allowed.float()
        if self.spec.newline is not None:
            every[self.spec.newline] = 0.0
        return every.nonzero().flatten(), every / every.sum()


@dataclass(frozen=True)
class ScaleTask:
    """What a next-scale sampler is asked to fill: one image per seed."""

    spec: ScaleSpec
    seeds: Tensor  # (B,) int64, on the model's device
    warps: tuple[Warp, ...]  # of each scale
    codebook: Tensor  # (V, D)
    given: Tensor | None = None  # (B, S) int64, ids of an image of which a part stays
    keep: Tensor | None = None  # (B, S) bool, where they stay

    @property
    def batch(self) -> int:
        return len(self.seeds)

    def kept(self, rows: Tensor) -> "ScaleTask":
        """The task of the images `rows` (k,) alone."""
        given, keep = (None if part is None else part[rows] for part in (self.given, self.keep))
        return replace(self, seeds=self.seeds[rows], given=given, keep=keep)


class Sampler:
    """What a method says of itself, whatever it draws with; a method names what differs from this."""

    kind: ClassVar[Kind] = "raster"  # of the models that it draws with
    plan: ClassVar[str | None] = None  # of these, those that draw so; None: any
    exact: ClassVar[bool]  # whether its images follow the law of plain decoding
    Settings: ClassVar[type]  # a frozen dataclass
    partner: ClassVar[str | None] = None  # the setting that names a model which drafts, or refines; None: there is none

    @classmethod
    def check(cls, settings: Any, spec: Any) -> None:
        """ValueError where `settings` do not go with images of layout `spec`."""

    @classmethod
    def block_width(cls, settings: Any) -> int | None:
        """Tokens in the widest block that it proposes, about; None: it wants `Task.costs`, and chooses by them."""
        return 1

    @property
    def counted(self) -> tuple[int, int]:
        """Drafts within images that were verified, and those of them that stand in the images."""
        return 0, 0


class ScaleSampler(Sampler, ABC):
    """A decoding method for next-scale models. It has `settled` and `tokens` (B, S), as a raster sampler has."""

    kind: ClassVar[Kind] = "next-scale"
    settled: Any
    tokens: Any

    @abstractmethod
    def __init__(self, settings: Any, task: ScaleTask) -> None: ...

    @property
    @abstractmethod
    def reaches(self) -> tuple[int, ...]:
        """For each model in turn, the scale before which it hands over to the next; at last all of them."""

    @abstractmethod
    def draw(self, logits: Tensor, scale: int) -> Tensor:
        """The codes (B, n, D) of a scale from its guided logits (B, n, V)."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""


class RasterSampler(Sampler, ABC):
    """A decoding method for raster models. It never calls the model and never touches a layer.

    It has `settled`, a list of the tokens committed so far in each row, and `tokens` (B, slots) int64, of which row b
    is final up to `settled[b]` unless `committed` says otherwise.
    """

    settled: Any
    tokens: Any
    extra: int = 0  # places that it wants in the cache, behind the image's slots
    steady: ClassVar[bool] = False  # whether it draws the same image however wide its blocks are: it has `narrow`

    @abstractmethod
    def __init__(self, settings: Any, task: Task) -> None: ...

    @property
    def committed(self) -> Any:
        """(B, slots) bool, which tokens are final, where a method does not commit in reading order; else None."""
        return None

    @abstractmethod
    def propose(self) -> Block:
        """The next tokens to run. Not called once every row is settled."""

    @abstractmethod
    def accept(self, logits: Tensor) -> None:
        """Take the guided logits (B, n, V) of the block just proposed; at first those of slot 0, (B, 1, V)."""

    # Rows come and go between steps (`engine/running.py`): of all that is kept for each image, and of nothing else.

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""

    @abstractmethod
    def join(self, other: Any) -> None:
        """Take the images of a sampler of the same settings as well, behind its own; it has begun, and is used up."""

    @abstractmethod
    def under(self, warp: Warp) -> None:
        """From now on, the laws of the images are under `warp`."""


class LatentDrafter(Protocol):
    """A small continuous model that drafts for a large one."""

    forwards: int

    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""
        ...

    def law(self, group: Group) -> tuple[Any, Any]:
        """Its head, and what that needs to draw the group."""
        ...


@dataclass(frozen=True)
class LatentTask:
    """What a sampler of continuous tokens is asked to fill: one image per seed."""

    spec: ContinuousSpec
    seeds: Tensor  # (B,) int64, on the model's device
    guidance: float = 1.0  # 1 is off
    temperature: float = 1.0
    drafter: LatentDrafter | None = None  # where the method drafts with another model

    @property
    def batch(self) -> int:
        return len(self.seeds)

    def order(self) -> Tensor:
        """A random order of the slots for each image, (B, S)."""
        slots = torch.arange(self.spec.slots, device=self.seeds.device)[None]
        return noise.bits(self.seeds, slots, Purpose.ORDER, 1)[..., 0].argsort(dim=-1)

    def noise(self, slots: Tensor, *purposes: int, rows: Tensor | None = None) -> PathNoise:
        """The noise of paths at `slots` (B, n), or (k, n) of the images `rows` (k,).

        With two `purposes`, of the start and of the steps, it is other noise than that of plain drawing.
        """
        seeds = self.seeds if rows is None else self.seeds[rows]
        return PathNoise(seeds, slots, self.spec.channels, *purposes)


class ContinuousSampler(Sampler, ABC):
    """A decoding method for continuous models. It draws from the model's head and never calls the backbone.

    It has `settled`, a list of the tokens drawn so far in each row, and `values` (B, S, C) float32, zero where nothing
    was drawn.
    """

    kind: ClassVar[Kind] = "continuous"
    least_temperature: ClassVar[float] = 0.0  # of the head
    inference_steps: ClassVar[str] = "steps"  # the setting that diffusers calls num_inference_steps
    settled: Any
    values: Tensor

    @abstractmethod
    def __init__(self, settings: Any, task: LatentTask) -> None: ...

    @classmethod
    def check(cls, settings: Any, spec: ContinuousSpec, temperature: float = 1.0) -> None:
        """ValueError where `settings` do not go with such images, or the head cannot draw at a `temperature`."""
        if not cls.least_temperature <= temperature <= MOST:
            raise ValueError(f"got temperature {temperature}, expected {cls.least_temperature} to {MOST:.2g}")

    @abstractmethod
    def propose(self) -> Group:
        """The next tokens to be drawn; with k times as many rows as there are images, k groups one below the other."""

    @abstractmethod
    def accept(self, head: Any, z: Any) -> None:
        """Draw the group just proposed, from the model's head and what its backbone said."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with the images `rows` (k,) alone, in this order."""
