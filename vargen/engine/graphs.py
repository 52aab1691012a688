"""Functions of tensors whose shapes stay: run once, captured as a CUDA graph, and replayed from then on.

A small forward takes longer to launch than to run. A graph fixes every number that the host knew when it was captured,
and reads tensors where they were: what changes from call to call is copied into buffers of its own, and everything else
(weights, caches) has to stay where it is.

On a CPU there is nothing to capture, and the same code runs the function over the same buffers; the tests rely on it.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vargen.core.dispatch import on

Tensors = dict[str, Tensor]
Run = Callable[[], Tensor]
Capture = Callable[[Run, torch.device], Run]

MOST = 32  # graphs of one recorder: the first shapes are captured, others run as they are


@dataclass
class Graph:
    """A function of one shape: its inputs, the run over them, and what was noted while it was captured."""

    inputs: Tensors
    run: Run
    notes: dict[str, str]


class Recorder:
    """Graphs of a function by the shapes of what it is given, and by what else is fixed in them."""

    def __init__(
        self, device: torch.device, capture: Capture | None = None, *, most: int | None = None, patience: int = 0
    ) -> None:
        """Of at most `most` graphs. `patience` is how often a shape comes before it is worth one."""
        self._device, self._capture = device, capture or Capturing()
        self._most, self._patience = most, patience
        self._graphs: dict[Hashable, Graph] = {}
        self._met: Counter[Hashable] = Counter()
        self._failed = False

    def __len__(self) -> int:
        return len(self._graphs)

    def run(
        self,
        function: Callable[[Tensors], Tensor],
        given: Tensors,
        fixed: Hashable = None,
        *,
        repeated: Callable[[Tensors], None] | None = None,
        replayed: Callable[[Tensors], Tensor] | None = None,
        notes: dict[str, str] | None = None,
        patience: int = 0,
    ) -> tuple[Tensor, dict[str, str] | None]:
        """What `function` makes of `given`, and the notes of the graph that was replayed; None where none was.

        The result may stand in a buffer that the next replay takes again. A function that is captured runs several
        times over the same inputs, on which it must not build; `repeated` first sets right those that would not bear
        it. `replayed` is what is captured in the place of `function`, where it is another one; it may fill `notes`,
        which stay with the graph. `patience` is this function's, where it is more than the recorder's.
        """
        key = (fixed, *((name, value.shape, value.dtype) for name, value in given.items()))
        with on(self._device):
            graph = self._graphs.get(key)
            if graph is not None:
                for name, value in given.items():
                    graph.inputs[name].copy_(value)
                return graph.run(), graph.notes
            out = function(given)
            if self._due(key, patience):
                inputs = {name: value.clone() for name, value in given.items()}
                if repeated is not None:
                    repeated(inputs)
                graph = self._captured(replayed or function, inputs, {} if notes is None else notes)
                if graph is not None:  # its kernels may round otherwise: they are used from the first time on
                    self._graphs[key] = graph
                    return graph.run(), graph.notes
            return out, None

    def _due(self, key: Hashable, patience: int) -> bool:
        """Whether a shape that has come is to be captured."""
        if self._failed or len(self._graphs) >= (MOST if self._most is None else self._most):
            return False
        self._met[key] += 1
        return self._met[key] > max(self._patience, patience)

    def _captured(self, function: Callable[[Tensors], Tensor], inputs: Tensors, notes: dict[str, str]) -> Graph | None:
        try:
            return Graph(inputs, self._capture(lambda: function(inputs), self._device), notes)
        except Exception as error:  # what cannot be captured or compiled, or has no room, runs as it is
            self._failed = True
            warnings.warn(f"vargen: forwards are not captured as graphs, and slower: {error}", stacklevel=3)
            return None


class Capturing:
    """Makes CUDA graphs that share their memory; on a CPU, leaves a run as it is."""

    def __init__(self) -> None:
        self._memory: tuple[Any, Any] | None = None  # a pool, and the stream that may use its blocks again

    def __call__(self, run: Run, device: torch.device) -> Run:
        if device.type != "cuda":
            return run
        self._memory = self._memory or (torch.cuda.graph_pool_handle(), torch.cuda.Stream(device))
        pool, side = self._memory
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            run()  # kernels are compiled and workspaces allocated
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def weights(model: nn.Module) -> tuple[int, ...]:
    """Where a model's weights lie. Graphs read them there, and are good for as long as they do."""
    return tuple(place for value in (*model.parameters(), *model.buffers()) for place in _places(value))


def _places(value: Any) -> list[int]:
    if not is_traceable_wrapper_subclass(value):
        return [value.data_ptr()]
    return [place for name in value.__tensor_flatten__()[0] for place in _places(getattr(value, name))]  # quantised
