"""One pipeline at several sizes: the same weights, and all that was set on it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sized:
    """A pipeline of another size, what it was made of, and drafters by name before they were fitted to it."""

    pipe: Any
    parts: tuple[Any, ...]
    drafters: dict[str, Any] = field(default_factory=dict)


def at(pipe: Any, size: tuple[int, int], make: Callable[[], Any], fit: Callable[[Any], Any]) -> Any:
    """What draws images of another size for `pipe`, which keeps it: made anew where it has other parts by now.

    `fit` gives a drafter at that size, or None where it has none. Caches of all other sizes are released.
    """
    model, kept = pipe.transformer, pipe._sized.get(size)
    own = (value for name, value in vars(model).items() if not name.startswith("_"))
    parts = (model, *model.children(), *own, pipe.tokenizer, pipe.text_tokenizer, pipe.preset)
    if kept is None or list(map(id, kept.parts)) != list(map(id, parts)):
        kept = pipe._sized[size] = Sized(make(), parts)
    found = kept.pipe
    for other in (pipe, *(each.pipe for each in pipe._sized.values())):
        if other is not found:
            other._runners.release()
    found.fast, found.quantize = pipe.fast, pipe.quantize
    found._progress_bar_config = pipe._progress_bar_config
    for name, module in pipe.drafters.items():
        if kept.drafters.get(name) is module:
            continue
        kept.drafters[name] = module
        if (small := fit(module)) is None:
            found.drafters.pop(name, None)
        else:
            found.drafters[name] = small
    named = [name for name, module in pipe.drafters.items() if module is pipe.drafter]
    found.drafter = found.drafters.get(named[0], pipe.drafter) if named else pipe.drafter
    return found
