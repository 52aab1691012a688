"""How the server is set up: the limits of what a client may ask for, and where the server runs."""

import argparse
import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from vargen.core import registry
from vargen.core.numbers import Numbers
from vargen.core.preset import Preset, Sources

POCKET = ("pocket-llamagen", "pocket-var", "pocket-lumina")  # they ship, and an image takes less than a second
KEY_VARIABLE = "VARGEN_API_KEY"
LOOPBACK = "127.0.0.1"
BATCHING = ("continuous", "static")
HOSTS = (LOOPBACK, "0.0.0.0", "::")  # that LitServe listens on
KINDS = {"dtype": ("float32", "bfloat16", "float16"), "quantize": ("int8", "int4")}
NUMBERS = tuple(field.name for field in dataclasses.fields(Numbers))
FILES = ("checkpoint", "tokenizer_checkpoint", "text_encoder", "drafter", "drafter_checkpoint")
KEYS = (*FILES, *KINDS, *NUMBERS)
WORDS = {
    "model": "NAME, or NAME:checkpoint=FILE:dtype=bfloat16; repeat for several",
    "host": "127.0.0.1, or 0.0.0.0 or :: for every address that the machine has",
    "port": "port to listen on, from 1024",
    "device": "cpu or cuda (default: cuda where there is one)",
    "devices": "how many GPUs to use, each with workers of its own (default: all)",
    "workers_per_device": "workers on each GPU, or on the CPU; each loads every model",
    "fast": "auto, off or triton: kernels and replayed forwards",
    "batch_size": "most images drawn together",
    "batch_wait": "seconds that a request waits for company where a worker is free and nobody may join it later",
    "batching": "continuous: images join a batch that runs, where they are drawn token by token; static: none does",
    "max_images": "most images of one request (n) (default: 10, or a batch)",
    "max_pixels": "most pixels of one request, of all its images together",
    "max_prompt": "most characters of a prompt",
    "max_body": "most bytes of a request's body",
    "max_upload": "most bytes of a request's body with pictures (/v1/images/edits)",
    "max_partials": "most pictures on its way that a streamed image gets (partial_images)",
    "max_queue": "most requests that wait; one more is answered 429",
    "max_connections": "most connections at a time; one more is answered 503",
    "deadline": "most seconds that a request may take, the queue included; then it is answered 504",
    "api_key_file": f"file with the key that clients send (default: ${KEY_VARIABLE}, or none)",
    "log_prompts": "write prompts into the log",
    "strict": "refuse sizes that a model does not draw, instead of drawing the nearest",
    "ray": "run on Ray Serve, in a cluster that is there or in one of its own",
    "min_replicas": "with --ray, least replicas that draw",
    "max_replicas": "with --ray, most of them (default: workers-per-device on each GPU of the cluster, or on a CPU)",
    "models_per_replica": "with --ray, models that a replica keeps; for one more, the one unused longest is given up",
    "allowed_origins": "a web page's origin that may ask from a browser, https://example.org, or *; repeat for several",
}


@dataclass(frozen=True)
class Options:
    """Everything that can be set. The flags are made of these fields; `WORDS` says what each is."""

    model: tuple[str, ...] = POCKET
    host: str = LOOPBACK
    port: int = 8000
    device: str | None = None
    devices: int | None = None
    workers_per_device: int = 1
    fast: str = "auto"
    batch_size: int = 16
    batch_wait: float = 0.01
    batching: str = "continuous"
    max_images: int | None = None
    max_pixels: int = 1 << 24
    max_prompt: int = 4000
    max_body: int = 1 << 16
    max_upload: int = 1 << 25
    max_partials: int = 3
    max_queue: int = 128
    max_connections: int = 1024
    deadline: float = 120.0
    api_key_file: Path | None = None
    log_prompts: bool = False
    strict: bool = False
    allowed_origins: tuple[str, ...] = ()
    ray: bool = False
    min_replicas: int = 1
    max_replicas: int | None = None
    models_per_replica: int = 3

    def __post_init__(self) -> None:
        from vargen.core.dispatch import Kernels  # torch is slow to import, and flags are made without it

        if self.batching not in BATCHING:
            raise ValueError(f"got batching {self.batching!r}, expected {' or '.join(BATCHING)}")
        least = {"batch_wait": 0.0, "max_partials": 0, "max_queue": 0, "deadline": 0.1}
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, int | float) and not math.isfinite(value):
                raise ValueError(f"got {name.replace('_', ' ')} {value}, expected a number")
            if isinstance(value, int | float) and value < least.get(name, 0 if isinstance(value, bool) else 1):
                raise ValueError(f"got {name.replace('_', ' ')} {value}, expected more")
        if self.host not in HOSTS or not 1024 <= self.port <= 65535:
            raise ValueError(f"got {self.host}:{self.port}, expected {', '.join(HOSTS)} and a port from 1024 to 65535")
        usual = {field.name: field.default for field in dataclasses.fields(self) if "replica" in field.name}
        if not self.ray and any(getattr(self, name) != value for name, value in usual.items()):
            raise ValueError(f"got one of {', '.join(usual)} without ray, expected none: they are of Ray Serve")
        Kernels.of(self.fast)
        for name, given in map(parsed, self.model):
            for key, value in given.items():
                if key.endswith("checkpoint") and not Path(value).expanduser().exists():
                    raise ValueError(f"there is no {value}, the {key} of model {name}")
        if self.device not in (None, "cpu", "cuda"):
            raise ValueError(f"got device {self.device!r}, expected cpu or cuda")
        if not self.model or len(set(self.names)) < len(self.model):
            raise ValueError(f"got models {', '.join(self.model) or 'none'}, expected one or several, each once")

    @property
    def names(self) -> tuple[str, ...]:
        """The models, without what is to be loaded for them; the first is drawn with unless another is asked for."""
        return tuple(parsed(spec)[0] for spec in self.model)

    @cached_property
    def presets(self) -> dict[str, Preset]:
        """The presets of the models by name, with the numbers of the files that are named."""
        return {name: preset(name, given) for name, given in map(parsed, self.model)}

    @property
    def most_images(self) -> int:
        """Most images of one request."""
        return 10 if self.max_images is None else self.max_images

    def key(self) -> str | None:
        """The key that clients must send: from the file, or else from the environment; None: none.

        It is never a flag: every user of a machine can read the command lines of its processes.
        """
        path = self.api_key_file
        found = os.environ.get(KEY_VARIABLE) if path is None else path.read_text(encoding="utf-8")
        if found is None:
            return None
        found = found.strip()
        if not found or not found.isascii() or not found.isprintable():
            raise ValueError("got an API key that is empty or not printable ASCII")
        return found


def parsed(spec: str) -> tuple[str, dict[str, str]]:
    """A model's name and the arguments of `vargen.load` behind it: `NAME:checkpoint=FILE:dtype=bfloat16`."""
    name, *parts = spec.split(":")
    if name not in registry.MODELS:
        raise ValueError(registry.unknown("model", name, list(registry.MODELS)))
    given = {key: value for key, _, value in (part.partition("=") for part in parts)}
    for key, value in given.items():
        if key not in KEYS or not value:
            raise ValueError(f"got {key!r} in model {spec!r}, expected one of {', '.join(KEYS)}, with =VALUE")
        if key in NUMBERS:
            Numbers(**numbers({key: value}))
        if key in KINDS and value not in KINDS[key]:
            raise ValueError(f"got {key} {value!r} in model {spec!r}, expected {', '.join(KINDS[key])}")
    return name, given


def preset(name: str, given: Mapping[str, str]) -> Preset:
    """A model's preset with the numbers of the files that are named."""
    weights, images = (Path(given[key]).expanduser() if key in given else None for key in FILES[:2])
    return registry.preset(name).of(Sources(weights, images, numbers=Numbers(**numbers(given))))


def numbers(given: Mapping[str, str]) -> dict[str, Any]:
    """The numbers that a model's files are said to have, as `vargen.load` takes them."""
    found = {key: given[key] for key in NUMBERS if key in given}
    return {key: int(value) if value.isascii() and value.isdigit() else value for key, value in found.items()}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each option."""
    hints = get_type_hints(Options)
    for option in dataclasses.fields(Options):
        flag, words = f"--{option.name.replace('_', '-')}", WORDS[option.name]
        kind = next(kind for kind in (*get_args(hints[option.name]), hints[option.name]) if kind is not type(None))
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=words)
        elif get_origin(hints[option.name]) is tuple:
            usual: Any = option.default
            told = f" (default: {', '.join(usual)})" if usual else ""
            parser.add_argument(flag, action="append", help=words + told)
        else:
            told = "" if option.default is None else f" (default: {option.default})"
            parser.add_argument(flag, type=kind, default=option.default, help=words + told)


def read(parser: argparse.ArgumentParser, argv: list[str]) -> Options:
    """The options that flags ask for."""
    given: dict[str, Any] = vars(parser.parse_args(argv))
    for name, value in list(given.items()):
        if isinstance(value, list):
            given[name] = tuple(value)
        elif value is None:
            del given[name]  # its default
    return Options(**given)
