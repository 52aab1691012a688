"""Forwards of a raster model with static shapes: captured once as a CUDA graph, and replayed.

A small forward takes longer to launch than to run. `Replayed` has the model's contract; its `decode` copies a block
into buffers that stay where they are and replays the graph of that shape. Caches stay where they are as well: one that
nobody holds any more is handed out again, and its graphs with it. What stands in it from before is never seen.

On a CPU there is nothing to capture, and the same code runs the model over the same buffers; the tests rely on it.
"""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core import Block, Condition, KVCache
from vargen.models.contract import RasterModel, RasterSpec

KEPT = 2  # caches that are kept for the next call, with their graphs
MOST = 32  # graphs of a cache: rows abreast have blocks of many widths, of which the first are captured

Tensors = dict[str, Tensor]
Run = Callable[[], Tensor]


@dataclass
class Graph:
    """A forward of one shape: its inputs, the run over them, and which kernels it has."""

    inputs: Tensors
    run: Run
    ran: dict[str, str]


@dataclass
class Held:
    """A cache that stays, and the graphs that read and write it."""

    key: tuple[int, int, int]
    cache: KVCache
    extra: int
    handed: Callable[[], KVCache | None] = lambda: None
    condition: Tensors = field(default_factory=dict)  # what the cache knows of the condition
    graphs: dict[Any, Graph] = field(default_factory=dict)


class Replayed:
    """A raster model whose blocks are replayed."""

    def __init__(self, model: Any, capture: Callable[[Run, torch.device], Run] | None = None) -> None:
        self.model: RasterModel = model
        self._capture = capture or captured
        self._held: list[Held] = []
        self._of: weakref.WeakKeyDictionary[KVCache, Held] = weakref.WeakKeyDictionary()

    @property
    def spec(self) -> RasterSpec:
        return self.model.spec

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def captures(self) -> int:
        """Graphs that are kept."""
        return sum(len(held.graphs) for held in self._held)

    def make_cache(self, batch: int, extra: int = 0, front: int = 1) -> KVCache:
        """A cache as the model makes it: one that was used before, if nobody holds it, or a new one."""
        key = (batch, extra, front)
        free = [held for held in self._held if held.handed() is None]
        held = next((held for held in free if held.key == key), None)
        for old in [other for other in free if other is not held][: -(KEPT - 1)]:  # the oldest are first
            self._held.remove(old)
        if held is None:
            held = Held(key, self.model.make_cache(batch, extra, front), extra)
        else:
            self._held.remove(held)
            held.cache.keys.zero_()  # a number that was none would be seen, even at weight 0
            held.cache.values.zero_()
        self._held.append(held)
        handed = copy.copy(held.cache)  # the same memory, and another object, so that it shows when it is given up
        held.handed = weakref.ref(handed)
        self._of[handed] = held
        return handed

    def prefill(self, condition: Condition, cache: KVCache) -> Tensor:
        """The model's; what it notes of the condition stays where the graphs read it."""
        logits, held = self.model.prefill(condition, cache), self._of[cache]
        for name in ("padding", "shift"):
            value = getattr(cache, name)
            if value is not None:
                value = held.condition.setdefault(name, value.clone()).copy_(value)
            setattr(held.cache, name, value)
        return logits

    def decode(self, block: Block, cache: KVCache) -> Tensor:
        """The model's logits; they may be in a buffer that the next block of this shape takes again."""
        held = self._of[cache]
        given = self._inputs(block, held)
        key = (held.cache.padding is None, *((name, value.shape) for name, value in given.items()))
        graph = held.graphs.get(key)
        if graph is None:
            logits = self.model.decode(block, cache)  # capturing runs it again, when all that it moves is moved
            if len(held.graphs) < MOST:
                held.graphs[key] = self._graph(given, held, cache)
            return logits
        for name, value in given.items():
            graph.inputs[name].copy_(value)
        cache.kernels.ran.update(graph.ran)
        return graph.run()

    def _inputs(self, block: Block, held: Held) -> Tensors:
        """The tensors of a block, what it sees widened to the whole cache."""
        out = {"tokens": block.tokens, "slots": block.slots}
        if block.sees is not None:
            places = self.spec.slots + held.extra
            out["sees"] = F.pad(block.sees, (0, places - block.sees.shape[-1]))
        if block.places is not None:
            out["places"] = block.places
        if block.moves is not None:
            out["source"], out["target"] = block.moves
        return out

    def _graph(self, given: Tensors, held: Held, cache: KVCache) -> Graph:
        inputs = {name: value.clone() for name, value in given.items()}
        if "source" in inputs:  # what the block has moved must not be moved again
            inputs["source"].copy_(inputs["target"])
        stop = self.spec.slots if "sees" not in inputs else inputs["sees"].shape[-1]
        moves = (inputs["source"], inputs["target"]) if "source" in inputs else None
        block = Block(inputs["tokens"], inputs["slots"], 0, stop, inputs.get("sees"), inputs.get("places"), moves=moves)
        held.cache.kernels = copy.copy(cache.kernels)
        held.cache.kernels.ran = ran = {"decode": "graph"}
        run = self._capture(lambda: self.model.decode(block, held.cache), self.device)
        return Graph(inputs, run, ran)


def captured(run: Run, device: torch.device) -> Run:
    """`run` as a CUDA graph; on a CPU, `run`. A run may be repeated: it writes what it wrote before."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(2):  # kernels are compiled and workspaces allocated
            run()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
