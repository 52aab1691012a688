"""What a message may show of what came from outside: short, and on one line."""

import reprlib

MOST = 80  # characters of a name that a file gives


class _Shortly(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:  # Python writes none of more than 4,300 digits
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"a number of {x.bit_length()} bits"


_shortly = _Shortly()
_shortly.maxstring = _shortly.maxother = _shortly.maxlong = MOST
_shortly.maxlevel = 3


def escaped(text: str, keep: str = "") -> str:
    """`text` with whatever is no printable character, but those of `keep`, written as an escape."""
    if text.isprintable():
        return text
    shown = (c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(shown)


def shown(value: object, most: int = MOST) -> str:
    """A text that a file holds, or another value of it as Python writes it, cut and escaped."""
    text = value if isinstance(value, str) else _shortly.repr(value)
    return escaped(text if len(text) <= most else f"{text[:most]}...")


def quoted(value: object) -> str:
    """The same, a text too as Python writes it."""
    return shown(_shortly.repr(value))


def first_line(error: BaseException, most: int = 400) -> str:
    """What an error says in its first line, or its name where it says nothing."""
    first, *more = str(error).strip()[: 10 * most].splitlines() or [type(error).__name__]
    if first.endswith(":") and more:
        first = f"{first} {more[0].strip()}"
    return shown(first.rstrip("."), most)
