"""vargen: fast, exact decoding for autoregressive image models.

import vargen
pipe = vargen.load("pocket-llamagen")
image = pipe(class_labels=["beach"], seed=0).images[0]
"""

from typing import TYPE_CHECKING, Any

from vargen.core.version import __version__ as __version__

__all__ = ["accelerate", "list_methods", "list_models", "load", "load_tokenizer", "plan", "release"]

if TYPE_CHECKING:
    from vargen.core.registry import list_methods, list_models
    from vargen.pipelines.accelerate import accelerate, release
    from vargen.pipelines.loading import load, load_tokenizer
    from vargen.pipelines.plan import plan


def __getattr__(name: str) -> Any:
    if name in __all__:  # on demand: they bring torch and diffusers with them
        from vargen.core import registry

        return registry.resolve(registry.PUBLIC[name])
    raise AttributeError(f"module 'vargen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
