"""What a model must offer to be decoded: one Protocol per kind of model."""

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from vargen.core.noise import PathNoise
from vargen.core.specs import ContinuousSpec, RasterSpec, ScaleSpec
from vargen.core.types import Block, Condition, Denoising, Group, KVCache


class Model(nn.Module):
    """Where models begin: what they need not offer, and do where they say so."""

    config: Any  # its shapes; where memory is planned or a head drafts: layers, heads, width and hidden

    replays: ClassVar[bool] = False  # its forwards may be captured and replayed: see `engine/runners.py`
    shows_states: ClassVar[bool] = False  # it is `ShowsStates`
    any_grid: ClassVar[bool] = False  # a continuous model whose `at(grid)` has the same weights for another grid


class ClassConditional(Protocol):
    """A model that draws classes."""

    def class_condition(self, labels: Tensor, *, guided: bool) -> Condition:
        """Embed class labels (B,); with `guided` the unconditional rows follow, (2B, T, d)."""
        ...


class TextConditional(Protocol):
    """A model that draws what a text encoder has read."""

    @property
    def text_shape(self) -> tuple[int, int]:
        """Tokens, and numbers in the state of each, of a text as the model takes it."""
        ...

    def text_condition(self, states: Tensor, mask: Tensor, *, guided: bool) -> Condition:
        """Embed text states (B, T, C), of which `mask` (B, T) names the words; (2B, T, d) with `guided`."""
        ...


class ShowsStates(Protocol):
    """A raster model that shows the states behind its logits, for heads that draft from them (`models/eagle.py`)."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Image tokens (R, n) as the layers take them, (R, n, d)."""
        ...

    def prefill_states(self, condition: Condition, cache: KVCache) -> Tensor:
        """As `prefill`, but (R, 1, d)."""
        ...

    def decode_states(self, block: Block, cache: KVCache) -> Tensor:
        """As `decode`, but (R, n, d)."""
        ...

    def states(self, condition: Condition, ids: Tensor) -> Tensor:
        """Teacher-forced states (R, N, d) of ids (R, N): that of slot s - 1 gives the law of slot s. No cache."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """What the output head makes of states (R, n, d): (R, n, V) in float32."""
        ...


class RasterModel(Protocol):
    """A next-token model over image tokens in raster order (LlamaGen, Lumina-mGPT, Emu3, Janus).

    It is `ClassConditional` where its spec has classes, else `TextConditional`, or it reads prompts (`prompted.py`).
    """

    @property
    def spec(self) -> RasterSpec: ...

    @property
    def device(self) -> torch.device: ...

    def make_cache(self, batch: int, extra: int = 0, front: int = 1) -> KVCache:
        """An empty cache for `batch` rows, with `extra` places behind the image's slots.

        `front` is how many tokens the condition has, where that is not always the same.
        """
        ...

    def prefill(self, condition: Condition, cache: KVCache, first: int = 0) -> Tensor:
        """Write the condition to the cache, behind its tokens before `first` which stand there; the logits of the slot
        behind it, (R, 1, V).
        """
        ...

    def decode(self, block: Block, cache: KVCache) -> Tensor:
        """Write a block to the cache; the logits of the slot behind each of its tokens, (R, n, V)."""
        ...


class NextScaleModel(ClassConditional, Protocol):
    """A model that draws all tokens of a scale at once, given the scales before it (VAR)."""

    @property
    def spec(self) -> ScaleSpec: ...

    @property
    def code_dim(self) -> int:
        """Numbers in a code, as its inputs have them."""
        ...

    @property
    def device(self) -> torch.device: ...

    def make_cache(self, batch: int, slots: int) -> KVCache:
        """An empty cache for `batch` rows, of the first `slots` slots: those behind are run and not kept."""
        ...

    def decode(self, condition: Condition, inputs: Tensor, scales: range, cache: KVCache) -> Tensor:
        """Run scales that nobody has run yet, in one pass; the logits of the last of them, (R, n, V).

        `inputs` (R, m, D) are the features of the image so far, as each of these scales has them; scale 0 has none.
        """
        ...


class Head(Protocol):
    """Draws tokens from what the backbone says of them: diffusion or flow, in steps."""

    def sample(self, z: Any, how: Denoising, noise: PathNoise) -> Tensor:
        """Tokens (B, n, C), float32, from `z` of all rows, as the model's `decode` gave it.

        Guidance happens here: where `how.guidance` is not 1, `z` has the conditional rows, then the unconditional ones;
        where it is 1, the unconditional rows, if there are any, are left out.
        """
        ...


class ContinuousModel(Protocol):
    """A model whose tokens are vectors (MAR, FlowAR, xAR, Harmon): a backbone that gives `z`, a head that draws.

    It is `ClassConditional` where its spec has classes, else `TextConditional`.
    """

    @property
    def spec(self) -> ContinuousSpec: ...

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's latents."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def head(self) -> Head: ...

    def make_cache(self, rows: int) -> Any:
        """What the model keeps between groups, empty; None where it keeps nothing."""
        ...

    def decode(self, condition: Condition, group: Group, cache: Any) -> Any:
        """What the head needs to draw `group.slots`, for each row of the condition: (R, n, d), or the head's own type.

        R is the group's rows, or twice as many with the unconditional ones behind. Groups that come in order are each
        decoded once.
        """
        ...

    def image(self, values: Tensor) -> Tensor:
        """Latents (B, C, H, W) of tokens (B, S, C), as the autoencoder takes them."""
        ...


def embed(model: Any, inputs: tuple[Tensor, ...], *, guided: bool) -> Condition:
    """The condition of labels (B,), or of text states (B, T, C) and their mask (B, T), as `model` takes them."""
    return (model.class_condition if model.spec.classes else model.text_condition)(*inputs, guided=guided)
