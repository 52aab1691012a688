"""One training loop for every pocket model: AdamW, warm-up and cosine decay, a progress bar, exact resume."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vargen.core import pickles
from vargen.core.atomic import write_atomically

Loss = Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]  # one step's randomness -> loss, figures to show


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; `warmup` and `save_every` are in steps."""

    steps: int
    rate: float
    weight_decay: float = 0.02
    warmup: int = 50
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"got {self.steps} steps, expected at least 1")

    def at(self, step: int) -> float:
        """Learning rate: linear warm-up, then a cosine to a hundredth."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def fit(
    module: nn.Module,
    loss: Loss,
    schedule: Schedule,
    *,
    name: str,
    data: str,
    checkpoint: Path,
    seed: int,
    device: torch.device,
) -> None:
    """Train `module` in place with `loss`, resuming from `checkpoint` if it exists and is of the same run.

    A run is told by name, seed, schedule and a description of the `data`; ValueError where the checkpoint's differs.

    A step's randomness depends on (seed, step) alone, so that a resumed run equals an unbroken one.
    """
    optimiser, run = _adamw(module, schedule), f"{name}, seed {seed}, {data}, {schedule}"
    start = _resume(module, optimiser, checkpoint, run, device) if checkpoint.exists() else 0
    module.train()
    bar = tqdm(
        range(start, schedule.steps), initial=start, total=schedule.steps, desc=name, mininterval=5, disable=None
    )
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = schedule.at(step)
        with torch.autocast(device.type, torch.bfloat16):
            value, figures = loss(torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63)))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        bar.set_postfix({key: f"{number:.3f}" for key, number in figures.items()}, refresh=False)
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            state = {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1, "run": run}
            write_atomically(checkpoint, lambda path, state=state: torch.save(state, path))
    module.eval()


def _adamw(module: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW that decays matrices alone."""
    decayed = [p for p in module.parameters() if p.dim() > 1]
    rest = [p for p in module.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.95))


def _resume(
    module: nn.Module, optimiser: torch.optim.Optimizer, checkpoint: Path, run: str, device: torch.device
) -> int:
    """Take a run up where its checkpoint ends; the step that comes next. ValueError where it is of another run."""
    try:
        pickles.scan(checkpoint)
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        before = state["run"]
    except Exception:
        raise ValueError(f"{checkpoint} is damaged or no checkpoint: remove it to start anew") from None
    if before != run:
        raise ValueError(f"{checkpoint} is of another run ({before}): remove it to start {run}")
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
