"""Models with static shapes, replayed as CUDA graphs (`graphs.py`): next-scale and continuous ones; raster ones are in
`replayed.py`, and `Runners` knows all.

They have the contract of the model that they stand for. A next-scale model is replayed block by block, each block of
scales over a cache that stays where it is. Of a continuous model the head is replayed, step by step: whatever differs
between steps is given as a tensor, so that any number of steps takes the same graph. Where the backbone bears it, a
group of tokens is replayed as well; a masked model has a shape for every round.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vargen.core.dispatch import Kernels
from vargen.core.noise import PathNoise
from vargen.core.specs import ContinuousSpec, ScaleSpec
from vargen.core.types import Condition, Denoising, DenoisingPath, Group, KVCache
from vargen.engine.caches import Replaying
from vargen.engine.graphs import Capture, Capturing, Recorder, Tensors, weights
from vargen.engine.packed import forget, packed, watched
from vargen.engine.replayed import Replayed
from vargen.models.contract import ContinuousModel, NextScaleModel
from vargen.models.diffusion import DiffusionHead

STEPS = 64  # graphs of a head: one for every size of a group
GROUPS = 128  # graphs of a backbone


class ReplayedScales(Replaying[ScaleSpec]):
    """A next-scale model whose blocks are replayed."""

    model: NextScaleModel

    def class_condition(self, labels: Tensor, *, guided: bool) -> Condition:
        """The model's."""
        return self.model.class_condition(labels, guided=guided)

    def make_cache(self, batch: int, slots: int) -> KVCache:
        """A cache as the model makes it; nobody looks at what stands in it from before."""
        return self.caches.hand((batch, slots), partial(self.model.make_cache, batch, slots))

    def decode(self, condition: Condition, inputs: Tensor, scales: range, cache: KVCache) -> Tensor:
        """The model's logits; they may be in a buffer that the next block takes again."""
        held = self.caches.of(cache)
        given = {"condition": condition.embedding, "inputs": inputs}
        logits, again = held.graphs.run(partial(_scales, self.model, scales, held.cache), given, scales)
        if again is not None:
            cache.kernels.ran["decode"] = "graph"
        return logits


def _scales(model: NextScaleModel, scales: range, cache: KVCache, given: Tensors) -> Tensor:
    return model.decode(Condition(given["condition"]), given["inputs"], scales, cache)


class ReplayedLatents:
    """A continuous model with a diffusion head, whose steps, and perhaps whose groups, are replayed."""

    def __init__(self, model: Any, capture: Capture | None = None) -> None:
        self.model: ContinuousModel = model
        self.replays: bool = model.replays
        self.kernels, capture = Kernels(), capture or Capturing()
        self.steps = Recorder(model.device, capture, most=STEPS)
        # As many shapes as rounds: who draws but once would wait for graphs and never see them replayed.
        self.groups = Recorder(model.device, capture, most=GROUPS, patience=1)

    def release(self) -> None:
        """Nothing to give up: what it replays keeps no caches."""

    def noting(self, kernels: Kernels) -> "ReplayedLatents":
        """The same, with the same graphs; what is replayed is noted in `kernels`."""
        out = copy.copy(self)
        out.kernels = kernels
        return out

    @property
    def spec(self) -> ContinuousSpec:
        return self.model.spec

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head(self) -> "ReplayedHead":
        head = self.model.head
        assert isinstance(head, DiffusionHead)
        return ReplayedHead(head, self.steps, self.kernels)

    def make_cache(self, rows: int) -> Any:
        """The model's."""
        return self.model.make_cache(rows)

    def image(self, values: Tensor) -> Tensor:
        """The model's."""
        return self.model.image(values)

    def decode(self, condition: Condition, group: Group, cache: Any) -> Tensor:
        """The model's `z`."""
        if not self.replays:
            return self.model.decode(condition, group, cache)
        given = {"condition": condition.embedding, "slots": group.slots, "known": group.known, "values": group.values}
        if group.hidden is not None:
            given["hidden"] = group.hidden
        z, again = self.groups.run(partial(_group, self.model), given)
        if again is not None:
            self.kernels.ran["decode"] = "graph"
        return z if again is None else z.clone()


def _group(model: ContinuousModel, given: Tensors) -> Tensor:
    group = Group(given["slots"], given["known"], given["values"], given.get("hidden"))
    return model.decode(Condition(given["condition"]), group, None)


class ReplayedHead:
    """A diffusion head whose steps are replayed."""

    def __init__(self, head: DiffusionHead, graphs: Recorder, kernels: Kernels) -> None:
        self._head, self._graphs, self._kernels = head, graphs, kernels

    def sample(self, z: Tensor, how: Denoising, noise: PathNoise) -> Tensor:
        """The head's; only the published solver is replayed."""
        if how.solver != "ddpm":
            return self._head.sample(z, how, noise)
        return self.path(z, how, noise, keep=False).end

    def path(self, z: Tensor, how: Denoising, noise: PathNoise, *, keep: bool = True) -> DenoisingPath:
        """The head's. What is drawn anew for rejected tokens has shapes without number, and runs as it is."""
        step = self._step if isinstance(noise, PathNoise) else None
        return self._head.path(z, how, noise, keep=keep, step=step)

    def judge(self, z: Tensor, how: Denoising, states: Tensor) -> DenoisingPath:
        """The head's: a whole path in one pass takes longer to run than to launch."""
        return self._head.judge(z, how, states)

    def _step(
        self, x: Tensor, time: Tensor, condition: Tensor, law: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = {"x": x, "time": time, "condition": condition, "law": law, "noise": noise}
        out, again = self._graphs.run(partial(_step, self._head), given)
        if again is not None:
            self._kernels.ran["head"] = "graph"
        mean, log_variance, drawn = (out if again is None else out.clone()).unbind(0)
        return mean, log_variance, drawn


def _step(head: DiffusionHead, given: Tensors) -> Tensor:
    return torch.stack(head.step(**given))


class Runners:
    """A pipeline's models as they are run, unless `fast` is off: on CUDA from graphs, kept from call to call, and on a
    CPU with weights in order (`packed.py`).
    """

    def __init__(self, capture: Capture | None = None) -> None:
        """`capture`, where it is given, is for any device."""
        self._capture = capture
        self._kept: dict[str, tuple[Any, Any]] = {}  # by role, with what the graphs were made of
        self._packed = False  # whether the model last ran with weights in order

    def __reduce__(self) -> Any:
        """A copy, in this process or in another, starts without graphs: they read weights where those are."""
        return Runners, (self._capture,)

    def of(self, role: str, model: Any, fast: str) -> Any:
        """What runs the forwards of a model: itself, graphs of it, or a copy with weights in order."""
        if model.device.type == "cpu" and self._capture is None and fast == "auto" and isinstance(model, nn.Module):
            return self._ordered(role, model)
        self._packed &= role != "model"
        made = _made(model)
        here = model.device.type == "cuda" or self._capture is not None
        if fast == "off" or made is None or not here or watched(model):  # a graph would pass hooks by
            self._kept.pop(role, None)
            return model
        stands = (model, weights(model))  # graphs read them where they are
        if role not in self._kept or self._kept[role][0] != stands:
            self._kept[role] = (stands, made(model, self._capture))
        return self._kept[role][1]

    def _ordered(self, role: str, model: nn.Module) -> nn.Module:
        """A model with weights in order, as it is now."""
        made = packed(model)
        if role == "model":
            self._packed = made is not model
        return made

    @property
    def notes(self) -> dict[str, str]:
        """What a trace says of how the model is run, beside what the loops note."""
        return {"linear": "onednn"} if self._packed else {}

    def release(self) -> None:
        """Give up caches that nobody uses."""
        for _, runner in self._kept.values():
            runner.release()

    def clear(self) -> None:
        """Give up all graphs, and the caches that they read, unless they are in use; and weights in order."""
        self._kept.clear()
        forget()


def _made(model: Any) -> Callable[[Any, Capture | None], Any] | None:
    """What replays a model; None where nothing does."""
    if model.spec.kind in ("raster", "next-scale") and model.replays:
        return Replayed if model.spec.kind == "raster" else ReplayedScales
    if model.spec.kind == "continuous" and isinstance(model.head, DiffusionHead):
        return ReplayedLatents
    return None
