"""From logits to the law that is sampled: allowed ids, temperature, top-k, top-p, in this order.

It is the order of the LlamaGen scripts and of transformers; `temperature_last` has it behind them, as CoDe does.
Guidance is already in the logits. Exactness of any method is a statement about the law *after* this step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

FEW = (256,)  # ids that are sorted first where there are many
LEAST, MOST = 2.0**-149, torch.finfo(torch.float32).max  # temperatures that float32 has: another is 0, or infinite


@dataclass(frozen=True)
class Warp:
    """`top_k` 0 is off; `top_p` keeps the first id that crosses the threshold. Ties with the last that is kept stay.

    `temperature` and `top_p` may be (B, 1, 1), of each image its own: see `together`.
    """

    temperature: float | Tensor = 1.0
    top_k: int = 0
    top_p: float | Tensor = 1.0
    allowed: Tensor | None = None  # (V,) bool
    temperature_last: bool = False
    top_n_sigma: float = 0.0  # ids further than so many deviations below the largest score are left out; 0 is off

    def __post_init__(self) -> None:
        if self.apart:
            return
        if self.temperature == 0:
            raise ValueError("got temperature 0, expected a number above 0: top_k=1 draws the likeliest id")
        if not LEAST <= self.temperature <= MOST:
            raise ValueError(f"got temperature {self.temperature}, expected a number from {LEAST:.2g} to {MOST:.2g}")
        if self.top_k < 0:
            raise ValueError(f"got top-k {self.top_k}, expected 0 (off) or more")
        if not 0 <= self.top_n_sigma < float("inf"):
            raise ValueError(f"got top-n-sigma {self.top_n_sigma}, expected 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"got top-p {self.top_p}, expected a number above 0 and at most 1")

    @property
    def apart(self) -> bool:
        """Whether images have each their own."""
        return isinstance(self.temperature, Tensor) or isinstance(self.top_p, Tensor)

    def scores(self, logits: Tensor) -> Tensor:
        """Unnormalised log-probabilities (..., V), -inf where an id is ruled out; `logits` is left alone."""
        out = logits if self.allowed is None else logits.masked_fill(~self.allowed, float("-inf"))
        if not self.temperature_last:
            out = self._tempered(out)
        if 0 < self.top_k < out.shape[-1]:
            least = out.topk(self.top_k, dim=-1).values[..., -1:]
            out = out.masked_fill(out < least, float("-inf"))
        if self.top_n_sigma:  # of what top-k left (arXiv 2411.07641)
            left = out.isfinite()
            count, largest = left.sum(-1, keepdim=True), out.amax(-1, keepdim=True)
            mean = out.masked_fill(~left, 0.0).sum(-1, keepdim=True) / count
            deviation = ((out - mean).masked_fill(~left, 0.0).square().sum(-1, keepdim=True) / count).sqrt()
            out = out.masked_fill(out < largest - self.top_n_sigma * deviation, float("-inf"))
        if self.apart or self.top_p < 1.0:
            p = out.softmax(-1)
            out = out.masked_fill(p < self._least(p), float("-inf"))
        return self._tempered(out) if self.temperature_last else out

    def _least(self, p: Tensor) -> Tensor:
        """The least probability (..., 1) that top-p keeps of laws (..., V)."""
        if not isinstance(self.top_p, Tensor):
            return least_kept(p, self.top_p)
        whole = self.top_p >= 1.0
        return least_kept(p, self.top_p.masked_fill(whole, 0.0)).masked_fill(whole, 0.0)

    def _tempered(self, scores: Tensor) -> Tensor:
        if not self.apart and self.temperature == 1.0:
            return scores
        tempered = (scores - scores.amax(-1, keepdim=True)) / self.temperature  # the maximum is 0: nothing can overflow
        return (
            torch.where(self.temperature == 1.0, scores, tempered) if isinstance(self.temperature, Tensor) else tempered
        )

    def __call__(self, logits: Tensor) -> Tensor:
        """Probabilities (..., V)."""
        return torch.softmax(self.scores(logits), dim=-1)


def together(each: Sequence[Warp], device: torch.device) -> Warp:
    """The law of images that have each their own temperature and top-p, of logits (B, n, V). ValueError where they
    differ in more.
    """
    shared = {(one.top_k, id(one.allowed), one.temperature_last, one.top_n_sigma) for one in each}
    if len(shared) > 1:
        raise ValueError("got images of one batch whose laws differ in more than temperature and top-p")
    own = {name: [float(getattr(one, name)) for one in each] for name in ("temperature", "top_p")}
    if all(max(values) == min(values) for values in own.values()):
        return each[0]
    return replace(
        each[0], **{name: torch.tensor(values, device=device)[:, None, None] for name, values in own.items()}
    )


def least_kept(p: Tensor, top_p: float | Tensor) -> Tensor:
    """The least probability (..., 1) that top-p keeps of laws (..., V): that of the first id that crosses `top_p`.

    On a CPU the likeliest ids are sorted first, and all of them only where those do not reach `top_p`.
    """
    for count in FEW if p.is_cpu and p.shape[-1] > 4 * FEW[-1] else ():
        falling = p.topk(count, dim=-1).values
        mass = falling.cumsum(-1)
        if bool((mass[..., -1:] > top_p).all()):
            break
    else:
        falling = _sorted(p)
        mass = falling.cumsum(-1)
    beyond = mass - falling > top_p  # the mass before an id already passes the threshold
    return falling.masked_fill(beyond, 2.0).amin(-1, keepdim=True)


def _sorted(p: Tensor) -> Tensor:
    """Values (..., V), largest first; NumPy sorts floats several times as fast on a CPU."""
    if not p.is_cpu or p.dtype.itemsize < 4:
        return p.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(p.detach().numpy(), axis=-1)).flip(-1)
