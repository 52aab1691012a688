"""MAR (arXiv 2406.11838): a masked autoencoder over continuous tokens, whose `z` a diffusion head draws from.

The encoder reads what is known behind 64 buffer tokens that carry the class; the decoder fills the rest with mask
tokens. Attention is bidirectional, so that every group of tokens needs a whole pass; of the decoder's last layer only
what is asked for is computed.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vargen.core.layout import Layout
from vargen.core.specs import ContinuousSpec
from vargen.core.types import Condition, Group
from vargen.kernels.attention import plain
from vargen.models.contract import Model
from vargen.models.diffusion import DiffusionHead

# The official files (`MAR` in models/mar.py and `DiffLoss` in models/diffloss.py): our key to theirs.
LAYOUT = Layout(
    rename=(
        (r"^unconditional$", "fake_latent"),
        (r"^classes\.", "class_emb."),
        (r"^(encoder|decoder|diffusion)_positions$", r"\1_pos_embed_learned"),
        (r"^mask$", "mask_token"),
        (r"^inward_norm\.", "z_proj_ln."),
        (r"^inward\.", "z_proj."),
        (r"^between\.", "decoder_embed."),
        (r"^head\.", "diffloss.net."),
        (r"net\.blocks\.", "net.res_blocks."),
        (r"(res_blocks\.\d+)\.norm", r"\1.in_ln"),
        (r"(res_blocks\.\d+)\.modulate\.", r"\1.adaLN_modulation.1."),
        (r"net\.modulate\.", "net.final_layer.adaLN_modulation.1."),
        (r"net\.output\.", "net.final_layer.linear."),
    ),
    under="model_ema",
)


@dataclass(frozen=True)
class MARConfig:
    """Shapes of a MAR; the defaults are those of `mar-base`."""

    layers: int = 12  # of the encoder, and of the decoder
    heads: int = 12
    width: int = 768
    head_depth: int = 6
    head_width: int = 1024
    side: int = 16
    channels: int = 16
    classes: int = 1000  # 0 where it is a part of a model that takes text
    buffer: int = 64  # tokens in front that carry the condition

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.width

    @property
    def spec(self) -> ContinuousSpec:
        """The image's layout."""
        return ContinuousSpec(self.side**2, self.channels, self.classes)


@dataclass(frozen=True)
class Positions:
    """Position tables (rows, d); those of the encoder and the decoder begin with the buffer's rows."""

    encoder: Tensor
    decoder: Tensor
    drawn: Tensor  # added to `z`


def stretched(table: Tensor, buffer: int, grid: tuple[int, int]) -> Tensor:
    """A table (buffer + n^2, d) for a grid of tokens, bilinear between their centres; the buffer's rows stay."""
    trained = math.isqrt(len(table) - buffer)
    values = rearrange(table[buffer:].float(), "(h w) d -> 1 d h w", h=trained)
    values = F.interpolate(values, size=grid, mode="bilinear")
    return torch.cat([table[:buffer], rearrange(values, "1 d h w -> (h w) d").to(table.dtype)])


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, places: Tensor | None, seen: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (R, H, n, D)
        if places is not None:
            q = take(q.transpose(1, 2), places).transpose(1, 2)
        return self.proj(plain(q, k, v, seen).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, places: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """x (R, n, d); what comes out at `places` (R, m) alone, if given. `seen` (R, 1, 1, n) bool: who is attended."""
        attended = self.attn(self.norm1(x), places, seen)
        x = (x if places is None else take(x, places)) + attended
        return x + self.mlp(self.norm2(x))


def take(x: Tensor, places: Tensor) -> Tensor:
    """Rows (R, m, ...) of x (R, n, ...) at `places` (R, m)."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]


class MAR(Model):
    """A masked model of continuous tokens; see `ContinuousModel` in models/contract.py."""

    replays: ClassVar[bool] = True

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"got width {config.width} and {config.heads} heads, expected a multiple")
        self.config, width, slots = config, config.width, config.side**2
        self.unconditional = nn.Parameter(torch.zeros(1, width))
        if config.classes:
            self.classes = nn.Embedding(config.classes, width)
        self.inward = nn.Linear(config.channels, width)
        self.inward_norm = nn.LayerNorm(width, eps=1e-6)
        self.encoder_positions = nn.Parameter(torch.zeros(1, config.buffer + slots, width))
        self.encoder_blocks = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.between = nn.Linear(width, width)
        self.mask = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_positions = nn.Parameter(torch.zeros(1, config.buffer + slots, width))
        self.decoder_blocks = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.diffusion_positions = nn.Parameter(torch.zeros(1, slots, width))
        self.head = DiffusionHead(config.channels, width, config.head_depth, config.head_width)

    @property
    def spec(self) -> ContinuousSpec:
        return self.config.spec

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.side, self.config.side

    @property
    def device(self) -> torch.device:
        return self.mask.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mask.dtype

    def make_cache(self, rows: int) -> None:
        """Nothing: what is known is seen anew by all that becomes known."""

    def class_condition(self, labels: Tensor, *, guided: bool) -> Condition:
        """Rows (R, 1, d), of class `classes` the unconditional one."""
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, self.config.classes)])
        return Condition(F.embedding(labels, torch.cat([self.classes.weight, self.unconditional]))[:, None])

    def decode(self, condition: Condition, group: Group, cache: None) -> Tensor:
        """`z` (R, n, d) of the group's slots; see `models/contract.py`."""
        return self.fill(self.encode(condition, group), group)

    def positions(self, grid: tuple[int, int] | None = None) -> Positions:
        """The position tables of a grid of tokens: of another one than trained, stretched ones."""
        buffer = self.config.buffer
        tables = ((self.encoder_positions, buffer), (self.decoder_positions, buffer), (self.diffusion_positions, 0))
        if grid is None or grid == self.grid:
            return Positions(*(table[0] for table, _ in tables))
        return Positions(*(stretched(table[0], front, grid) for table, front in tables))

    def encode(self, condition: Condition, group: Group, positions: Positions | None = None) -> Tensor:
        """Features (R, buffer + m, d) of the buffer and of what is known."""
        buffer, places, positions = self.config.buffer, self._places(group), positions or self.positions()
        known = self.inward(take(group.values, group.known).to(self.dtype))
        copies = len(condition.embedding) // len(known)
        x = torch.cat([condition.embedding.expand(-1, buffer, -1), known.repeat(copies, 1, 1)], dim=1)
        x = self.inward_norm(x + positions.encoder[places].repeat(copies, 1, 1))
        seen = None
        if group.hidden is not None:
            seen = F.pad(~group.hidden, (buffer, 0), value=True).repeat(copies, 1)[:, None, None]
        for layer in self.encoder_blocks:
            x = layer(x, seen=seen)
        return self.encoder_norm(x)

    def fill(self, x: Tensor, group: Group, positions: Positions | None = None) -> Tensor:
        """`z` (R, n, d) of the group's slots, from the features of what is known."""
        buffer, places, positions = self.config.buffer, self._places(group), positions or self.positions()
        copies, wanted = len(x) // len(places), group.slots + buffer
        if group.hidden is not None:  # what stands for nothing goes to a row of its own, and is cut off
            places = places.masked_fill(F.pad(group.hidden, (buffer, 0)), len(positions.decoder))
        places, wanted = places.repeat(copies, 1), wanted.repeat(copies, 1)
        whole = self.mask.repeat(len(x), len(positions.decoder) + 1, 1)
        whole[torch.arange(len(x), device=x.device)[:, None], places] = self.between(x).to(whole.dtype)
        x = whole[:, :-1] + positions.decoder
        for layer in self.decoder_blocks[:-1]:
            x = layer(x)
        x = self.decoder_norm(self.decoder_blocks[-1](x, wanted))
        return x + positions.drawn[group.slots].repeat(copies, 1, 1)

    def image(self, values: Tensor) -> Tensor:
        """Latents (B, C, side, side) of tokens (B, S, C)."""
        # rearrange would give one image other strides, convolutions another path, and pixels other last bits.
        return values.transpose(1, 2).unflatten(2, (self.config.side, self.config.side))

    def _places(self, group: Group) -> Tensor:
        """Where the buffer and what is known stand in a whole sequence, (B, buffer + m)."""
        front = torch.arange(self.config.buffer, device=group.known.device).expand(len(group.known), -1)
        return torch.cat([front, group.known + self.config.buffer], dim=1)
