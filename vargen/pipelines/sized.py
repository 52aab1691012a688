"""One pipeline at several sizes: the same weights, and all that was set on it."""

from collections.abc import Callable
from typing import Any


def at(pipe: Any, size: tuple[int, int], make: Callable[[], Any], fit: Callable[[Any], Any]) -> Any:
    """What draws images of another size for `pipe`, which keeps it: made anew where its tokenizers are others by now.

    `fit` gives a drafter at that size, or None where it has none. Caches of all other sizes are released.
    """
    found, parts = pipe._sized.get(size), (pipe.tokenizer, pipe.text_tokenizer)
    if found is None or (found.tokenizer, found.text_tokenizer) != parts:
        found = pipe._sized[size] = make()
    for other in (pipe, *pipe._sized.values()):
        if other is not found:
            other._runners.release()
    found.fast, found.quantize = pipe.fast, pipe.quantize
    found._progress_bar_config = pipe._progress_bar_config
    for name, module in pipe.drafters.items():
        if name not in found.drafters and (small := fit(module)) is not None:
            found.drafters[name] = small
    named = [name for name, module in pipe.drafters.items() if module is pipe.drafter]
    found.drafter = found.drafters.get(named[0], pipe.drafter) if named else pipe.drafter
    return found
