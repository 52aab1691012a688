"""What a user touches: `vargen.load(name)` gives a diffusers pipeline that draws, or streams, images.

Here is what all kinds of model share; `raster.py`, `next_scale.py` and `continuous.py` add how theirs are drawn.
"""

import sys
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vargen.core import quantize
from vargen.core.generation import Generation
from vargen.core.machine import ordinary, peak_memory, plainly, reset_peak_memory, versions
from vargen.core.preset import Preset
from vargen.core.trace import Trace
from vargen.engine.clock import Clock, Counts
from vargen.engine.runners import Runners
from vargen.models.prompted import against
from vargen.pipelines import drawn, habits, options, request, saving, values
from vargen.pipelines.kept import Kept
from vargen.pipelines.options import Options
from vargen.pipelines.partial import Partial
from vargen.pipelines.pictures import Pictures, joined
from vargen.pipelines.request import Request
from vargen.pipelines.sized import Sized


class Pipeline(Pictures, Kept):
    """Components `transformer` and `tokenizer` (of images) as in any diffusers pipeline, and `text_encoder` with
    `text_tokenizer` where the model takes prompts.
    """

    kind: ClassVar[str]  # of the models that it draws with
    options_type: ClassVar[type[Options]]  # what it can be asked
    unconditional: ClassVar[bool] = True  # whether class -1 stands for any
    _optional_components: ClassVar = ["tokenizer", "text_encoder", "text_tokenizer"]

    def __init__(
        self,
        transformer: Any,
        tokenizer: nn.Module | None,
        text_encoder: nn.Module | None = None,
        text_tokenizer: Any = None,
        *,
        preset: Preset | Mapping[str, Any] | None = None,
    ) -> None:
        """`preset` may also be as a folder has it, see `save_pretrained`."""
        super().__init__()
        if transformer.spec.kind != self.kind:
            raise ValueError(
                f"a {type(self).__name__} draws with {self.kind} models, not with a {transformer.spec.kind} one"
            )
        self.register_modules(
            transformer=transformer, tokenizer=tokenizer, text_encoder=text_encoder, text_tokenizer=text_tokenizer
        )
        self.preset = saving.preset_of(preset, transformer)
        self.nats_per_token: float | None = None  # cross-entropy on held-out images, where it is known
        self.drafter: nn.Module | None = None  # what drafts, or refines, where a method wants that and names none
        self.drafters: dict[str, nn.Module] = {}  # by name
        self.fast = "auto"  # kernels where they can run; off: plain PyTorch; triton: kernels, or an error
        self.quantize: str | None = None  # how the transformer's layers are stored, where they were quantised
        self._progress_bar_config: dict[str, Any] = {}  # as diffusers' `set_progress_bar_config` leaves it
        self.fingerprints: dict[bool, tuple[Any, str]] = {}  # of the weights, with and without the text encoder's
        self._runners = Runners()
        self._sized: dict[tuple[int, int], Sized] = {}  # with the same weights, by size
        self._costs: dict[Any, dict[int, float]] = {}  # measured seconds per step, by all that they depend on

    @property
    def dtype(self) -> torch.dtype:
        """The transformer's."""
        return self.transformer.dtype

    def to(self, *arguments: Any, **options: Any) -> Any:
        """Move to a device, cast to a dtype. Only the transformer is cast: the image tokenizer works in float32.

        ValueError where a quantised transformer would be cast: it is loaded in the dtype that is wanted.
        """
        kinds = [value for value in (*arguments, *options.values()) if isinstance(value, torch.dtype)]
        places = [value for value in arguments if not isinstance(value, torch.dtype)]
        options = {key: value for key, value in options.items() if not isinstance(value, torch.dtype)}
        if self.quantize is not None and any(kind != self.dtype for kind in kinds):
            raise ValueError(
                f"a transformer in {self.quantize} is not cast: load it anew with the dtype that is wanted"
            )
        self._runners.clear()  # graphs read the weights where they are
        if places or options:
            super().to(*places, **options)
        for kind in kinds:
            self.transformer.to(kind)
        return self

    @property
    def components(self) -> dict[str, Any]:
        """What `type(pipe)(**pipe.components)` makes the same pipeline of: its recipes are among it."""
        return {**super().components, "preset": self.preset}

    @property
    def versions(self) -> dict[str, str]:
        """What runs, and on what."""
        stored = {} if self.quantize is None else {"torchao": quantize.version()}
        return versions(self.transformer.device) | stored

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called; empty where they have no names or the model takes prompts."""
        return tuple(self.preset.names())

    @abstractmethod
    def __call__(self, *arguments: Any, **options: Any) -> Generation:
        """Draw images."""

    @abstractmethod
    def stream(self, *arguments: Any, **options: Any) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each forward; stop iterating to cancel."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels, as decoded."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes that it can draw, its own first."""
        return (self.size,)

    @property
    def edits(self) -> Literal["repaint", "read"] | None:
        """What it makes of pictures that are handed in: it repaints them under a mask, or reads them with a prompt."""
        return None

    @property
    def pixels(self) -> int:
        """Of an image along one side (its width), as decoded."""
        return self.size[1]

    @abstractmethod
    def encode_prompt(self, prompt: Sequence[str] | str, image: Any = None) -> tuple[Tensor, Tensor]:
        """`prompt_embeds` of prompts, and their mask."""

    def read_prompts(self, prompt: Sequence[str] | str, **beside: Any) -> tuple[Tensor, Tensor]:
        """`prompt_embeds` of prompts and their mask, with what else of a call is read: `negative_prompt`, `image`."""
        return self._read(self.options_type(prompt=prompt, **beside))

    def _asked(
        self, class_labels: Any, given: Mapping[str, Any], *, stream: bool = False
    ) -> "tuple[Pipeline, Request, Any]":
        """The pipeline that draws what was asked for, the request, checked and embedded, and its options."""
        texts = [class_labels] if isinstance(class_labels, str) else class_labels
        if not self.transformer.spec.classes and request.are_texts(texts) and given.get("prompt") is None:
            class_labels, given = None, {**given, "prompt": class_labels}  # pipe("a red boat"), as in diffusers
        wanted, settings = options.read(self.options_type, class_labels, given, stream=stream)
        pipe = self._at(wanted)
        habits.check(self.preset.name, request.named(wanted.method, self.preset), settings, self.options_type)
        return pipe, pipe._request(wanted, settings), wanted

    def _at(self, wanted: Any) -> "Pipeline":
        """This pipeline, for images of the size that is wanted."""
        return self

    def _request(self, wanted: Any, settings: dict[str, Any]) -> Request:
        recipe, clock = self.preset.choose(wanted.preset), Clock(self.transformer.device)
        named = request.named(wanted.method, self.preset)
        method = request.asked(named, recipe, wanted.law, settings, self.transformer.spec)
        if wanted.image_size is not None and self.size[0] != self.size[1]:
            raise ValueError(f"got image size {wanted.image_size}, a square, for images that are none")
        how = request.output(recipe, wanted.batch_size, wanted.image_size, wanted.output_type)
        values.flag(wanted.return_dict, "return_dict")
        free = values.flag(wanted.free_size, "free_size")
        inputs = self._inputs(wanted)
        clock.lap("text" if wanted.prompt is not None else "")
        tell = request.teller(wanted.callback_on_step_end, wanted.callback_on_step_end_tensor_inputs)
        seeds = values.seeds(len(inputs[0]), wanted.seed, wanted.generator)
        method = replace(method, drawn=drawn.of(self, method, wanted, inputs))
        return Request(method, inputs, seeds, clock=clock, tell=tell, free_size=free, **how)

    def _inputs(self, wanted: Any) -> tuple[Tensor, ...]:
        """What is drawn, a row per image: labels (B,), or a prompt as the model takes it and its mask."""
        return request.subjects(self, wanted)

    def _read(self, wanted: Any) -> tuple[Tensor, Tensor]:
        """The prompt, read, and what guidance is against."""
        read = self.encode_prompt(wanted.prompt)
        others = request.negatives(wanted.negative_prompt, len(read[0]))
        return self._against(read, others) if others else read

    def _against(self, read: tuple[Tensor, Tensor], others: dict[int, str]) -> tuple[Tensor, Tensor]:
        """Prompts that were read, some of them with another text for guidance to be against, by their numbers."""
        return against(read, self.encode_prompt(list(others.values())), list(others))

    def _checked(self, states: Any, mask: Any) -> tuple[Tensor, Tensor]:
        """Encoded prompts that somebody hands in, where the model reads prompts itself."""
        return self.transformer.checked(states, mask)

    @abstractmethod
    def _decode(
        self, method: Any, inputs: tuple[Tensor, ...], seeds: list[int], image_size: int | None
    ) -> Generator[Partial, None, None]:
        """Decode one batch: `inputs` have a row per image."""

    def _draw(self, asked: Request) -> Generation:
        """Decode all images, `batch_size` at a time."""
        if asked.output_type != "latent":
            _ = self.image_tokenizer  # before anything is drawn
        spec, parts, seeds = self.transformer.spec, [], asked.seeds
        with tqdm(total=len(seeds) * spec.slots, unit="token", **self._bar()) as bar:
            for start in range(0, len(seeds), asked.batch_size):
                final, some = None, slice(start, start + asked.batch_size)
                inputs = tuple(part[some] for part in asked.inputs)
                for step, final in enumerate(self._steps(asked.method, inputs, seeds[some], asked.image_size)):
                    bar.update(start * spec.slots + sum(final.settled) - bar.n)
                    asked.tell(self, step, final)
                assert final is not None
                parts.append(self._finish(final, asked.output_type))
        images = joined([part.images for part in parts], asked.output_type)
        trace = Trace.merge([part.trace for part in parts])
        trace.drawn = asked.method.drawn
        for name, seconds in asked.clock.seconds().items():
            trace.seconds |= {name: seconds, "total": trace.seconds["total"] + seconds}
        return Generation(images, torch.cat([part.tokens for part in parts]), trace)

    def _answer(self, asked: Request, wanted: Any) -> Any:
        """What a call gives."""
        with plainly(self.transformer.device):
            out = self._draw(asked)
        images, tokens = ordinary(out.images), ordinary(out.tokens)
        return Generation(images, tokens, out.trace) if wanted.return_dict else (images,)

    def _steps(
        self, method: Any, inputs: tuple[Tensor, ...], seeds: list[int], image_size: int | None
    ) -> Iterator[Partial]:
        """A batch, step by step; what the caller does between them (autocast, say) does not reach into them."""
        steps, end = self._decode(method, inputs, seeds, image_size), object()
        try:
            while True:
                with plainly(self.transformer.device):
                    partial: Any = next(steps, end)
                if partial is end:
                    return
                yield partial
        finally:
            steps.close()

    def _bar(self) -> dict[str, Any]:
        nowhere = {"disable": True} if sys.stderr is None else {}  # as in a process without a terminal
        return {"leave": False, "disable": None, **self._progress_bar_config, **nowhere}

    def _begin(self, method: Any, seeds: list[int]) -> Trace:
        """A batch's trace; memory is counted from here on."""
        reset_peak_memory(self.transformer.device)
        return self.trace(method, seeds)

    def trace(self, method: Any, seeds: list[int]) -> Trace:
        """What is known of a batch before it is drawn."""
        settings = method.described | ({} if self.quantize is None else {"quantize": self.quantize})
        return Trace(self.preset.name, method.name, len(seeds), seeds=seeds, settings=settings, drawn=method.drawn)

    def _fill(self, trace: Trace, clock: Clock, counts: Counts) -> None:
        """What the loop counted."""
        slots, each = self.transformer.spec.slots, counts.per_image
        trace.forwards, trace.windows, trace.cache_bytes = counts.forwards, counts.widths, counts.cache_bytes
        trace.kernels = self._runners.notes | counts.kernels.ran
        trace.forwards_per_image = sum(each) / len(each)
        trace.tokens_per_forward = sum(slots / n for n in each if n) / len(each)
        trace.seconds, trace.versions = clock.seconds(), self.versions

    def _finish(self, final: Partial, output_type: str) -> Generation:
        trace, clock = final.trace, Clock(self.transformer.device)
        images = final.tokens if output_type == "latent" else final.images(output_type)
        clock.lap("decode")
        seconds = trace.seconds | clock.seconds()
        trace.seconds = {**seconds, "total": sum(seconds.values())}
        trace.peak_memory_bytes = peak_memory(self.transformer.device)
        return Generation(images, final.tokens, trace)
