"""Dataclasses of numbers and texts from JSON that comes from outside: strict about names and kinds."""

from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from vargen.core.messages import quoted


def as_dataclass(kind: Any, found: Any) -> Any:
    """A dataclass of numbers, texts, tuples of them and other such classes from JSON. ValueError says what is wrong."""
    if not isinstance(found, dict):
        raise ValueError(f"got {quoted(found)} for a {kind.__name__}, expected an object")
    hints, names = get_type_hints(kind), {field.name for field in fields(kind)}
    if wrong := sorted(map(str, found.keys() - names)):
        raise ValueError(f"got {quoted(wrong[0])}, which a {kind.__name__} does not have")
    for field in fields(kind):
        if field.name not in found and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"got no {field.name} of a {kind.__name__}")
    return kind(**{name: _as(hints[name], value, name) for name, value in found.items()})


def _as(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        return as_dataclass(hint, value)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"got {name} {quoted(value)}, expected a list")
        inner = get_args(hint)
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(each) != len(value):
            raise ValueError(f"got {name} {quoted(value)}, expected {len(each)} values")
        return tuple(_as(one, part, name) for one, part in zip(each, value, strict=True))
    if hint is dict and isinstance(value, dict):
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (hint is int and value < 0):
        raise ValueError(f"got {name} {quoted(value)}, expected {hint.__name__}")
    return value
