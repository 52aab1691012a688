"""vargen: fast, exact decoding for autoregressive image models.

import vargen
pipe = vargen.load("pocket-llamagen")
image = pipe(class_labels=["beach"], method="sjd-coupled", seed=0).images[0]
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load"]

if TYPE_CHECKING:
    from vargen.pipeline import load


def __getattr__(name: str) -> Any:
    if name == "load":  # on demand: the pipeline brings torch and diffusers with it
        from vargen.pipeline import load

        return load
    raise AttributeError(f"module 'vargen' has no attribute {name!r}")
