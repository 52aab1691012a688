"""Drawing with next-scale models (VAR), scale by scale; and repainting a part of an image."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels
from vargen.core.preset import LAW
from vargen.core.types import Generation
from vargen.engine import loops
from vargen.pipelines import choose_drafter, request
from vargen.pipelines.base import Partial, Pipeline
from vargen.pipelines.request import ScaleMethod
from vargen.samplers.contract import ScaleSampler, ScaleTask
from vargen.tokenizers.multiscale_vq import Pyramid


class NextScalePipeline(Pipeline):
    """Draws images with a next-scale model; `tokenizer` is its multi-scale VQ."""

    kind: ClassVar[str] = "next-scale"

    @torch.inference_mode()
    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str | None = None,
        *,
        image: Any = None,
        mask_image: Any = None,
        method: str | None = None,
        preset: str | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        cfg_interval: int | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | Sequence[float] | None = None,
        image_size: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 16,
        output_type: str = "pil",
        **settings: Any,
    ) -> Generation:
        """Draw `num_images_per_prompt` images of each class; class -1 is the unconditional one.

        The arguments are those of `RasterPipeline`, but for these. `guidance_scale` grows from scale to scale, and 0 is
        off; `cfg_interval` is the last scale to be guided. `temperature`, `top_k` and `top_p` may have a value for each
        scale. With `image` and `mask_image` the image is repainted where the mask is white (one half or more) and kept
        elsewhere: as the class asked for says, or as the surroundings do (class -1). Both are PIL images or tensors
        (3, H, W) in [0, 1] and (H, W), of the model's size, the same for all images drawn. ValueError in one sentence
        for anything out of range.
        """
        given = (guidance_scale, cfg_interval, temperature, top_k, top_p)
        law: dict[str, Any] = dict(zip(LAW, given, strict=True))
        recipe = self.preset.choose(preset)
        chosen = request.scale_method(method or self.preset.method, recipe, law, settings, self.transformer.spec)
        how = request.output(recipe, batch_size, image_size, output_type)
        inputs = self._inputs(class_labels, num_images_per_prompt, image, mask_image)
        return self._draw(chosen, inputs, request.seeds(len(inputs[0]), seed, generator), **how)

    def stream(
        self,
        class_labels: Any = None,
        *,
        image: Any = None,
        mask_image: Any = None,
        method: str | None = None,
        preset: str | None = None,
        num_images_per_prompt: int = 1,
        image_size: int | None = None,
        seed: Any = None,
        generator: Any = None,
        **options: Any,
    ) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each scale; stop iterating to cancel.

        `options` are the law (guidance_scale, cfg_interval, temperature, top_k, top_p) and the method's settings.
        """
        law = {name: options.pop(name, None) for name in LAW}
        recipe = self.preset.choose(preset)
        chosen = request.scale_method(method or self.preset.method, recipe, law, options, self.transformer.spec)
        size = request.image_size(image_size, recipe)
        inputs = self._inputs(class_labels, num_images_per_prompt, image, mask_image)
        return self._decode(chosen, inputs, request.seeds(len(inputs[0]), seed, generator), size)

    @property
    def pixels(self) -> int:
        """Of an image along one side, as decoded."""
        return self.tokenizer.pixels

    def _inputs(self, classes: Any, each: Any, image: Any, mask: Any) -> tuple[Tensor, ...]:
        """Labels (B,); and, where an image is repainted, its ids (B, S) and which of them stay (B, S)."""
        spec, device = self.transformer.spec, self.transformer.device
        each = request.whole(each, "number of images", least=1)
        if classes is None:
            raise ValueError(f"{self.preset.name} draws classes: give at least one, or -1 for any")
        found = request.labels(classes, each, self.class_names, spec.classes, unconditional=True)
        labels = torch.tensor(found, device=device)
        if image is None and mask is None:
            return (labels,)
        if image is None or mask is None:
            raise ValueError("got an image or a mask alone, expected both: what is repainted, and where")
        side = self.tokenizer.pixels
        pixels = request.picture(image, side, 3).to(device) * 2 - 1
        stays = 1 - request.picture(mask, side, 1).to(device)
        ids, keep = self.tokenizer.encode(pixels), kept(stays, spec.sides)
        return labels, ids.expand(len(labels), -1), keep.expand(len(labels), -1)

    def _fit(self) -> None:
        """ValueError where transformer and tokenizer do not go together."""
        ours, images = self.transformer.config, self.tokenizer.config
        for what, mine, theirs in (
            ("sides", tuple(ours.sides), tuple(images.sides)),
            ("codes", ours.vocabulary, images.codes),
            ("code width", ours.code_dim, images.code_dim),
        ):
            if mine != theirs:
                raise ValueError(f"transformer and tokenizer do not go together: {what} {mine} and {theirs}")

    @torch.inference_mode()
    def _decode(
        self, method: ScaleMethod, inputs: tuple[Tensor, ...], seeds: list[int], image_size: int | None
    ) -> Iterator[Partial]:
        model, device = self.transformer, self.transformer.device
        trace, clock = self._begin(method, seeds), loops.Clock(device)
        counts = loops.Counts(kernels=Kernels.of(self.fast))
        codes = self.tokenizer.quantize.codebook().to(device)
        task = ScaleTask(model.spec, torch.tensor(seeds, device=device), method.warps, codes, *inputs[1:])
        sampler: ScaleSampler = method.sampler(method.settings, task)
        self._fit()
        models = [model]
        if len(sampler.reaches) > 1 and (other := choose_drafter.chosen(self, method.sampler, method.settings)):
            trace.settings["refiner"], small = other
            choose_drafter.check(other[0], small.spec, model.spec)
            models.append(choose_drafter.on(small, device))
        run = [self._runners.of(role, m, self.fast) for role, m in zip(("model", "refiner"), models, strict=False)]
        read = [(m, m.class_condition(inputs[0], guided=method.guidance.active)) for m in run]
        pyramid = Pyramid(self.tokenizer.quantize, len(seeds))
        for _ in loops.next_scale(read, sampler, pyramid, method.guidance, clock, counts):
            shown = (trace, self, image_size, pyramid.features)
            yield Partial(sampler.tokens, sampler.settled, counts.forwards + counts.by_others, *shown)
        trace.drafter_forwards = counts.by_others
        self._fill(trace, clock, counts)


def kept(mask: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Which tokens (1, S) stay, from a mask (1, 1, H, W) that is 1 where an image does.

    As published: the mask is brought to the finest scale's side, made binary, and from there to each scale's by
    bilinear interpolation; the single token of a scale of one, which says what the whole image is, always stays.
    """
    finest = F.interpolate(mask, size=(sides[-1], sides[-1]), mode="area").gt(0.5).float()
    out = []
    for side in sides:
        scaled = F.interpolate(finest, size=(side, side), mode="bilinear", align_corners=False).gt(0.5)
        out.append((scaled | (side == 1)).flatten(1))
    return torch.cat(out, dim=1)
