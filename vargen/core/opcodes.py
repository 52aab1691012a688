"""A pickle of weights, followed opcode by opcode before torch reads it; nothing is built.

What weights never need is refused: calls beside those that rebuild tensors, keys that are no plain values (a tuple of
doubled references takes longer than anyone's life to hash), deep nesting, tensors larger than what is stored of them.
"""

import math
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import torch

from vargen.core.messages import shown

MOST_BYTES, MOST_OPCODES, DEEPEST = 64 << 20, 4_000_000, 100
TIMES, MOST_BESIDE = 4, 1 << 30  # how often a byte may be in tensors (of tied weights, say), and bytes beside that
BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
BYTES |= {"Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1, "QInt8": 1, "QUInt8": 1, "QInt32": 4}
KEYS = (str, bytes, int, float, type(None))


class Refused(Exception):
    """A file that asks for something; the message goes behind its name."""


class Table(dict[Any, Any]):
    """A dictionary, or an object of data by its attributes."""

    depth = 1


class Row(list[Any]):
    """A list."""

    depth = 1


class Parts(tuple[Any, ...]):
    """A tuple."""

    depth = 1


@dataclass(frozen=True)
class Global:
    """A name that is not looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers that the file has: so many bytes, so many each."""

    size: int
    each: int


@dataclass(frozen=True)
class Shape:
    """A tensor that torch would build."""

    shape: tuple[int, ...]


class Scan:
    """One pickle, followed by `run`. `check` raises where the file has less than so many bytes for a storage's key."""

    def __init__(self, check: Callable[[object, int], None]) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[Any, Storage] = {}
        self.copied, self.spread, self.check = 0, 0, check

    def run(self, data: bytes | IO[bytes]) -> Any:
        """What stands at the end."""
        for count, (opcode, argument, place) in enumerate(pickletools.genops(data)):
            if count > MOST_OPCODES or (place or 0) > MOST_BYTES:
                raise Refused(
                    f"has more beside its tensors than {MOST_OPCODES} steps in {MOST_BYTES} bytes: it was refused"
                )
            step = self.STEPS.get(opcode.name)
            if step is None:
                raise Refused(f"asks for {opcode.name}, which weights do not need: it was refused")
            step(self, argument)
        if self.spread > TIMES * sum(storage.size for storage in self.storages.values()) + MOST_BESIDE:
            raise Refused(f"has tensors of {self.spread} bytes in all, of far fewer that are stored: it was refused")
        return self.stack.pop()

    def skip(self, _: Any) -> None:
        """Protocol and end."""

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def name(self, words: str) -> None:
        module, name = words.split(" ", 1)
        module = "builtins" if module == "__builtin__" else module  # protocol 2 has the names of Python 2
        self.stack.append(Global(f"{module}.{name}"))

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def pop(self, count: int) -> list[Any]:
        """The last `count` values; of 0, those behind the last mark."""
        at = len(self.stack) - count if count else self.marks.pop()
        if at < 0:
            raise LookupError("it takes more values than there are")
        taken = self.stack[at:]
        del self.stack[at:]
        return taken

    def tuple_of(self, count: int) -> None:
        items = self.pop(count)
        made = Parts(items)
        made.depth = deeper(items)
        self.stack.append(made)

    def extend(self, count: int) -> None:
        items, row = self.pop(count), self.stack[-1]
        if not isinstance(row, Row):
            raise ValueError("it appends to what is no list")
        row.extend(items)
        row.depth = max(row.depth, deeper(items))

    def set_items(self, count: int) -> None:
        items, table = self.pop(count), self.stack[-1]
        if not isinstance(table, Table) or len(items) % 2:
            raise ValueError("it sets items of what is no dictionary")
        for key in items[::2]:
            if not isinstance(key, KEYS):
                raise Refused("has a key that is no plain value, which weights do not need: it was refused")
        table.update(zip(items[::2], items[1::2], strict=True))
        table.depth = max(table.depth, deeper(items))

    def storage(self, _: Any) -> None:
        (named,) = self.pop(1)
        if not isinstance(named, Parts) or len(named) < 5 or named[0] not in ("storage", b"storage"):
            raise ValueError("it names no storage")
        kind, key, _, count, *view = named[1:]
        each = BYTES.get(kind.name.rsplit(".", 1)[-1].removesuffix("Storage")) if isinstance(kind, Global) else None
        if each is None or not isinstance(key, KEYS) or not _whole([count]) or view not in ([], [None]):
            raise ValueError("it has a storage of no known kind")
        if key not in self.storages:  # torch takes the first of a key for all
            self.check(key, count * each)
            self.storages[key] = Storage(count * each, each)
        self.stack.append(self.storages[key])

    def new(self, _: Any) -> None:
        kind, arguments = self.pop(2)
        if kind != Global("argparse.Namespace") or arguments != ():
            raise Refused(_asks(kind))
        self.stack.append(Table())

    def build(self, _: Any) -> None:
        """Attributes of an object, which only data may have."""
        (state,), into = self.pop(1), self.stack[-1]
        if not isinstance(into, Table) or not isinstance(state, Table):
            raise Refused("sets attributes of what is no data: it was refused")
        self.copies(state)

    def reduce(self, _: Any) -> None:
        kind, arguments = self.pop(2)
        self.stack.append(self.call(kind, arguments))

    def copies(self, items: Sequence[Any] | Table) -> None:
        """Count what a call would copy: the same, copied again and again, needs no long file."""
        self.copied += len(items)
        if self.copied > MOST_OPCODES:
            raise Refused(f"copies more than {MOST_OPCODES} items, which weights do not need: it was refused")

    def call(self, kind: Any, arguments: Any) -> Any:
        """What a call would give, of the few that weights need."""
        name = kind.name if isinstance(kind, Global) and isinstance(arguments, Parts) else ""
        if name == "torch._tensor._rebuild_from_type_v2":
            return self.call(arguments[0], arguments[2])
        if name.startswith("torch._utils._rebuild_"):
            return self.tensor(name.removeprefix("torch._utils._rebuild_"), kind, arguments)
        if name == "collections.OrderedDict" and not arguments:
            return Table()
        first = arguments[0] if name and arguments else ()
        if name == "collections.Counter" and (isinstance(first, Table) or not arguments):
            self.copies(first)
            return Table()
        if name == "builtins.set" and isinstance(first, Row) and all(isinstance(item, KEYS) for item in first):
            self.copies(first)
            return Row()
        if name == "torch.Size" and isinstance(first, Parts):
            self.copies(first)
            return first
        if name == "torch.nn.parameter.Parameter" and isinstance(first, Shape):
            return first
        if name in ("torch.device", "torch.serialization._get_layout", "builtins.complex"):
            return Global(name)
        raise Refused(_asks(kind))

    def tensor(self, how: str, kind: Global, arguments: Parts) -> Shape:
        """Of a storage that has room for it; around another tensor; or of none."""
        if how in ("parameter", "parameter_with_state") and isinstance(arguments[0], Shape):
            return arguments[0]
        if how in ("meta_tensor_no_storage", "sparse_tensor"):
            size = arguments[1] if how.startswith("meta") else arguments[1][2]
            return Shape(_sizes(size))
        if how not in ("tensor", "tensor_v2", "tensor_v3", "qtensor"):
            raise Refused(_asks(kind))
        storage, offset, size, strides = arguments[:4]
        size, strides = _sizes(size), _sizes(strides)
        if not isinstance(storage, Storage) or not _whole([offset]) or len(size) != len(strides):
            raise ValueError("it has a tensor of no storage")
        each = _each(arguments[6]) if how == "tensor_v3" else storage.each
        last = offset + sum((n - 1) * by for n, by in zip(size, strides, strict=True))
        if all(size) and (last + 1) * each > storage.size:
            raise RuntimeError(f"it has a tensor {size}, of which only {storage.size} bytes are there")
        self.spread += math.prod(size) * each
        return Shape(size)

    STEPS: ClassVar[dict[str, Callable[["Scan", Any], None]]] = {
        **dict.fromkeys(("PROTO", "STOP"), skip),
        **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"), push),
        "NONE": lambda scan, _: scan.push(None),
        "NEWFALSE": lambda scan, _: scan.push(False),
        "NEWTRUE": lambda scan, _: scan.push(True),
        "EMPTY_TUPLE": lambda scan, _: scan.push(Parts()),
        "EMPTY_LIST": lambda scan, _: scan.push(Row()),
        "EMPTY_DICT": lambda scan, _: scan.push(Table()),
        "TUPLE": lambda scan, _: scan.tuple_of(0),
        "TUPLE1": lambda scan, _: scan.tuple_of(1),
        "TUPLE2": lambda scan, _: scan.tuple_of(2),
        "TUPLE3": lambda scan, _: scan.tuple_of(3),
        "APPEND": lambda scan, _: scan.extend(1),
        "APPENDS": lambda scan, _: scan.extend(0),
        "SETITEM": lambda scan, _: scan.set_items(2),
        "SETITEMS": lambda scan, _: scan.set_items(0),
        "GLOBAL": name,
        "MARK": mark,
        "BINPERSID": storage,
        "NEWOBJ": new,
        "BUILD": build,
        "REDUCE": reduce,
        **dict.fromkeys(("BINPUT", "LONG_BINPUT"), put),
        **dict.fromkeys(("BINGET", "LONG_BINGET"), get),
    }


def deeper(items: Sequence[Any]) -> int:
    """How deep a container of `items` nests."""
    depth = 1 + max((item.depth for item in items if isinstance(item, Table | Row | Parts)), default=0)
    if depth > DEEPEST:
        raise Refused(f"nests more than {DEEPEST} deep, which weights do not need: it was refused")
    return depth


def _asks(kind: Any) -> str:
    name = kind.name if isinstance(kind, Global) else type(kind).__name__.lower()
    return f"asks for {shown(name)}: it was refused and nothing in it was run"


def _whole(values: Sequence[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, Parts) or not _whole(values) or len(values) > 64:
        raise ValueError("it has a tensor of no shape")
    return tuple(values)


def _each(kind: Any) -> int:
    found = getattr(torch, kind.name.removeprefix("torch."), None) if isinstance(kind, Global) else None
    if not isinstance(found, torch.dtype):
        raise ValueError("it has a tensor of no known type")
    return found.itemsize
