"""Whether laws are laws: numbers that are NaN or infinite are noted where they arise, and end a decode."""

import math

import torch
from torch import Tensor


class Sound:
    """Looks at every logit. On a CPU it complains at once; on CUDA it notes on the device and is read at the end."""

    def __init__(self, who: str, device: torch.device) -> None:
        self._who, self._late = who, device.type == "cuda"
        self._first = torch.zeros((), dtype=torch.int64, device=device)  # the forward that first had such, from 1 on
        self._count = 0

    def note(self, logits: Tensor) -> None:
        """Look at the logits (..., V) of a forward: each law needs a largest one, and a NaN would be it."""
        self._count += 1
        largest = logits.amax(-1)
        if not self._late:
            if not math.isfinite(largest.sum().item()) and not largest.isfinite().all():  # large ones may add up to it
                self._first.fill_(self._count)
                self.check()
            return
        broken = ~largest.isfinite().all()
        self._first = torch.where(broken & (self._first == 0), self._count, self._first)

    def check(self) -> None:
        """ValueError where a law was none."""
        if first := int(self._first):
            raise ValueError(
                f"{self._who} gave logits that are NaN or infinite in its forward {first}: its weights are damaged, or "
                "its dtype does not hold its numbers"
            )


def check_tokens(values: Tensor) -> None:
    """ValueError where a head gave tokens that are no numbers."""
    if not values.isfinite().all():
        raise ValueError(
            "the head gave tokens that are NaN or infinite: weights are damaged, or temperature is too high"
        )
