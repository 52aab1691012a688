"""The peer beside our methods in `vargen bench --peer`: which one it is, what its row says, and models to run it on.

A peer of transformers needs weights of several gigabytes; `--synthetic janus`, `emu3` or `glm-image` makes small ones
with random weights instead, of 24 x 24 tokens as Janus has them. Those say what a step costs, and nothing of how many
drafts are kept, unless `--tokens-per-forward` imposes it.
"""

import argparse
import re
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from vargen.commands import drawing, flags
from vargen.core import registry
from vargen.core.preset import PLAIN_METHODS
from vargen.core.version import __version__
from vargen.eval.authors import LlamaGenPeer, MARPeer, VARPeer
from vargen.eval.peers import Emu3Peer, GlmImagePeer, JanusPeer, Peer
from vargen.models.emu3 import Emu3
from vargen.models.glm_image import FACTOR, GlmImage
from vargen.models.janus import Janus
from vargen.models.llamagen import LlamaGen
from vargen.models.lumina_mgpt import LuminaMGPT
from vargen.models.mar import MAR
from vargen.models.var import VAR
from vargen.pipelines import request
from vargen.pipelines.loading import find_device, usual_dtype
from vargen.pipelines.prompted import PromptedPipeline
from vargen.samplers.jacobi import JacobiWindow

BUILT = {Janus: JanusPeer, Emu3: Emu3Peer, GlmImage: GlmImagePeer}
CHECKOUTS = {LlamaGen: LlamaGenPeer, VAR: VARPeer, MAR: MARPeer}
UNKNOWN = ("acceptance", "images_equal_to_ar", "cache_bytes", "peak_memory_bytes")  # of a peer
SYNTHETIC = {"janus": "janus-pro-1b", "emu3": "emu3-gen", "glm-image": "glm-image"}  # whose presets they have
LAYERS, WIDTH, SIDE = 4, 256, 24
CODES = 16384  # of Janus and GLM-Image
PROMPT = 16  # tokens


def beside(options: argparse.Namespace, pipe: Any, methods: list[str]) -> Peer:
    """The peer that draws by the law and settings of our plain method. ValueError where there is none."""
    plain = PLAIN_METHODS[pipe.preset.plan]
    spec = next((each for each in methods if each.split(":")[0] == plain), plain)
    recipe = pipe.preset.choose(options.preset)
    law = request.asked(spec, recipe, flags.law(options), {}, pipe.transformer.spec).described
    kind, name = type(pipe.transformer), pipe.preset.name
    if pipe.quantize is not None:
        raise ValueError(f"got weights in {pipe.quantize}, but a peer takes them as they are: leave --quantize out")
    if kind in BUILT:
        if options.peer_path is not None:
            raise ValueError(f"the peer of {name} is transformers' generate, which takes no --peer-path")
        return BUILT[kind](pipe, law)
    if kind in CHECKOUTS:
        if options.peer_path is None:
            raise ValueError(f"the peer of {name} is the code of {CHECKOUTS[kind].what}: give --peer-path, a checkout")
        return CHECKOUTS[kind](pipe, law, options.peer_path)
    if issubclass(kind, LuminaMGPT):
        why = "transformers' Chameleon rules out every image token, so that its generate draws no image"
        raise ValueError(f"{name} has no peer: {why}")
    raise ValueError(f"{name} has no peer: there are peers of Janus, Emu3, GLM-Image, LlamaGen, VAR and MAR")


def told(rows: list[dict[str, Any]], peer: Peer, same: str) -> list[dict[str, Any]]:
    """Rows that say whose they are, how they stand to the peer's in seconds, and whether that draws the same."""
    (its,) = (row for row in rows if row["method"] == peer.name)
    out = []
    for row in rows:
        against = {"over_peer": round(its["seconds_per_image"] / row["seconds_per_image"], 3)}
        if row is its:
            out.append({"by": peer.by, **row, **dict.fromkeys(UNKNOWN), **against, "same": same})
        else:
            out.append({"by": f"vargen {__version__}", **row, **against})
    return out


def same(peer: Peer, pipe: Any, chosen: list[Any], count: int) -> str:
    """Whether the peer draws a batch as we do; see `Peer.same`."""
    return peer.same(drawing.inputs(pipe, chosen)([i % len(chosen) for i in range(count)]), count)


class RandomPipeline(PromptedPipeline):
    """A pipeline of random weights, which reads prompts as so many numbers: it has no text tokenizer."""

    imposed: float | None = None  # tokens that a step of drafts settles

    def encode_prompt(self, prompt: Any, image: Any = None) -> tuple[Tensor, Tensor]:
        """Ids (B, 2, T) of nothing, with the id that begins an image last, and their mask."""
        generator, model = torch.Generator().manual_seed(0), self.transformer
        ids = torch.randint(8, 60, (len(prompt), 2, PROMPT), generator=generator)
        if isinstance(model, Janus):
            ids[:, 1] = model.nothing
            ids[..., 0], ids[..., -1] = model.start, model.begin
        words = torch.ones_like(ids, dtype=torch.bool)
        if isinstance(model, GlmImage):
            ids[:, 0, -1], words[:, 1] = model.start, False
        return ids, words

    def _decode(self, method: Any, inputs: Any, seeds: list[int], image_size: int | None) -> Any:
        if self.imposed is not None and issubclass(method.sampler, JacobiWindow):
            sampler = type("Imposed", (Imposed, method.sampler), {"each": self.imposed})
            method = replace(method, sampler=sampler)
        return super()._decode(method, inputs, seeds, image_size)


class Imposed:
    """In front of a Jacobi method: each step settles so many tokens, whatever its drafts are worth."""

    each: ClassVar[float]
    _taken = 0

    def _advance(self: Any, revised: Tensor, moved: Tensor) -> None:
        count = int((self._taken + 1) * self.each) - int(self._taken * self.each)
        self._taken += 1
        count = min(count, revised.shape[1])
        behind: Any = super()
        behind._advance(revised, torch.full_like(moved, count))


def name(options: argparse.Namespace) -> None:
    """Name the model and a prompt for what `--synthetic` asks for. ValueError where it is none of these."""
    tokens = options.tokens_per_forward
    if tokens is not None and not 1 <= tokens < float("inf"):
        raise ValueError(f"got tokens per forward {tokens}, expected 1 or more")
    if options.shape is not None and options.synthetic != "glm-image":
        raise ValueError(f"got --shape {options.shape}, which glm-image alone has")
    shape(options)
    if options.synthetic not in SYNTHETIC:
        raise ValueError(f"got --synthetic {options.synthetic} with --peer, expected one of {', '.join(SYNTHETIC)}")
    options.model, options.prompt = SYNTHETIC[options.synthetic], options.prompt or ["a boat"]


def model(options: argparse.Namespace) -> str:
    """What the result calls the model."""
    if options.synthetic is None:
        return options.model
    imposed = options.tokens_per_forward
    kept = "" if imposed is None else f", {imposed:g} tokens a forward of drafts imposed"
    layers, width, codes = shape(options)
    ids = "" if options.shape is None else f", {codes} codes"
    return f"{options.synthetic} of {layers} layers, width {width}{ids}, random weights{kept}"


def shape(options: argparse.Namespace) -> tuple[int, int, int]:
    """Layers, width and codes of a model of random weights. ValueError where the flag says none."""
    if options.shape is None:
        return LAYERS, WIDTH, CODES
    found = re.fullmatch(r"([0-9]{1,3})x([0-9]{1,5})x([0-9]{1,5})", options.shape)
    layers, width, codes = map(int, found.groups()) if found else (0, 0, 0)
    if layers < 1 or width < 32 or width % 32 or not 64 <= codes <= CODES:
        raise ValueError(
            f"got --shape {options.shape}, expected such as 4x256x1024: a width in 32s, 64 to {CODES} codes"
        )
    return layers, width, codes


def pipeline(options: argparse.Namespace) -> Any:
    """The pipeline that the flags ask for; with `--synthetic`, of random weights, the same ones every time."""
    if options.synthetic is None:
        made = flags.load(options)
    else:
        makers = {"janus": _janus, "emu3": _emu3, "glm-image": partial(_glm_image, *shape(options))}
        place, make = find_device(options.device), makers[options.synthetic]
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            found = make()
        for parameter in found.parameters():
            if parameter.dim() > 1:  # laws that are neither flat nor certain
                parameter.data.mul_(2 / (parameter.std() * parameter.shape[-1] ** 0.5))
        dtype = usual_dtype(place) if options.dtype is None else getattr(torch, options.dtype)
        found = found.to(place, dtype).eval().requires_grad_(False)
        made = RandomPipeline(found, None, preset=registry.preset(options.model))
        made.fast, made.imposed = options.fast, options.tokens_per_forward
    made.set_progress_bar_config(disable=True)
    return made


def _text(words: int, **more: Any) -> dict[str, Any]:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shape = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 2048}
    return {"vocab_size": words, **shape, **heads, **ids, **more}


def _janus() -> Janus:
    from transformers import JanusConfig, JanusModel

    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 2 * SIDE,
        "patch_size": 2,
    }
    vision |= {"projection_dim": WIDTH, "depth": 2, "num_image_tokens": SIDE**2}
    images = {"num_embeddings": CODES, "base_channels": 32, "latent_channels": 32}
    images |= {"projection_dim": WIDTH, "image_token_embed_dim": WIDTH, "num_res_blocks": 1}
    text = {"model_type": "llama", **_text(64)}
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=images)
    return Janus(JanusModel(config), begin=4, start=1, nothing=0)


def _emu3() -> Emu3:
    from transformers import Emu3TextConfig, Emu3TextModel

    codes, first = 32768, 64
    config = Emu3TextConfig(**_text(first + codes, num_key_value_heads=2))
    head = torch.nn.Linear(WIDTH, first + codes, bias=False)
    ids, size = torch.tensor([*range(first, first + codes), 5]), (8 * SIDE, 8 * SIDE)
    return Emu3(Emu3TextModel(config), head, ids, size=size, sizes=(size,))


def _glm_image(layers: int, width: int, codes: int) -> GlmImage:
    from transformers import GlmImageTextConfig, GlmImageTextModel

    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": min(2, width // 32)}
    heads |= {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    more = {**heads, "attention_bias": True, "rope_parameters": rope, "vision_vocab_size": codes}
    config = GlmImageTextConfig(**_text(codes + 64, **more))
    head, size = torch.nn.Linear(width, codes, bias=False), (FACTOR * SIDE, FACTOR * SIDE)
    return GlmImage(GlmImageTextModel(config), head, codes=codes, start=codes, size=size, sizes=(size,))
