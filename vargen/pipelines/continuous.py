"""Drawing with models of continuous tokens: MAR, FlowAR, xAR, Harmon."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vargen.core import registry
from vargen.core.dispatch import Kernels
from vargen.engine import loops
from vargen.engine.drafters import LatentModelDrafter
from vargen.engine.runners import ReplayedLatents
from vargen.engine.staying import Staying
from vargen.engine.threads import Threads
from vargen.models.contract import embed
from vargen.pipelines import choose_drafter, request, sized, values
from vargen.pipelines.base import Pipeline
from vargen.pipelines.options import ContinuousOptions, Options, takes
from vargen.pipelines.partial import Partial
from vargen.pipelines.request import LatentMethod, Request
from vargen.samplers.contract import ContinuousSampler, LatentTask

LEAST, MOST = 16, 4096  # tokens of an image, for models that draw any size


class ContinuousPipeline(Pipeline):
    """Draws images with a continuous model; `tokenizer` is its autoencoder.

    One that takes prompts reads them itself: it has a `text_tokenizer` and no `text_encoder`.
    """

    kind: ClassVar[str] = "continuous"
    options_type: ClassVar[type[Options]] = ContinuousOptions

    @takes(ContinuousOptions)
    @torch.inference_mode()
    def __call__(self, class_labels: Any = None, **given: Any) -> Any:
        """Draw `num_images_per_prompt` images of each class, class -1 being the unconditional one, or of each prompt.

        `prompt_embeds` are token ids (B, 2, T), of the prompt and of what guidance is against, with their mask; both
        from `encode_prompt`. `guidance_scale` is off at 1; how it grows as an image fills is the method's `schedule`.
        `temperature` is of the noise in each diffusion step, and top-k and top-p there are none. A preset may also set
        a method's own settings, such as `iterations`. Output type latent gives tokens (B, S, C), scaled as the
        transformer has them. ValueError in one sentence for anything out of range.
        """
        pipe, asked, wanted = self._asked(class_labels, given)
        return pipe._answer(asked, wanted)

    @takes(ContinuousOptions, stream=True)
    def stream(self, class_labels: Any = None, **given: Any) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each group; stop iterating to cancel."""
        pipe, asked, _ = self._asked(class_labels, given, stream=True)
        return pipe._steps(asked.method, asked.inputs, asked.seeds, asked.image_size)

    def _request(self, wanted: ContinuousOptions, settings: dict[str, Any]) -> Request:
        if wanted.num_inference_steps is not None:
            name = registry.sampler(request.named(wanted.method, self.preset).split(":")[0]).inference_steps
            if name in settings:
                raise ValueError(f"got both num_inference_steps and {name}, which are the same: expected one of them")
            count = values.whole(wanted.num_inference_steps, "num_inference_steps", least=1)
            settings = {**settings, name: count}
        return super()._request(wanted, settings)

    def encode_prompt(self, prompt: Sequence[str] | str, image: Any = None) -> tuple[Tensor, Tensor]:
        """Token ids (B, 2, T) and the mask (B, 2, T) of the words, for `prompt_embeds` and its mask."""
        if image is not None:
            raise ValueError(f"{self.preset.name} reads no pictures")
        if self.text_tokenizer is None:
            raise ValueError(f"{self.preset.name} has no text tokenizer here: it was never loaded")
        return self.transformer.tokenize(values.prompts(prompt), self.text_tokenizer)

    def release_text_encoder(self) -> None:
        """Nothing to give back: the transformer itself reads prompts, and a tokenizer is small."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels, as decoded."""
        (rows, columns), factor = self.transformer.grid, self.image_tokenizer.factor
        return rows * factor, columns * factor

    def at(self, height: int | None = None, width: int | None = None) -> "ContinuousPipeline":
        """This pipeline, with the same weights, for images of another size in pixels.

        ValueError where the model draws one size, or none that is asked for.
        """
        if (height, width) == (None, None):
            return self
        high = self.size[0] if height is None else values.whole(height, "height", least=1)
        wide = self.size[1] if width is None else values.whole(width, "width", least=1)
        factor, name = self.image_tokenizer.factor, self.preset.name
        if (high, wide) == self.size:
            return self
        if not self.transformer.any_grid:
            raise ValueError(f"{name} draws no {wide}x{high} pixels: all its images are {self.size[1]}x{self.size[0]}")
        grid = high // factor, wide // factor
        if high % factor or wide % factor or not LEAST <= grid[0] * grid[1] <= MOST:
            fits = f"multiples of {factor} with {LEAST} to {MOST} tokens of {factor}x{factor} in all"
            raise ValueError(f"{name} draws no {wide}x{high} pixels, expected {fits}")

        def make() -> ContinuousPipeline:
            parts = (self.tokenizer, None, self.text_tokenizer)
            return ContinuousPipeline(self.transformer.at(grid), *parts, preset=self.preset)

        return sized.at(self, grid, make, lambda drafter: drafter.at(grid) if drafter.any_grid else None)

    def _at(self, wanted: ContinuousOptions) -> "ContinuousPipeline":
        return self.at(wanted.height, wanted.width)

    def _pixels(self, tokens: Tensor) -> Tensor:
        """Of tokens (B, S, C), of whatever float dtype."""
        spec = self.transformer.spec
        if tokens.shape[1:] != (spec.slots, spec.channels):
            raise ValueError(f"got tokens {tuple(tokens.shape)}, expected (B, {spec.slots}, {spec.channels})")
        if not tokens.is_floating_point() or not tokens.isfinite().all():
            raise ValueError("got tokens that are not all finite floating-point numbers")
        return self.image_tokenizer.decode(self.transformer.image(tokens.float()))

    def _fit(self) -> None:
        """ValueError where transformer and autoencoder do not go together."""
        ours = self.transformer.spec.channels
        if self.tokenizer is not None and (theirs := self.tokenizer.channels) != ours:
            raise ValueError(f"transformer and autoencoder do not go together: channels {ours} and {theirs}")

    @torch.inference_mode()
    def _decode(
        self, method: LatentMethod, inputs: tuple[Tensor, ...], seeds: list[int], image_size: int | None
    ) -> Generator[Partial, None, None]:
        self._fit()
        model, device = self.transformer, self.transformer.device
        trace, clock = self._begin(method, seeds), loops.Clock(device)
        counts = loops.Counts(kernels=Kernels.of(self.fast))
        condition = embed(model, inputs, guided=method.guidance > 1)
        drafter = None
        if found := choose_drafter.chosen(self, method.sampler, method.settings):
            trace.settings["drafter"], small = found
            choose_drafter.check(found[0], small.spec, model.spec)
            small = choose_drafter.on(small, device)
            told = embed(small, inputs, guided=method.guidance > 1)
            drafter = LatentModelDrafter(self._runner("drafter", small, counts), told, len(seeds))
        task = LatentTask(model.spec, torch.tensor(seeds, device=device), method.guidance, method.temperature, drafter)
        sampler: ContinuousSampler = method.sampler(method.settings, task)
        runner, staying = self._runner("model", model, counts), Staying(len(seeds))
        for _ in loops.continuous(runner, condition, sampler, clock, counts, Threads(model), staying):
            shown = (trace, self, image_size, model.image(sampler.values))
            yield Partial(sampler.values, sampler.settled, counts.forwards, *shown, staying=staying)
        if drafter is not None:
            trace.drafter_forwards = drafter.forwards
            trace.drafts, trace.drafts_kept = sampler.counted
        self._fill(trace, clock, counts)

    def _runner(self, role: str, model: Any, counts: loops.Counts) -> Any:
        """What runs a model's forwards; see `Runners`."""
        found = self._runners.of(role, model, self.fast)
        return found.noting(counts.kernels) if isinstance(found, ReplayedLatents) else found
