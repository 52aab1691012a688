"""What one would use instead: a peer's own code drawing with the weights of a pipeline, for a run beside its methods.

A peer gives tokens, and leaves images undecoded. Those here are transformers' `generate` for the models that are
wrapped over it, on the very same tensors; the authors' own code is in `authors.py`.
"""

import contextlib
import copy
import io
from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vargen.core.generation import Generation
from vargen.core.messages import first_line
from vargen.core.preset import PLAIN_METHODS
from vargen.core.trace import Trace
from vargen.engine.clock import Clock
from vargen.models.emu3 import LINE

Law = dict[str, Any]  # guidance, truncation and settings by name
Inputs = dict[str, Any]  # of a pipeline's call: class_labels, or prompt_embeds and prompt_attention_mask
OFF = {"cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "top_n_sigma": 0.0}


class Peer(ABC):
    """A peer over a pipeline's weights."""

    name: ClassVar[str]  # of what is called
    knows: ClassVar[tuple[str, ...]] = ("temperature", "top_k", "top_p")  # of a law, beside guidance
    counted: nn.Module  # whose calls are its forwards

    def __init__(self, pipe: Any, by: str, law: Law) -> None:
        """`law` has the names of a method's `described`. ValueError where it asks for what the peer does not have."""
        self.pipe, self.by, self.law, self.model = pipe, by, law, pipe.transformer
        for key, off in OFF.items():
            value = law.get(key, off)
            if isinstance(value, list):
                raise ValueError(f"got a {key} for each scale, but {self.name} takes one for all")
            if key not in self.knows and value != off:
                raise ValueError(f"got {key} {value}, but {self.name} has none: the comparison wants {off}")

    @abstractmethod
    def tokens(self, law: Law, inputs: Inputs) -> Tensor:
        """The tokens that it draws under a law, as the pipeline gives them."""

    def __call__(self, inputs: Inputs, seeds: list[int], law: Law | None = None) -> Generation:
        """Draw a batch, under `law` if it is given. The first of its seeds, which are ours, starts torch's generator.

        ValueError where it fails.
        """
        device, calls = self.model.device, []
        hook = self.counted.register_forward_hook(lambda *_: calls.append(1))
        clock = Clock(device)
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(seeds[0])
                found = self.quietly(partial(self.tokens, law or self.law, inputs))
        finally:
            hook.remove()
        clock.lap("total")
        trace = Trace(self.pipe.preset.name, self.name, len(seeds), len(calls), seeds=seeds, seconds=clock.seconds())
        trace.forwards_per_image, trace.versions = float(len(calls)), self.pipe.versions
        trace.tokens_per_forward = self.model.spec.slots / max(1, len(calls))
        return Generation(found, found, trace)

    def quietly(self, run: Any) -> Any:
        """What its code gives; what that prints is dropped. ValueError for whatever it raises."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return run()
        except Exception as error:  # whatever its code raises
            raise ValueError(f"{self.name} of {self.by} failed: {type(error).__name__}: {first_line(error)}") from error

    def same(self, inputs: Inputs, count: int) -> str:
        """Whether it draws `count` images as our plain method does, both taking the likeliest token of every law."""
        plain, greedy = PLAIN_METHODS[self.model.spec.plan], {**self.law, "top_k": 1, "top_p": 1.0}
        named = {key: greedy[key] for key in ("guidance_scale", "cfg_interval", "temperature", "top_k", "top_p")}
        ours = self.pipe(**inputs, **named, method=plain, seed=0, batch_size=count, output_type="latent").tokens
        equal = int((self(inputs, [0] * count, greedy).tokens.to(ours.device) == ours).sum())
        return f"{equal} of {ours.numel()} greedy tokens equal"

    def _labels(self, inputs: Inputs) -> Tensor:
        return torch.tensor(inputs["class_labels"], device=self.model.device)


class TransformersPeer(Peer):
    """transformers' `generate`."""

    name: ClassVar[str] = "transformers generate"

    def __init__(self, pipe: Any, law: Law) -> None:
        import transformers

        super().__init__(pipe, f"transformers {transformers.__version__}", law)

    def _drawn(self, law: Law) -> dict[str, Any]:
        return {key: law[key] for key in self.knows} | {"do_sample": True}

    def _prompts(self, inputs: Inputs, part: int) -> tuple[Tensor, Tensor]:
        """Ids (B, T) and mask (B, T) of prompts, or of what guidance is against, padded on the left."""
        ids, words = (inputs[key][:, part] for key in ("prompt_embeds", "prompt_attention_mask"))
        count = words.long().sum(-1, keepdim=True)
        longest = int(count.max())
        place = torch.arange(longest, device=ids.device)
        turned, seen = ids.gather(1, (place + count) % longest), place >= longest - count
        return turned.to(self.model.device), seen.long().to(self.model.device)


class JanusPeer(TransformersPeer):
    """JanusForConditionalGeneration, of whose parts those that draw are ours."""

    def __init__(self, pipe: Any, law: Law) -> None:
        super().__init__(pipe, law)
        if law["guidance_scale"] <= 1:
            raise ValueError(f"got guidance scale {law['guidance_scale']}, but {self.name} of Janus wants more than 1")
        from transformers import JanusForConditionalGeneration

        ours = self.model
        with torch.device("meta"):
            made: Any = JanusForConditionalGeneration(copy.deepcopy(ours.whole)).eval()
        inner, vision = made.model, nn.Identity()
        vision.config = copy.deepcopy(ours.whole.vision_config)
        vision.config.num_image_tokens = ours.spec.slots
        inner.vision_model, inner.aligner, inner.vqmodel, made.lm_head = vision, *(nn.Identity() for _ in range(3))
        inner.language_model, inner.generation_embeddings = ours.language, ours.embeddings
        inner.generation_aligner, inner.generation_head = ours.aligner, ours.head
        made.generation_config.generation_kwargs = {"boi_token_id": ours.begin}
        made.generation_config.update(bos_token_id=ours.start, pad_token_id=ours.nothing)
        self._made, self.counted = made, ours.language

    def tokens(self, law: Law, inputs: Inputs) -> Tensor:
        ids, seen = self._prompts(inputs, 0)
        how = {"guidance_scale": law["guidance_scale"], **self._drawn(law)}
        found = self._made.generate(ids, attention_mask=seen, generation_mode="image", **how)
        return found.unflatten(1, (self.model.spec.rows, self.model.spec.columns))


class Emu3Peer(TransformersPeer):
    """Emu3ForConditionalGeneration, with a constraint that lets a newline end each row and codes stand in it."""

    def __init__(self, pipe: Any, law: Law) -> None:
        super().__init__(pipe, law)
        from transformers import Emu3Config, Emu3ForConditionalGeneration

        ours, codes = self.model, self.model.ids.tolist()
        names = {f"<|visual token {code:06d}|>": id for code, id in enumerate(codes[:-1])}
        config = Emu3Config(text_config=ours.about.to_dict(), vocabulary_map=names | {LINE: codes[-1]})
        with torch.device("meta"):
            made: Any = Emu3ForConditionalGeneration(config).eval()
        made.model.vqmodel, made.model.text_model, made.lm_head = nn.Identity(), ours.language, ours.head
        self._made, self.counted = made, ours.language

    def tokens(self, law: Law, inputs: Inputs) -> Tensor:
        (ids, seen), spec, codes = self._prompts(inputs, 0), self.model.spec, self.model.ids
        allowed, front = (codes[:-1], codes[-1:]), ids.shape[1]

        def follow(_: int, there: Tensor) -> Any:
            return allowed[(len(there) - front) % spec.columns == spec.columns - 1]

        how: dict[str, Any] = {"prefix_allowed_tokens_fn": follow, "max_new_tokens": spec.slots, **self._drawn(law)}
        if law["guidance_scale"] > 1:
            negative, there = self._prompts(inputs, 1)
            how |= {"negative_prompt_ids": negative, "negative_prompt_attention_mask": there}
            how["guidance_scale"] = law["guidance_scale"]
        drawn = self._made.generate(input_ids=ids, attention_mask=seen, **how)[:, front:]
        code = torch.zeros(self.model.words, dtype=torch.int64, device=codes.device)
        code[codes] = torch.arange(len(codes), device=codes.device)
        return code[drawn].unflatten(1, (spec.rows, spec.columns))[..., :-1]


class GlmImagePeer(TransformersPeer):
    """GlmImageForConditionalGeneration, kept from ids that are no codes, as our law is."""

    def __init__(self, pipe: Any, law: Law) -> None:
        super().__init__(pipe, law)
        from transformers import GlmImageConfig, GlmImageForConditionalGeneration

        ours = self.model
        config = GlmImageConfig(text_config=ours.about.to_dict(), image_start_token_id=ours.start)
        with torch.device("meta"):
            made: Any = GlmImageForConditionalGeneration(config).eval()
        made.model.visual, made.model.vqmodel = nn.Identity(), nn.Identity()
        made.model.language_model, made.lm_head = ours.language, ours.head
        made.generation_config.update(eos_token_id=None, pad_token_id=0)
        self._made, self.counted = made, ours.language

    def tokens(self, law: Law, inputs: Inputs) -> Tensor:
        (ids, seen), ours = self._prompts(inputs, 0), self.model
        grids = [[1, grid.rows, grid.columns] for grid in reversed(ours.spec.grids)]  # the full one first
        how = {"max_new_tokens": ours.spec.slots, **self._drawn(law)}
        how["suppress_tokens"] = [*range(ours.codes, ours.head.out_features)] or None
        how["image_grid_thw"] = torch.tensor(grids, device=ids.device).repeat(len(ids), 1)
        how["images_per_sample"] = torch.full((len(ids),), len(grids), device=ids.device)
        return self._made.generate(input_ids=ids, attention_mask=seen, **how)[:, ids.shape[1] :]
