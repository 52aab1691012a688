"""xAR (arXiv 2502.20388): draws an image cell by cell, the tokens of a cell by flow matching in the whole model.

There is no head beside the backbone: with a cell's tokens at time t, and the cells before it at time 0, the backbone
itself says where they move. The cells are quadrants. A cell is carried from noise to data as a stochastic differential
equation over time 1 to 0 (the sampler of SiT, arXiv 2401.08740), whose last step is made without noise.
"""

import math
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from vargen.core.layout import Layout
from vargen.core.noise import PathNoise
from vargen.core.specs import ContinuousSpec
from vargen.core.types import Condition, Denoising, Group, KVCache
from vargen.kernels.rope import Joined
from vargen.models.diffusion import TimeEmbedding
from vargen.models.flow import RENAME, Backbone, BackboneConfig, Step, grid, guidance, guided_velocity, timesteps

LAST = 0.04  # where the last step, which goes to 0, starts

# The official files: our key to theirs. Rotations and the mask of training are computed and not loaded.
LAYOUT = Layout(
    rename=(*RENAME, (r"^output\.", "pred.")),
    ignored=r"mask|(en|de)coder_blocks\.\d+\.attn\.rope\.freqs(_cos|_sin)?",
)


@dataclass(frozen=True)
class XARConfig(BackboneConfig):
    """Shapes of an xAR; the defaults are `xar-b`."""

    layers: int = 8
    heads: int = 12
    width: int = 768
    side: int = 16
    cell: int = 8  # tokens along one side of a cell

    @property
    def cells(self) -> int:
        """Cells along one side of the image."""
        return self.side // self.cell

    @property
    def spec(self) -> ContinuousSpec:
        groups = (self.cell**2,) * self.cells**2
        return ContinuousSpec(self.side**2, self.channels, self.classes, "cells", groups)


@cache
def times(count: int) -> tuple[float, ...]:
    """The times of `count` steps, 1 to 0: evenly spread, but for the last step."""
    if count < 1:
        raise ValueError(f"got {count} steps of a flow, expected 1 or more")
    return (*torch.linspace(1, LAST, count, dtype=torch.float64, device="cpu").tolist(), 0.0)


@cache
def cell_rotations(config: XARConfig, device: torch.device) -> Joined:
    """Rotations of side^2 tokens in the order of cells."""
    with torch.inference_mode(False):  # see `grid`
        cells, cell = config.cells, config.cell
        order = "1 (rows h columns w) part 1 d -> 1 (rows columns h w) part 1 d"
        table, sizes = grid(config.side, config.side, config.head_dim, device), {"rows": cells, "columns": cells}
        return Joined(*(rearrange(part, order, h=cell, **sizes) for part in (table.cos, table.sin)))


@dataclass(frozen=True)
class Context:
    """What a cell is drawn from: the class, and the cells before it. It stays good when later cells are cached."""

    classes: Tensor  # (R, d)
    cache: KVCache
    first: int  # tokens in the cache that are seen, and the slot of the cell's first


class VelocityHead:
    """The backbone itself, as the head that draws; see `Head` in models/contract.py. It has no weights of its own."""

    def __init__(self, model: "XAR") -> None:
        self.model = model

    def sample(self, z: Context, how: Denoising, noise: PathNoise) -> Tensor:
        """Tokens (B, n, C), float32: `how.steps` steps of Euler and Maruyama in float64.

        Steps at times above `how.guidance_high` are not guided. `how.temperature` and `how.solver` are not read.
        """
        x, when = noise.start().double(), times(how.steps)
        scales = guidance(how, when, len(x), len(z.classes))
        each, told = noise.steps(max(1, how.steps - 1)), self.model.time_embed(timesteps(when[:-1], x.device))
        for index, (t, after) in enumerate(pairwise(when)):
            velocity = guided_velocity(partial(self.model.velocity, z, told[index]), x, scales[index])
            # On a straight path the score is -((1 - t) v + x) / t; noise of variance 2 t then makes v - t score of v.
            x = x + (after - t) * ((2 - t) * velocity + x)
            if index < how.steps - 1:
                x = x + math.sqrt(2 * t * (t - after)) * each[index]
        return x.float()


class XAR(Backbone):
    """A continuous model in cells; see `ContinuousModel` in `models/contract.py`. Its tokens are in their order."""

    def __init__(self, config: XARConfig) -> None:
        if config.side % config.cell:
            raise ValueError(f"got side {config.side} and cells of {config.cell}, expected a multiple")
        super().__init__(config)
        self.config = config
        self.time_embed = TimeEmbedding(config.width)
        self.output = nn.Linear(config.width, config.channels)

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.side, self.config.side

    @property
    def head(self) -> VelocityHead:
        return VelocityHead(self)

    def decode(self, condition: Condition, group: Group, cache: KVCache) -> Context:
        """Cache the cell before the group, as it was drawn; see `models/contract.py`.

        The published code runs that cell and the noisy one together at a cell's first step. Its mask lets nobody see
        a later cell, so that the earlier one comes out the same by itself.
        """
        first, size = group.known.shape[1], self.config.cell**2
        assert first % size == 0, f"{first} tokens are no whole cells of {size}"
        assert group.slots.shape[1] == size, f"got {group.slots.shape[1]} slots, expected a cell of {size}"
        classes = condition.embedding[:, 0]
        if first:
            before = group.values[:, first - size : first]
            before = before.repeat(len(classes) // len(before), 1, 1)
            clean = self.time_embed(timesteps([0.0], before.device))
            self._run(before, classes + clean, Context(classes, cache, first - size), keeps=True)
        return Context(classes, cache, first)

    def velocity(self, context: Context, time: Tensor, x: Tensor) -> Tensor:
        """The velocity (R, n, C), float32, of a cell x (R, n, C) at an embedded time (d,); the cache is only read.

        With fewer rows than the context has, it is of the first ones.
        """
        x = self._run(x, context.classes[: len(x)] + time, context, keeps=False)
        return self.output(x).float()

    def image(self, values: Tensor) -> Tensor:
        """Latents (B, C, side, side) of tokens (B, S, C), which come cell by cell."""
        cells, cell = self.config.cells, self.config.cell
        return rearrange(
            values, "b (rows columns h w) c -> b c (rows h) (columns w)", rows=cells, columns=cells, h=cell
        )

    def _run(self, x: Tensor, condition: Tensor, context: Context, *, keeps: bool) -> Tensor:
        """Features (R, n, d) of a cell (R, n, C) that stands behind what is cached."""
        slots = slice(context.first, context.first + x.shape[1])
        turns = cell_rotations(self.config, x.device)
        step = Step(Joined(turns.cos[:, slots], turns.sin[:, slots]), context.cache, context.first, keeps)
        return self.through(self.inward(x.to(self.dtype)), slots, self.modulations(condition), step)
