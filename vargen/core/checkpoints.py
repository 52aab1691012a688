"""Reading and writing weights: strict about keys and shapes, never running code from a file, atomic on disk.

Complaints name the keys as the file has them.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vargen.core.atomic import write_atomically
from vargen.core.joined import owners
from vargen.core.layout import PLAIN, Layout
from vargen.core.messages import shown
from vargen.core.weight_files import Place, find, is_dense, is_mapped, stamp, tensors

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Misfit(ValueError):
    """Weights that are not a module's; `problems` has all of them, the message the first few."""

    def __init__(self, path: Path, name: str, problems: list[str], *, most: int = 12) -> None:
        self.problems = problems
        more = f"; and {len(problems) - most} more" if len(problems) > most else ""
        super().__init__(f"the weights file {path} does not fit {name}: {'; '.join(problems[:most])}{more}")


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors."""
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, dict(metadata or {})))


def load_into(
    module: nn.Module,
    path: Path,
    layout: Layout = PLAIN,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Give `module`, best built on the meta device, the weights of a file, in `dtype` on `device`.

    Strict: `Misfit`, a ValueError, knows every missing, unexpected or misshapen key; another one says that the file was
    changed meanwhile. Beside what the weights themselves take on `device`, at most about a thirty-second of the file is
    held at a time, and what a module joins.
    """
    state, expected = module.state_dict(), layout.expected(module)
    before = stamp(path)
    place = find(path, layout.under, expected)
    if place.prefix:
        warnings.warn(f"vargen: {path}: took {place.prefix} off every key, of which none fits as it is", stacklevel=2)
    mapped = _mapped(place, before)
    _check(type(module).__name__, mapped, expected, layout, path)
    sizes = {key: mapped[key].nbytes for key in expected}
    del mapped
    limit = sum(sizes.values()) // (32 if is_mapped(path) else 1)
    _make_room(module, dtype, device)
    for portion in _portions(_units(module, expected), sizes, limit):
        mapped = _mapped(place, before)  # anew for each portion, so that the pages of the last one are given back
        for owner, keys in portion:
            given = {key: mapped.pop(key) for key in keys}
            loaded = dict(_parts(given, expected, state, path, dtype, device))
            cut = len(owner) + 1 if owner else 0
            named = {name[cut:]: value for name, value in loaded.items()}
            module.get_submodule(owner).load_state_dict(named, strict=False)  # that all are there was looked at
            del given, loaded, named
        del mapped
    _hold(path, before)


def _mapped(place: Place, before: object) -> dict[str, Tensor]:
    """The weights. ValueError where they are not the ones that were there before: two files would be mixed."""
    found = tensors(place)
    _hold(place.path, before)
    return found


def _hold(path: Path, before: object) -> None:
    if stamp(path) != before:
        raise ValueError(f"the weights file {path} was changed while it was read: load it again")


def _parts(
    given: Mapping[str, Tensor],
    expected: Mapping[str, tuple[list[str], tuple[int, ...]]],
    state: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Iterator[tuple[str, Tensor]]:
    """Our keys of what a file has, with values; ValueError where they are not finite."""
    for key, value in given.items():
        ours = expected[key][0]
        parts = value.split([len(state[one]) for one in ours]) if len(ours) > 1 else [value]
        for one, part in zip(ours, parts, strict=True):
            cast = part.to(device, dtype).reshape(state[one].shape)
            if not is_finite(cast):
                raise ValueError(f"the weights file {path} has NaN or infinity in {shown(key)}, read as {dtype}")
            yield one, cast


def _make_room(module: nn.Module, dtype: torch.dtype, device: torch.device | str) -> None:
    """All weights at once, before any is read: what reading holds for a moment then leaves no holes between them."""
    for owner in module.modules():
        for name, value in [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]:
            weight = isinstance(value, nn.Parameter)
            if weight or value.is_meta:  # buffers that are there were computed
                room = torch.empty_like(value, dtype=dtype, device=device)
                setattr(owner, name, nn.Parameter(room, value.requires_grad) if weight else room)


def _units(module: nn.Module, expected: Mapping[str, tuple[list[str], tuple[int, ...]]]) -> list[tuple[str, list[str]]]:
    """The file's keys, each alone or with those that it is joined with, behind the module around what they are of.

    That module, `layers.3.attention` or the root's "", is the one whose hooks turn or join them.
    """
    joins = owners(module)
    out: dict[tuple[str, str], list[str]] = {}
    for key, (ours, _) in expected.items():
        shared = zip(*(one.split(".")[:-2] for one in ours), strict=False)
        around = ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, shared))
        unit = (joins[ours[0]], "") if ours[0] in joins else (around, key)
        out.setdefault(unit, []).append(key)
    return [(around, keys) for (around, _), keys in out.items()]


def is_finite(value: Tensor) -> bool:
    """Whether all numbers are. A sum, which is not where one of them is not, costs less than to look at each."""
    if not value.is_floating_point() or value.numel() == 0 or bool(value.sum().isfinite()):
        return True
    return all(bool(end.isfinite()) for end in torch.aminmax(value))  # large ones may add up to infinity


def _is_zero(value: Tensor) -> bool:
    """Whether all numbers are, of a tensor that is not larger than what is stored of it."""
    return is_dense(value) and value.nbytes <= value.untyped_storage().nbytes() and not value.any()


def _portions(
    units: Iterable[tuple[str, list[str]]], sizes: Mapping[str, int], limit: int
) -> Iterator[list[tuple[str, list[str]]]]:
    """Units in groups of about `limit` bytes, at least one each."""
    group, held = [], 0
    for unit in units:
        size = sum(sizes[key] for key in unit[1])
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(unit)
        held += size
    if group:
        yield group


def _check(
    name: str,
    found: dict[str, Tensor],
    expected: dict[str, tuple[list[str], tuple[int, ...]]],
    layout: Layout,
    path: Path,
) -> None:
    if not found.keys() & expected.keys():
        first, wanted = shown(next(iter(found))), next(iter(expected))
        raise ValueError(
            f"the weights file {path} is none of {name}'s: not one key fits (it begins with {first}, "
            f"expected keys such as {wanted})"
        )
    problems, ignored = [], re.compile(layout.ignored or r"(?!)")
    for key, (_, shape) in expected.items():
        if key in found:
            value = found[key]
            if not is_dense(value):
                problems.append(f"{key} is no plain dense tensor")
            elif value.shape != shape:
                problems.append(f"{key} is {tuple(value.shape)}, expected {shape}")
            elif value.dtype not in FLOATS:
                problems.append(f"{key} is {value.dtype}, expected floating-point numbers")
    problems += [f"missing {key}" for key in expected if key not in found]
    empty = re.compile(layout.zeros or r"(?!)")
    full = (key for key, value in found.items() if empty.fullmatch(key) and not _is_zero(value))
    problems += [f"{shown(key)} is not all zeros" for key in full]
    problems += [f"unexpected {shown(key)}" for key in found if key not in expected and not ignored.fullmatch(key)]
    if problems:
        raise Misfit(path, name, problems)
