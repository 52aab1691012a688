"""Models of transformers that people hold, and pipelines around them: `vargen.accelerate` has them draw faster."""

from typing import Any

from vargen.core import registry

KINDS = {  # classes of transformers -> what stands in the place of their `generate`
    "JanusForConditionalGeneration": "vargen.pipelines.accelerated:JanusImages",
    "Emu3ForConditionalGeneration": "vargen.pipelines.accelerated:Emu3Images",
    "ChameleonForConditionalGeneration": "vargen.pipelines.accelerated:ChameleonImages",
    "GlmImageForConditionalGeneration": "vargen.pipelines.accelerated_glm:GlmImages",
    "GlmImagePipeline": "vargen.pipelines.accelerated_glm:GlmPipelines",
}


def accelerate(thing: Any, method: str | None = None, *, fast: str = "auto") -> Any:
    """The same model of transformers, whose `generate` draws images by `method`, from its own weights; or the same
    pipeline of diffusers around such a one.

    `thing` is one of

    - JanusForConditionalGeneration: `generate(..., generation_mode="image")` gives codes (B, n);
    - Emu3ForConditionalGeneration: `generate(..., prefix_allowed_tokens_fn=...)`, where that allows a grid of image
      codes with a newline behind each row, and single tokens behind it, gives prompts and all that follows (B, T);
    - ChameleonForConditionalGeneration, with which transformers itself draws no images:
      `generate(..., generation_mode="image")`, behind a prompt that ends in the token that begins an image, gives the
      prompt, the codes and the token that ends it (B, T);
    - GlmImageForConditionalGeneration: `generate(..., image_grid_thw=...)`, with pictures or without, gives prompts,
      codes of all grids and the token that ends an image (B, T); only codes are drawn;
    - GlmImagePipeline, of diffusers: its first stage as above, each image from codes of its own, with the seed of its
      own generator where there are several.

    Arguments and results are as in transformers, and so is the law, that of the call's GenerationConfig: by an exact
    method, greedy decoding gives the same tokens in float32, and sampling draws from the same law, with a seed for each
    image from torch's own generator. (Guidance is mixed in float32, whatever the weights are in; ids that tie with the
    last one that top-k or top-p keeps stay.) Calls for text go to the class's own `generate`. No weight is copied or
    moved; `thing.generate.trace` says how the last images came about.

    `method` is a raster method with its settings, by default sjd-exact:window=16; `fast` is as a pipeline has it. Where
    it is accelerated already, the method is replaced; `release` undoes it. ValueError in one sentence for another kind
    of thing or a method that does not draw with it, and by name, before anything is drawn, for what a call cannot carry
    over: logits processors and stopping criteria of one's own, beams, assistants, penalties, min-p, scores and others.
    """
    registry.resolve(KINDS[_kind(thing)]).put(thing, method, fast)
    return thing


def release(thing: Any) -> Any:
    """The same model as it was before `accelerate`. ValueError where it is not accelerated."""
    name = _kind(thing)
    if not registry.resolve(KINDS[name]).off(thing):
        raise ValueError(f"this {name} is not accelerated: vargen.release undoes what vargen.accelerate did")
    return thing


def _kind(thing: Any) -> str:
    name = type(thing).__name__
    if name not in KINDS or not type(thing).__module__.startswith(("transformers.", "diffusers.")):
        raise ValueError(f"got a {name}, expected one of transformers' or diffusers' {', '.join(KINDS)}")
    return name
