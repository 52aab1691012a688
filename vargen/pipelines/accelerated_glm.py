"""What stands in the place of GLM-Image's first stage, in transformers' model and in diffusers' pipeline around it."""

import functools
import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from vargen.core.messages import quoted
from vargen.core.specs import RasterSpec
from vargen.models.glm_image import FACTOR, GlmImage
from vargen.pipelines import asked_law, values
from vargen.pipelines.accelerated import Guided
from vargen.pipelines.asked_law import Asked
from vargen.pipelines.glm_image import GlmImagePipeline
from vargen.pipelines.glm_sources import Source

SEEDS: ContextVar[list[int] | None] = ContextVar("seeds", default=None)  # of the next images; each thread has its own
WHERE = "expected the grids that transformers' processor gives"


class GlmImages(Guided):
    """Of GlmImageForConditionalGeneration: `generate(..., image_grid_thw=...)` gives prompts and codes (B, T)."""

    takes = ("image_grid_thw", "images_per_sample", "pixel_values")

    def parts(self) -> tuple[nn.Module, nn.Linear]:
        return self.model.model.language_model, self.model.lm_head

    def _pipeline(self, made: Any) -> GlmImagePipeline:
        return GlmImagePipeline(made)

    def draws(self, given: Mapping[str, Any]) -> bool:
        return given.get("image_grid_thw") is not None

    def draw(self, given: Mapping[str, Any]) -> Any:
        asked, config = asked_law.read(self.model, given, self.takes), self.model.config
        if asked.law["guidance_scale"] != 1:
            raise ValueError("got a guidance_scale: GLM-Image's codes are drawn without guidance")
        if (hook := vars(self.model).get("_hf_hook")) is not None:  # accelerate's, which brings it to its device
            hook.pre_forward(self.model)
        sources, spec = self._grids(asked, given)
        ids, seen = self._shown(asked, sources, given)
        size = (spec.rows * FACTOR, spec.columns * FACTOR)
        how: Any = {"codes": config.vq_config.num_embeddings, "start": config.image_start_token_id}
        found = GlmImage(*self.parts(), size=size, sizes=(size,), spec=spec, **how)
        shown = [[Source(None, torch.empty(grid)) for grid in some] for some in sources for _ in range(asked.each)]
        inputs = asked_law.pairs((ids, seen), (ids, torch.zeros_like(seen)))
        tokens = self._tokens((spec, found.start), lambda: found, inputs, asked, sources=shown).flatten(1)
        ends = tokens.new_full((len(tokens), 1), config.image_end_token_id)
        drawn = torch.cat([tokens, ends], 1)[:, : self._most(asked)]
        return self._answer(asked, torch.cat([self._prompts(asked)[0], drawn], 1))

    def _seeds(self, count: int, asked: Asked) -> list[int]:
        if (seeds := SEEDS.get()) is None:
            return super()._seeds(count, asked)
        if len(seeds) != count:
            raise ValueError(f"got {len(seeds)} seeds for {count} images, expected one each")
        return seeds

    def _grids(self, asked: Asked, given: Mapping[str, Any]) -> tuple[list[list[tuple[int, int]]], RasterSpec]:
        """Rows and columns of the pictures in each prompt, and the layout of what is drawn.

        ValueError where grids are none, or prompts draw different ones.
        """
        codes, count = self.model.config.vq_config.num_embeddings, len(asked.ids)
        grids, per = given["image_grid_thw"], given.get("images_per_sample")
        if not isinstance(grids, Tensor) or grids.dim() != 2 or grids.shape[1] != 3 or int(grids.min()) < 1:
            raise ValueError(f"got an image_grid_thw that is no tensor (N, 3) of numbers above 0, {WHERE}")
        many = [len(grids)] * count if per is None else per.tolist()
        if (per is None and count > 1) or len(many) != count or sum(many) != len(grids) or int(grids[:, 0].max()) > 1:
            raise ValueError(f"got {len(grids)} grids and images_per_sample {many} for {count} prompts, {WHERE}")
        ended = ((asked.ids == self.model.config.image_end_token_id) & asked.seen).sum(1).tolist()
        parts = [part.tolist() for part in grids.split(many)]
        sources = [[(high, wide) for _, high, wide in part[:end]] for part, end in zip(parts, ended, strict=True)]
        targets = [[(high, wide) for _, high, wide in part[end:]] for part, end in zip(parts, ended, strict=True)]
        if not targets[0] or any(each != targets[0] for each in targets):
            raise ValueError("got prompts with different grids to draw, or with none, expected the same for all")
        full, *small = targets[0]
        return sources, RasterSpec(*full, codes, 0, previews=tuple(reversed(small)))

    def _shown(
        self, asked: Asked, sources: list[list[tuple[int, int]]], given: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, T), a row for each image, with the codes of pictures where the prompts leave room."""
        ids, inner = asked.ids.clone(), self.model.model
        room, pixels = ids == self.model.config.image_token_id, given.get("pixel_values")
        shapes = [[1, high, wide] for some in sources for high, wide in some]
        count = sum(high * wide for _, high, wide in shapes)
        if (pixels is None) != (not count) or int(room.sum()) != count:
            raise ValueError(f"got prompts with {int(room.sum())} places for codes of pictures, expected {count}")
        if pixels is not None:
            grids = torch.tensor(shapes, device=given["image_grid_thw"].device)
            with torch.no_grad():
                codes = inner.get_image_tokens(inner.get_image_features(pixels, grids).pooler_output)
            ids[room] = codes.to(ids)
        return ids.repeat_interleave(asked.each, 0), asked.seen.repeat_interleave(asked.each, 0)


class GlmPipelines:
    """Of diffusers' GlmImagePipeline, whose class becomes one that hands seeds to the first stage."""

    @classmethod
    def put(cls, thing: Any, method: str | None, fast: str) -> None:
        """Accelerate the first stage, and have each image drawn from codes of its own."""
        if thing.vision_language_encoder is None:
            what = "vision_language_encoder, which is what would be accelerated"
            raise ValueError(f"got a {type(thing).__name__} without its {what}")
        GlmImages.put(thing.vision_language_encoder, method, fast)
        if not issubclass(type(thing), _Seeded):
            own = type(thing)
            about = {"__module__": own.__module__, "__doc__": own.__doc__, "__reduce__": _reduced}
            about["__call__"] = functools.wraps(own.__call__)(lambda self, *args, **kwargs: _call(self, args, kwargs))
            thing.__class__ = type(own.__name__, (_Seeded, own), about)

    @classmethod
    def off(cls, thing: Any) -> bool:
        """Undo it; whether there was anything to undo."""
        if not issubclass(type(thing), _Seeded):
            return False
        thing.__class__ = type(thing).__mro__[2]
        if thing.vision_language_encoder is not None:
            GlmImages.off(thing.vision_language_encoder)
        return True


def _reduced(thing: Any) -> Any:
    """Copies are made as pipelines of the class that it had, and then accelerated as this one is."""
    return _again, (type(thing).__mro__[2], vars(thing))


def _again(own: type, state: dict[str, Any]) -> Any:
    made: Any = object.__new__(own)
    vars(made).update(state)
    if (held := _held(made)) is not None:
        GlmPipelines.put(made, held.method, held.fast)
    return made


def _held(thing: Any) -> GlmImages | None:
    """What stands in the place of `generate` in a pipeline, whose first stage may be gone, or another by now."""
    first = thing.vision_language_encoder
    held = None if first is None else vars(first).get("generate")
    return held if isinstance(held, GlmImages) else None


class _Seeded:
    """In front of a GlmImagePipeline: images of a prompt have codes of their own, and generators theirs."""


def _call(pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    own: Any = super(_Seeded, pipe)
    given = inspect.signature(own.__call__).bind(*args, **kwargs).arguments
    prompt, first = given.get("prompt"), _held(pipe)
    if not isinstance(prompt, str | list) or given.get("prior_token_ids") is not None or first is None:
        return own.__call__(**given)
    each = values.whole(given.get("num_images_per_prompt", 1), "num_images_per_prompt", least=1)
    texts = [prompt] if isinstance(prompt, str) else prompt
    if each > 1:
        given["prompt"], given["num_images_per_prompt"] = [text for text in texts for _ in range(each)], 1
        image = given.get("image")
        if image is not None and not (isinstance(image, list | tuple) and not image):
            given["image"] = [some for some in _listed(image, len(texts)) for _ in range(each)]
    before = SEEDS.set(_seeds(given.get("generator"), len(texts) * each))
    try:
        return own.__call__(**given)
    finally:
        SEEDS.reset(before)


def _listed(image: Any, prompts: int) -> list[Any]:
    """Pictures of each prompt. ValueError where they are not as diffusers takes them: a list, or one each."""
    if not isinstance(image, list | tuple):
        raise ValueError(f"got image of type {type(image).__name__}, expected a list of pictures for each prompt")
    many = [*image] if image and all(isinstance(some, list | tuple) for some in image) else [image]
    if len(many) != prompts:
        raise ValueError(f"got {len(many)} lists of pictures for {prompts} prompts, expected one each")
    return many


def _seeds(generator: Any, count: int) -> list[int] | None:
    """Of images, from the seeds that generators were given, which move on for the painter alone; None without any."""
    if generator is None:
        return None
    if isinstance(generator, torch.Generator):
        return values.seeds(count, generator.initial_seed(), None)
    if not isinstance(generator, list) or not all(isinstance(each, torch.Generator) for each in generator):
        raise ValueError(f"got generator {quoted(generator)}, expected a torch.Generator or a list of them")
    if len(generator) != count:
        raise ValueError(f"got {len(generator)} generators for {count} images, expected one for all, or one each")
    return values.seeds(count, [each.initial_seed() for each in generator], None)
