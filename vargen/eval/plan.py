"""What image i of a sampling run is, from i alone: its class or prompt, its seed, its file and its batch.

Images are drawn in groups of `batch_size` neighbours, always the same ones, whoever draws them: the last bits of a
batched product depend on its shape, and a run must give the same files on one process, on many, and after a restart.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch

from vargen.core import noise, registry, safe_json
from vargen.core.atomic import dumps
from vargen.core.messages import first_line, quoted
from vargen.core.preset import Preset
from vargen.pipelines import request, values

MOST_IMAGES = 10_000_000  # of a run: so many files a folder may hold, and so many checksums memory
AUTO_WINDOW = 16  # stands in for `auto`, which follows the clock


@dataclass(frozen=True)
class Plan:
    """Everything that the files of a run depend on, the weights and the machine's arithmetic apart."""

    model: str
    method: str
    preset: str
    count: int
    seed: int = 0
    batch_size: int = 16
    labels: str = "balanced"
    classes: int = 0
    law: dict[str, Any] = field(default_factory=dict)  # the recipe's values that the caller replaced
    prompts: tuple[str, ...] = ()
    dtype: str = "float32"  # of the transformer
    quantize: str = ""  # how its layers are stored, where they are quantised

    @property
    def groups(self) -> Iterator[range]:
        """Indices that are drawn together."""
        for start in range(0, self.count, self.batch_size):
            yield range(start, min(start + self.batch_size, self.count))

    def label(self, index: int) -> int:
        """The class of an image: in turn, or drawn uniformly."""
        if self.labels == "balanced":
            return index % self.classes
        seed, slot = torch.tensor(values.seeds(1, self.seed, None)), torch.tensor([[index]])
        return int(noise.uniform(seed, slot, noise.Purpose.LABEL).item() * self.classes)

    def prompt(self, index: int) -> str:
        """The prompt of an image: in turn, so that N images of each of P prompts are N * P images."""
        return self.prompts[index % len(self.prompts)]

    def name(self, index: int) -> str:
        """The file of an image."""
        return f"{index:0{max(6, len(str(self.count - 1)))}d}.png"

    def arguments(self, group: Iterable[int]) -> dict[str, Any]:
        """What the pipeline is called with."""
        if self.prompts:
            subjects: dict[str, Any] = {"prompt": [self.prompt(i) for i in group]}
        else:
            subjects = {"class_labels": [self.label(i) for i in group]}
        seeds = [self.seed + i for i in group]
        return {**subjects, "seed": seeds, "method": self.method, "preset": self.preset, **self.law}

    def texts(self, index: int) -> dict[str, str]:
        """The text chunks of an image's file."""
        subject = {"prompt": self.prompt(index)} if self.prompts else {"class": str(self.label(index))}
        law = {key: value for key, value in self.law.items() if key != "image_size"}
        more = {"settings": dumps(law | ({"quantize": self.quantize} if self.quantize else {}))}
        more |= {"image_size": str(self.law["image_size"])} if "image_size" in self.law else {}
        how = {"seed": str(self.seed + index), "model": self.model, "method": self.method, **more}
        return {**how, **subject, "preset": self.preset, "dtype": self.dtype}

    def json(self) -> dict[str, Any]:
        """The plan as JSON's types."""
        return json.loads(dumps(asdict(self)))


def make(
    preset: Preset,
    method: str | None,
    count: int,
    *,
    recipe: str | None,
    law: dict[str, Any],
    prompts: tuple[str, ...] = (),
    **rest: Any,
) -> Plan:
    """A plan, checked. ValueError in one sentence for what does not go together; `auto` windows are fixed."""
    chosen, method = preset.choose(recipe), method or preset.method
    name = recipe or next(iter(preset.recipes))
    request.asked(method, chosen, law, {}, preset.spec)
    request.image_size(law.get("image_size"), chosen.image_size)
    sampler, settings = registry.method(method, chosen.settings)
    if sampler.block_width(settings) is None:
        method = ":".join([p for p in method.split(":") if not p.startswith("window=")] + [f"window={AUTO_WINDOW}"])
    if bool(prompts) == bool(preset.classes):
        raise ValueError(
            f"{preset.name} draws classes and takes no prompts"
            if preset.classes
            else f"{preset.name} draws what prompts say: name a file of them"
        )
    values.whole(rest.get("seed", 0), "seed")
    for key, value in (("number of images", count), ("batch size", rest.get("batch_size", 1))):
        values.whole(value, key, least=1, most=MOST_IMAGES)
    given = {key: value for key, value in law.items() if value is not None}
    return Plan(
        preset.name,
        method,
        name,
        count,
        labels=chosen.labels,
        classes=preset.classes,
        law=given,
        prompts=prompts,
        **rest,
    )


def _check(found: Plan) -> None:
    """ValueError where a plan that a file holds is none that `make` gives: what it counts is believed behind this."""
    for name, least in (("count", 1), ("batch_size", 1), ("classes", 0)):
        values.whole(getattr(found, name), name, least=least, most=MOST_IMAGES)
    request.image_size(found.law.get("image_size"))
    if not all(isinstance(prompt, str) for prompt in found.prompts) or not (found.prompts or found.classes):
        raise ValueError("expected classes, or prompts that are texts")


def load(path: Path) -> Plan:
    """The plan that a run's manifest holds. ValueError where it is damaged."""
    try:
        told = read_manifest(path)["plan"]
        found = Plan(**{**told, "prompts": tuple(told["prompts"])})
        for each in fields(Plan):
            hint, value = get_type_hints(Plan)[each.name], getattr(found, each.name)
            if not isinstance(value, get_origin(hint) or hint):
                raise TypeError(f"{each.name} is {quoted(value)}")
        _check(found)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"the manifest {path} is damaged: {first_line(error)}") from None
    return found


def read_manifest(path: Path) -> Any:
    """The JSON of a run's manifest, which may hold tens of thousands of prompts."""
    return safe_json.read(path, most=512 << 20)
