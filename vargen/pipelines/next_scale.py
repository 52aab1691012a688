"""Drawing with next-scale models (VAR), scale by scale; and repainting a part of an image."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vargen.core.dispatch import Kernels
from vargen.engine import loops
from vargen.engine.staying import Staying
from vargen.engine.threads import Threads
from vargen.pipelines import choose_drafter, values
from vargen.pipelines.base import Pipeline
from vargen.pipelines.options import Options, ScaleOptions, takes
from vargen.pipelines.partial import Partial
from vargen.pipelines.request import ScaleMethod
from vargen.samplers.contract import ScaleSampler, ScaleTask


class NextScalePipeline(Pipeline):
    """Draws images with a next-scale model; `tokenizer` is its multi-scale VQ."""

    kind: ClassVar[str] = "next-scale"
    options_type: ClassVar[type[Options]] = ScaleOptions

    @takes(ScaleOptions)
    @torch.inference_mode()
    def __call__(self, class_labels: Any = None, **given: Any) -> Any:
        """Draw `num_images_per_prompt` images of each class; class -1 is the unconditional one.

        `guidance_scale` grows from scale to scale, and 0 is off; `cfg_interval` is the last scale to be guided.
        `temperature`, `top_k` and `top_p` may have a value for each scale. With `image` and `mask_image` the image is
        repainted where the mask is white (one half or more), or transparent where it has holes, and kept elsewhere: as
        the class asked for says, or as the surroundings do (class -1). Both are PIL images or tensors (3, H, W) in
        [0, 1] and (H, W), of the model's size, the same for all images drawn. ValueError in one sentence for anything
        out of range.
        """
        pipe, asked, wanted = self._asked(class_labels, given)
        return pipe._answer(asked, wanted)

    @takes(ScaleOptions, stream=True)
    def stream(self, class_labels: Any = None, **given: Any) -> Iterator[Partial]:
        """As a call, for one batch, but yields a `Partial` after each scale; stop iterating to cancel."""
        pipe, asked, _ = self._asked(class_labels, given, stream=True)
        return pipe._steps(asked.method, asked.inputs, asked.seeds, asked.image_size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels, as decoded."""
        side = self.image_tokenizer.pixels
        return side, side

    @property
    def edits(self) -> Literal["repaint"]:
        """It repaints pictures."""
        return "repaint"

    def _pixels(self, tokens: Tensor) -> Tensor:
        """Of tokens (B, S) of all scales."""
        slots = self.transformer.spec.slots
        if tokens.dim() != 2 or tokens.shape[1] != slots:
            raise ValueError(f"got tokens {tuple(tokens.shape)}, expected (B, {slots})")
        return super()._pixels(tokens)

    def encode_prompt(self, prompt: Sequence[str] | str, image: Any = None) -> tuple[Tensor, Tensor]:
        """ValueError: no next-scale model here reads prompts."""
        raise ValueError(f"{self.preset.name} draws classes and takes no prompt: give a class")

    def _inputs(self, wanted: ScaleOptions) -> tuple[Tensor, ...]:
        """Labels (B,); and, where an image is repainted, its ids (B, S) and which of them stay (B, S)."""
        (labels,), image, mask = super()._inputs(wanted), wanted.image, wanted.mask_image
        if image is None and mask is None:
            return (labels,)
        if image is None or mask is None:
            raise ValueError("got an image or a mask alone, expected both: what is repainted, and where")
        side, device = self.pixels, self.transformer.device
        pixels = values.picture(image, side, 3).to(device) * 2 - 1
        stays = 1 - values.picture(mask, side, 1).to(device)
        ids, keep = self.tokenizer.encode(pixels), kept(stays, self.transformer.spec.sides)
        return labels, ids.expand(len(labels), -1), keep.expand(len(labels), -1)

    def _fit(self) -> None:
        """ValueError where transformer and tokenizer do not go together."""
        spec, images = self.transformer.spec, self.image_tokenizer
        codes, width = images.stored_codes.shape
        for what, mine, theirs in (
            ("sides", spec.sides, tuple(images.sides)),
            ("codes", spec.vocabulary, codes),
            ("code width", self.transformer.code_dim, width),
        ):
            if mine != theirs:
                raise ValueError(f"transformer and tokenizer do not go together: {what} {mine} and {theirs}")

    @torch.inference_mode()
    def _decode(
        self, method: ScaleMethod, inputs: tuple[Tensor, ...], seeds: list[int], image_size: int | None
    ) -> Generator[Partial, None, None]:
        self._fit()
        model, device = self.transformer, self.transformer.device
        trace, clock = self._begin(method, seeds), loops.Clock(device)
        counts = loops.Counts(kernels=Kernels.of(self.fast))
        codes = self.tokenizer.codebook().to(device)
        task = ScaleTask(model.spec, torch.tensor(seeds, device=device), method.warps, codes, *inputs[1:])
        sampler: ScaleSampler = method.sampler(method.settings, task)
        models = [model]
        if len(sampler.reaches) > 1 and (other := choose_drafter.chosen(self, method.sampler, method.settings)):
            trace.settings["refiner"], small = other
            choose_drafter.check(other[0], small.spec, model.spec)
            models.append(choose_drafter.on(small, device))
        run = [self._runners.of(role, m, self.fast) for role, m in zip(("model", "refiner"), models, strict=False)]
        read = [(m, m.class_condition(inputs[0], guided=method.guidance.active)) for m in run]
        pyramid, staying = self.tokenizer.begin(len(seeds)), Staying(len(seeds))
        for _ in loops.next_scale(read, sampler, pyramid, method.guidance, clock, counts, Threads(model), staying):
            shown = (trace, self, image_size, pyramid.features)
            forwards = counts.forwards + counts.by_others
            yield Partial(sampler.tokens, sampler.settled, forwards, *shown, staying=staying)
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
