"""Drawing with models of continuous tokens: MAR, FlowAR, xAR, Harmon."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vargen.core.dispatch import Kernels
from vargen.core.preset import LAW
from vargen.core.types import Generation
from vargen.engine import loops
from vargen.engine.drafters import LatentModelDrafter
from vargen.models import harmon
from vargen.models.contract import embed
from vargen.models.prompted import checked
from vargen.pipelines import choose_drafter, request
from vargen.pipelines.base import Partial, Pipeline
from vargen.pipelines.request import LatentMethod
from vargen.samplers.contract import ContinuousSampler, LatentTask


class ContinuousPipeline(Pipeline):
    """Draws images with a continuous model; `tokenizer` is its autoencoder.

    One that takes prompts reads them itself: it has a `text_tokenizer` and no `text_encoder`.
    """

    kind: ClassVar[str] = "continuous"

    @torch.inference_mode()
    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str | None = None,
        *,
        prompt: Sequence[str] | str | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        method: str | None = None,
        preset: str | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        image_size: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 16,
        output_type: str = "pil",
        **settings: Any,
    ) -> Generation:
        """Draw `num_images_per_prompt` images of each class, class -1 being the unconditional one, or of each prompt.

        The arguments are those of `RasterPipeline`, but for these. `prompt_embeds` are token ids (B, 2, T), of the
        prompt and of what guidance is against, with their mask; both from `encode_prompt`. `guidance_scale` is off at
        1; how it grows as an image fills is the method's `schedule`. `temperature` is of the noise in each diffusion
        step. A preset may also set a method's own settings, such as `iterations`. Output type latent gives tokens
        (B, S, C), scaled as the transformer has them. ValueError in one sentence for anything out of range.
        """
        law = {**{name: settings.pop(name, None) for name in LAW}, "guidance_scale": guidance_scale}
        law["temperature"] = temperature
        recipe = self.preset.choose(preset)
        chosen = request.latent_method(method or self.preset.method, recipe, law, settings, self.transformer.spec)
        how = request.output(recipe, batch_size, image_size, output_type)
        inputs = self._inputs(class_labels, prompt, (prompt_embeds, prompt_attention_mask), num_images_per_prompt)
        return self._draw(chosen, inputs, request.seeds(len(inputs[0]), seed, generator), **how)

    def stream(
        self,
        class_labels: Any = None,
        *,
        prompt: Any = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        method: str | None = None,
        preset: str | None = None,
        num_images_per_prompt: int = 1,
        image_size: int | None = None,
        seed: Any = None,
        generator: Any = None,
        **options: Any,
    ) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each group; stop iterating to cancel.

        `options` are guidance_scale, temperature and the method's settings.
        """
        law = {name: options.pop(name, None) for name in LAW}
        recipe = self.preset.choose(preset)
        chosen = request.latent_method(method or self.preset.method, recipe, law, options, self.transformer.spec)
        size = request.image_size(image_size, recipe)
        inputs = self._inputs(class_labels, prompt, (prompt_embeds, prompt_attention_mask), num_images_per_prompt)
        return self._decode(chosen, inputs, request.seeds(len(inputs[0]), seed, generator), size)

    def encode_prompt(self, prompt: Sequence[str] | str) -> tuple[Tensor, Tensor]:
        """Token ids (B, 2, T) and the mask (B, 2, T) of the words, for `prompt_embeds` and its mask."""
        if self.text_tokenizer is None:
            raise ValueError(f"{self.preset.name} has no text tokenizer here: it was never loaded")
        return harmon.tokenize(request.prompts(prompt), self.text_tokenizer)

    def release_text_encoder(self) -> None:
        """Nothing to give back: the transformer itself reads prompts, and a tokenizer is small."""

    @property
    def pixels(self) -> int:
        """Of an image along one side, as decoded."""
        return self.transformer.config.side * self.tokenizer.config.factor

    def _inputs(self, classes: Any, prompt: Any, encoded: tuple[Any, Any], each: Any) -> tuple[Tensor, ...]:
        """What is drawn, a row per image: labels (B,), or prompts' token ids (B, 2, T) and their mask."""
        name, model = self.preset.name, self.transformer
        each = request.whole(each, "number of images", least=1)
        texts = [value is not None for value in (prompt, *encoded)]
        if model.spec.classes:
            if any(texts):
                raise ValueError(f"{name} draws classes and takes no prompt: give a class")
            if classes is None:
                raise ValueError(f"{name} draws classes: give at least one, or -1 for any")
            found = request.labels(classes, each, self.class_names, model.spec.classes, unconditional=True)
            return (torch.tensor(found, device=model.device),)
        if classes is not None:
            raise ValueError(f"{name} draws what a prompt says and takes no class: give a prompt")
        if any(texts[1:]) == texts[0]:
            raise ValueError(f"{name} draws what a prompt says: give either a prompt or prompt_embeds with its mask")
        read = self.encode_prompt(prompt) if texts[0] else encoded
        parts = checked(*read, model.config.vocabulary)
        return tuple(part.to(model.device).repeat_interleave(each, dim=0) for part in parts)

    @torch.inference_mode()
    def decode(self, tokens: Tensor, output_type: str, image_size: int | None = None) -> Any:
        """Images of tokens (B, S, C), resized to `image_size` pixels a side if it is given."""
        return self.finish(self.tokenizer.decode(self.transformer.image(tokens)), output_type, image_size)

    def _fit(self) -> None:
        """ValueError where transformer and autoencoder do not go together."""
        ours, theirs = self.transformer.spec.channels, self.tokenizer.config.latent_channels
        if ours != theirs:
            raise ValueError(f"transformer and autoencoder do not go together: channels {ours} and {theirs}")

    @torch.inference_mode()
    def _decode(
        self, method: LatentMethod, inputs: tuple[Tensor, ...], seeds: list[int], image_size: int | None
    ) -> Iterator[Partial]:
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
            drafter = LatentModelDrafter(self._runner("drafter", small, counts), told)
        task = LatentTask(model.spec, torch.tensor(seeds, device=device), method.guidance, method.temperature, drafter)
        sampler: ContinuousSampler = method.sampler(method.settings, task)
        for _ in loops.continuous(self._runner("model", model, counts), condition, sampler, clock, counts):
            shown = (trace, self, image_size, model.image(sampler.values))
            yield Partial(sampler.values, sampler.settled, counts.forwards, *shown)
        if drafter is not None:
            trace.drafter_forwards = drafter.forwards
            trace.drafts, trace.drafts_kept = getattr(sampler, "drafts", 0), getattr(sampler, "drafts_kept", 0)
        self._fill(trace, clock, counts)

    def _runner(self, role: str, model: Any, counts: loops.Counts) -> Any:
        """What runs a model's forwards; see `Runners`."""
        found = self._runners.of(role, model, self.fast)
        return found if found is model else found.noting(counts.kernels)
