"""The loop around FlowAR and xAR by hand, from given noise; and their golden cases."""

from dataclasses import dataclass
from typing import Any

import synth
import torch
from torch import Tensor

from vargen.core import checkpoints
from vargen.core.layout import Layout
from vargen.core.types import Denoising, Group


@dataclass(frozen=True)
class Recorded:
    """Noise that was recorded, in the place of `PathNoise`."""

    first: Tensor  # (B, n, C)
    rest: Tensor  # (T, B, n, C)

    def start(self) -> Tensor:
        return self.first

    def steps(self, count: int) -> Tensor:
        assert count == len(self.rest)
        return self.rest


def relative(out: Tensor, ref: Tensor) -> float:
    return ((out - ref).norm() / ref.norm()).item()


def load(cls: Any, config: Any, layout: Layout, case: dict, folder: Any) -> Any:
    """A model of a golden case's weights, by way of a file in the official format."""
    path = folder / "official.pth"
    torch.save(synth.state_dict(case["parameters"] | case["buffers"]), path)
    with torch.device("meta"):
        model = cls(config)
    checkpoints.load_into(model, path, layout)
    return model.eval().requires_grad_(False)


def recorded_noise(case: dict, recorded: dict[str, Tensor]) -> list[Tensor]:
    """The draws in order, each of its first rows: the reference drew for the unconditional ones too."""
    shapes, rows = case["gen_noise_shapes"], len(recorded["labels"])
    flat = recorded["gen_noise_flat"].split([shape[0] * shape[1] * shape[2] for shape in shapes])
    return [part.reshape(shape)[:rows] for part, shape in zip(flat, shapes, strict=True)]


def group(spec: Any, index: int, values: Tensor) -> Group:
    """The group of that index, with all before it known."""
    first, size, rows = sum(spec.groups[:index]), spec.groups[index], len(values)
    every = torch.arange(spec.slots).expand(rows, -1)
    return Group(every[:, first : first + size], every[:, :first], values)


def annealed(upper: int, lower: int, groups: int) -> list[int]:
    """DiSA's steps of each group."""
    return [int((upper - lower) * (groups - 1 - i) / (groups - 1) + lower) for i in range(groups)]


def plans(spec: Any, steps: list[int], scale: float, **options: Any) -> list[Denoising]:
    """How each group is drawn: guidance grows from none."""
    last = len(spec.groups) - 1
    return [Denoising(n, 1 + (scale - 1) * i / last, **options) for i, n in enumerate(steps)]


def draw(model: Any, labels: Tensor, how: list[Denoising], noise: list[Recorded], *, guided: bool = True) -> Tensor:
    """All tokens (B, S, C)."""
    spec, condition = model.spec, model.class_condition(labels, guided=guided)
    cache, done = model.make_cache(len(condition.embedding)), []
    for index in range(len(spec.groups)):
        values = torch.full((len(labels), spec.slots, spec.channels), float("nan"))  # what is not known is not read
        if done:
            known = torch.cat(done, dim=1)
            values[:, : known.shape[1]] = known
        z = model.decode(condition, group(spec, index, values), cache)
        done.append(model.head.sample(z, how[index], noise[index]))
        assert done[-1].dtype == torch.float32
    return torch.cat(done, dim=1)
