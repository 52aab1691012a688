"""What stands in the place of `generate` on a model of transformers whose images are drawn by our loop."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vargen.core.dispatch import Kernels
from vargen.core.messages import quoted
from vargen.core.preset import DEFAULT_METHODS, Recipe
from vargen.core.trace import Trace
from vargen.models.lean import ATTENTION
from vargen.models.wrapped_chameleon import Chameleon
from vargen.pipelines import asked_grid, asked_law, request, values
from vargen.pipelines.asked_law import Asked
from vargen.pipelines.prompted import PromptedPipeline

KNOWN = ("torch.", "transformers.")  # whose layers do what their weights say


class Accelerated(ABC):
    """A model's `generate`: images by our loop over the model's own weights, all else by the class's own.

    It is pickled and copied with the model. `trace` says how the last images came about.
    """

    takes: ClassVar[tuple[str, ...]]  # arguments beside prompts and settings

    @classmethod
    def put(cls, thing: Any, method: str | None, fast: str) -> None:
        """Stand in the place of a model's `generate`."""
        held = vars(thing).get("generate")
        thing.generate = cls(thing, method, fast, held.before if isinstance(held, cls) else held)

    @classmethod
    def off(cls, thing: Any) -> bool:
        """Put back what was there before; whether there was anything to undo."""
        held = vars(thing).get("generate")
        if not isinstance(held, cls):
            return False
        del thing.generate
        if held.before is not None:
            thing.generate = held.before
        return True

    def __init__(self, model: Any, method: str | None, fast: str, before: Any = None) -> None:
        """`before` stood in the place of the class's `generate`. ValueError where method or model do not fit."""
        self.model, self.before, self.fast, self.trace = model, before, fast, None
        self.method = DEFAULT_METHODS["raster"] if method is None else _checked(method)
        Kernels.of(fast)
        self._made: tuple[Any, PromptedPipeline] | None = None
        self._check(*self.parts())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "trace": None, "_made": None}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the class's `generate` is called."""
        given = asked_law.arguments(type(self.model).generate, self.model, args, kwargs)
        return self.draw(given) if self.draws(given) else self.plain(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The class's own, for whoever looks."""
        own = inspect.signature(type(self.model).generate)
        return own.replace(parameters=list(own.parameters.values())[1:])

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """What was there before."""
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.model).generate(self.model, *args, **kwargs)

    @abstractmethod
    def draws(self, given: Mapping[str, Any]) -> bool:
        """Whether a call with such arguments is for images."""

    @abstractmethod
    def draw(self, given: Mapping[str, Any]) -> Any:
        """What `generate` gives for images. ValueError, before anything is drawn, for what cannot be carried over."""

    @abstractmethod
    def parts(self) -> tuple[nn.Module, nn.Module]:
        """The language model, and what judges its states."""

    def _check(self, language: Any, head: Any) -> None:
        """ValueError where the model, as it is now, is none that we can run."""
        name, found = type(self.model).__name__, language.config._attn_implementation
        if found not in ATTENTION:
            raise ValueError(
                f"got a {name} with attention by {found}, expected one of {', '.join(ATTENTION)}: "
                'model.set_attn_implementation("sdpa")'
            )
        places = {value.device for part in (language, head) for value in part.parameters()}
        if len(places) > 1 or torch.device("meta") in places:
            raise ValueError(f"got a {name} on {len(places)} devices or offloaded, expected it whole on one")

    def _pipeline(self, made: Any) -> PromptedPipeline:
        """What draws with a model of ours."""
        return PromptedPipeline(made, None)

    def _tokens(
        self, key: Any, make: Callable[[], Any], inputs: tuple[Tensor, Tensor], asked: Asked, **told: Any
    ) -> Tensor:
        """Codes (B, rows, columns) of inputs (B, 2, T), by the model that `make` gives; `key` says which it is.

        `told` is set on the pipeline.
        """
        language, head = self.parts()
        self._check(language, head)
        place, count = next(language.parameters()).device, len(inputs[0])
        key = (key, id(language), id(head), str(place), language.training)
        made = self._made
        if made is None or made[0] != key:
            made = self._made = key, self._pipeline(make())
            made[1].set_progress_bar_config(disable=True)
        pipe = copy.copy(made[1])  # other threads have theirs
        vars(pipe).update(told)
        # Layers of somebody's own, adapters say, may have switches that a copy or a graph of them would not see.
        known = all(type(part).__module__.startswith(KNOWN) for part in language.modules())
        pipe.fast = self.fast if known or self.fast != "auto" else "off"
        seeds = self._seeds(count, asked)
        ids, mask = inputs
        how = {"method": self.method, "seed": seeds, "batch_size": count, "output_type": "latent", **asked.law}
        out = pipe(prompt_embeds=ids, prompt_attention_mask=mask, **how)
        self.trace: Trace | None = out.trace
        return out.tokens.to(asked.ids.device)

    def _seeds(self, count: int, asked: Asked) -> list[int]:
        """One for each image, from torch's own generator, which greedy decoding leaves alone."""
        return torch.randint(1 << 62, (count,), device="cpu").tolist() if asked.drawn else list(range(count))

    def _answer(self, asked: Asked, sequences: Tensor) -> Any:
        sequences = sequences.to(asked.ids.dtype)
        if not asked.config.return_dict_in_generate:
            return sequences
        from transformers.generation import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=sequences)  # pyright: ignore[reportArgumentType]

    def _most(self, asked: Asked) -> int:
        """New tokens at most, as `generate` has it: 20 where nobody says."""
        config, given, length = asked.config, asked.given, asked.ids.shape[1]
        if config.max_new_tokens is not None:
            return values.whole(config.max_new_tokens, "max_new_tokens", least=1)
        passed = given.get("generation_config")
        said = (given.get("max_length"), passed and passed.max_length, self.model.generation_config.max_length)
        if not any(said):
            return config.max_length
        values.whole(config.max_length, "max_length")
        if config.max_length <= length:
            raise ValueError(
                f"got max_length {config.max_length}, expected more than the {length} tokens of the prompt"
            )
        return config.max_length - length

    def _prompts(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, T), a row for each image."""
        return asked.ids.repeat_interleave(asked.each, 0), asked.seen.repeat_interleave(asked.each, 0)


def _checked(method: Any) -> str:
    """A method's name with settings. ValueError where it draws with no raster model, or drafts with a model unnamed."""
    if not isinstance(method, str):
        raise ValueError(f"got method {quoted(method)}, expected a name such as sjd-exact:window=16")
    found = request.method(method, Recipe(), {}, {})
    partner = found.sampler.partner
    if partner is not None and not vars(found.settings)[partner]:
        raise ValueError(f"method {method} needs a {partner} by name: {method}:{partner}=MODEL")
    return method


class JanusImages(Accelerated):
    """Of JanusForConditionalGeneration: `generate(..., generation_mode="image")` gives codes (B, n)."""

    takes = ("generation_mode",)

    def parts(self) -> tuple[nn.Module, nn.Module]:
        inner = self.model.model
        return inner.language_model, inner.generation_head

    def draws(self, given: Mapping[str, Any]) -> bool:
        return given.get("generation_mode") == "image"

    def draw(self, given: Mapping[str, Any]) -> Any:
        from vargen.models.janus import Janus

        asked = asked_law.read(self.model, given, self.takes, guidance=5.0)
        config, inner = asked.config, self.model.model
        extra = vars(config).get("generation_kwargs") or {}
        named = {"begin": extra.get("boi_token_id"), "start": config.bos_token_id, "nothing": config.pad_token_id}
        if None in named.values():
            raise ValueError("got a generation_config without bos_token_id, pad_token_id or boi_token_id for images")
        found = Janus(inner, **named)
        count = inner.vision_model.config.num_image_tokens
        if count != found.spec.slots:
            raise ValueError(f"got a model of {count} image tokens, expected {found.spec.slots} as it decodes them")
        ids, seen = self._prompts(asked)
        inputs = asked_law.pairs((ids, seen), (found.emptied(ids), seen))
        key = (tuple(named.items()), id(inner.generation_embeddings), id(inner.generation_aligner))
        tokens = self._tokens(key, lambda: found, inputs, asked)
        return self._answer(asked, tokens.flatten(1))


class Guided(Accelerated):
    """Those whose guidance is against a negative prompt, and whose sequences begin with the prompt."""

    takes = ("negative_prompt_ids", "negative_prompt_attention_mask")

    def parts(self) -> tuple[nn.Module, nn.Module]:
        return self.model.model, self.model.lm_head

    def _check(self, language: Any, head: Any) -> None:
        super()._check(language, head)
        if type(head) is not nn.Linear:  # of which the codes' rows alone are computed
            raise ValueError(f"got a lm_head that is a {type(head).__name__}, expected a plain torch.nn.Linear")

    def _inputs(self, asked: Asked) -> tuple[Tensor, Tensor]:
        prompts = self._prompts(asked)
        guided = asked.law["guidance_scale"] > 1
        return asked_law.pairs(prompts, asked_law.negatives(asked) if guided else prompts)


class Emu3Images(Guided):
    """Of Emu3ForConditionalGeneration: `generate(..., prefix_allowed_tokens_fn=...)`, where that describes an image."""

    takes = (*Guided.takes, "prefix_allowed_tokens_fn", "image_sizes")

    def parts(self) -> tuple[nn.Module, nn.Linear]:
        return self.model.model.text_model, self.model.lm_head

    def draws(self, given: Mapping[str, Any]) -> bool:
        return given.get("prefix_allowed_tokens_fn") is not None

    def draw(self, given: Mapping[str, Any]) -> Any:
        from vargen.models.emu3 import FACTOR, Emu3

        asked = asked_law.read(self.model, given, self.takes)
        language, head = self.parts()
        allowed = asked_grid.Allowed(given["prefix_allowed_tokens_fn"], len(head.weight))
        said, grid = self._grid(asked, allowed)
        size = (grid.rows * FACTOR, grid.columns * FACTOR)
        ids = torch.cat([grid.codes, grid.codes.new_tensor([grid.newline])])

        def make() -> Any:
            return Emu3(language, head, ids.to(head.weight.device), size=size, sizes=(size,))

        tokens = self._tokens((size, tuple(ids.tolist())), make, self._inputs(asked), asked)
        sequences = torch.cat([self._prompts(asked)[0], grid.sequence(tokens)], 1)
        for row, line in enumerate(sequences):
            allowed.check(row // asked.each, line, said)
        return self._answer(asked, sequences)

    def _grid(self, asked: Asked, allowed: asked_grid.Allowed) -> tuple[list[Tensor], asked_grid.Grid]:
        """What is allowed at every place, and the grid that it is. ValueError where prompts have different ones."""
        most, eos = self._most(asked), asked.config.eos_token_id
        ends = [] if eos is None else list(eos) if isinstance(eos, list | tuple) else [eos]
        said = [allowed.along(row, ids, most, ends) for row, ids in enumerate(asked.ids)]
        grids = [asked_grid.grid(each, ends) for each in said]
        if not all(asked_grid.same(each, grids[0]) for each in grids):
            raise ValueError(
                "got a prefix_allowed_tokens_fn with several grids, expected one for all prompts of a call"
            )
        return said[0], grids[0]


class ChameleonImages(Guided):
    """Of ChameleonForConditionalGeneration: `generate(..., generation_mode="image")`, which transformers has not.

    A prompt ends in the token that begins an image. Sequences are the prompt, the codes, and the token that ends an
    image. Lengths are not looked at: an image is whole.
    """

    takes = (*Guided.takes, "generation_mode")

    def __init__(self, model: Any, method: str | None, fast: str, before: Any = None) -> None:
        super().__init__(model, method, fast, before)
        Chameleon(model)  # which says where it has no images

    def plain(self, *args: Any, generation_mode: str | None = None, **kwargs: Any) -> Any:
        if generation_mode not in (None, "text"):
            raise ValueError(f"got generation_mode {quoted(generation_mode)}, expected text or image")
        return super().plain(*args, **kwargs)

    def draws(self, given: Mapping[str, Any]) -> bool:
        return given.get("generation_mode") == "image"

    def draw(self, given: Mapping[str, Any]) -> Any:
        asked = asked_law.read(self.model, given, self.takes)
        found = Chameleon(self.model)
        if not (asked.ids[:, -1] == found.begin).all():
            raise ValueError(f"got a prompt that does not end in the token {found.begin}, which begins an image")
        tokens = self._tokens((), lambda: found, self._inputs(asked), asked)
        codes = found.ids.to(tokens.device)[tokens].flatten(1)
        sequences = torch.cat([self._prompts(asked)[0], codes, codes.new_full((len(codes), 1), found.end)], 1)
        return self._answer(asked, sequences)
