"""Peers whose code is their authors': LlamaGen, VAR and MAR, where a user has a checkout of it (`checkout.py`).

A model of theirs is made there and takes our weights, under the names that published files have for them.
"""

import re
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vargen.core.layout import Layout
from vargen.core.types import Group
from vargen.eval.checkout import imported
from vargen.eval.peers import Inputs, Law, Peer
from vargen.models import llamagen, mar, var
from vargen.tokenizers.multiscale_vq import layout


class CheckoutPeer(Peer):
    """The authors' own code, from a user's checkout."""

    what: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    def __init__(self, pipe: Any, law: Law, folder: Path) -> None:
        super().__init__(pipe, f"{self.what} at {folder}", law)
        modules = imported(folder, self.what, self.files)
        self.quietly(partial(self._make, modules))

    @abstractmethod
    def _make(self, modules: list[Any]) -> None:
        """Make the model of modules of the checkout, with our weights."""

    @property
    def _half(self) -> torch.autocast:
        """How they run what is not float32: float32 weights under autocast."""
        dtype = self.model.dtype
        return torch.autocast(self.model.device.type, dtype=dtype, enabled=dtype != torch.float32)


class LlamaGenPeer(CheckoutPeer):
    """`generate` of FoundationVision/LlamaGen, autoregressive/models/generate.py."""

    what, name = "LlamaGen", "LlamaGen generate"
    files = ("autoregressive.models.gpt", "autoregressive.models.generate")
    knows = (*Peer.knows, "cfg_interval")

    def _make(self, modules: list[Any]) -> None:
        (gpt, generate), c = modules, self.model.config
        given = {"model_type": "t2i", "caption_dim": c.caption_width} if c.caption_width else {"model_type": "c2i"}
        given |= {"dim": c.width, "n_layer": c.layers, "n_head": c.heads, "rope_base": c.rope_base}
        given |= {"num_classes": c.classes, "vocab_size": c.vocabulary, "block_size": c.side**2}
        given |= {"norm_eps": c.norm_eps, "cls_token_num": c.condition_tokens}
        made = filled(gpt.Transformer(gpt.ModelArgs(**given)), self.model, llamagen.LAYOUT)
        self.counted, self._generate = made.to(self.model.device), generate.generate

    def tokens(self, law: Law, inputs: Inputs) -> Tensor:
        spec, mask = self.model.spec, None
        if spec.classes:
            condition = self._labels(inputs)
        else:
            states, mask = (inputs[key] for key in ("prompt_embeds", "prompt_attention_mask"))
            condition, mask = states.to(self.model.device, self.model.dtype), mask.to(self.model.device)
        how = {key: law[key] for key in self.knows} | {"cfg_scale": law["guidance_scale"], "emb_masks": mask}
        found = self._generate(self.counted, condition, spec.slots, **how)
        return found.long().unflatten(1, (spec.rows, spec.columns))


class VARPeer(CheckoutPeer):
    """`autoregressive_infer_cfg` of FoundationVision/VAR, models/var.py, over its quantiser; ids are read from that."""

    what, name, files = "VAR", "VAR autoregressive_infer_cfg", ("models.var", "models.quant")
    knows = ("top_k", "top_p")

    def _make(self, modules: list[Any]) -> None:
        (models, quant), c, images = modules, self.model.config, self.pipe.tokenizer
        steps: Any = quant.VectorQuantizer2(c.vocabulary, c.code_dim, False, v_patch_nums=c.sides)
        filled(steps, images.quantize, layout(images.config), "quantize.")
        shapes = {"num_classes": c.classes, "depth": c.layers, "embed_dim": c.width, "num_heads": c.heads}
        shapes |= {"norm_eps": c.norm_eps, "shared_aln": c.shared, "attn_l2_norm": True, "patch_nums": c.sides}
        made = filled(models.VAR(Features(steps), **shapes), self.model, var.LAYOUT).float().to(self.model.device)
        self._made, self._steps, self.counted = made, steps.to(self.model.device), made.head

    def tokens(self, law: Law, inputs: Inputs) -> Tensor:
        labels, found = self._labels(inputs), []
        labels = labels.where(labels >= 0, self.model.config.classes)
        hook = self._steps.embedding.register_forward_pre_hook(lambda _, given: found.append(given[0].clone()))
        top_p = 0.0 if law["top_p"] == 1 else law["top_p"]
        try:
            with self._half:
                how = {"cfg": law["guidance_scale"], "top_k": law["top_k"], "top_p": top_p}
                self._made.autoregressive_infer_cfg(len(labels), labels, **how)
        finally:
            hook.remove()
        return torch.cat(found, dim=1)


class Features(nn.Module):
    """What a VAR asks of its image tokenizer; images are left undecoded."""

    def __init__(self, quantize: Any) -> None:
        super().__init__()
        self.quantize, self.Cvae, self.vocab_size = quantize, quantize.Cvae, quantize.vocab_size

    def fhat_to_img(self, features: Tensor) -> Tensor:
        """Features (B, D, H, H), as they are."""
        return features


class MARPeer(CheckoutPeer):
    """`sample_tokens` of LTH14/mar, models/mar.py; it puts its tensors on CUDA unless somebody has changed that."""

    what, name, files = "MAR", "MAR sample_tokens", ("models.mar",)
    knows = ("temperature",)

    def _make(self, modules: list[Any]) -> None:
        c = self.model.config
        sizes = {"embed_dim": c.width, "depth": c.layers, "num_heads": c.heads}
        shapes = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in sizes.items()}
        shapes |= {"img_size": 16 * c.side, "vae_embed_dim": c.channels, "buffer_size": c.buffer}
        shapes |= {"class_num": c.classes, "diffloss_d": c.head_depth, "diffloss_w": c.head_width}
        shapes |= {"num_sampling_steps": str(self.law["steps"]), "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
        made = modules[0].MAR(**shapes)
        made.class_emb = nn.Embedding(c.classes, c.width)  # which there has a thousand rows whatever is asked
        self._made = filled(made, self.model, mar.LAYOUT).float().to(self.model.device)
        self.counted = self._made.decoder_norm

    def tokens(self, law: Law, inputs: Inputs) -> Tensor:
        labels, before = self._labels(inputs), np.random.get_state()
        np.random.seed(torch.initial_seed() % 2**32)  # its orders are numpy's
        how = {"cfg": law["guidance_scale"], "cfg_schedule": law["schedule"], "temperature": law["temperature"]}
        try:
            with self._half:
                drawn = self._made.sample_tokens(len(labels), law["iterations"], labels=labels, **how)
        finally:
            np.random.set_state(before)
        return drawn.flatten(2).transpose(1, 2).float()

    def same(self, inputs: Inputs, count: int) -> str:
        """How far its `z` of half of an image is from ours, of any tokens: what it draws hangs on noise of its own."""
        spec, labels = self.model.spec, self._labels(inputs)
        values = torch.randn(count, spec.slots, spec.channels, generator=torch.Generator().manual_seed(0))
        values, every = values.to(labels.device), torch.arange(spec.slots, device=labels.device).expand(count, -1)
        known, slots = every.tensor_split([spec.slots // 2], dim=1)
        with torch.no_grad():
            ours = self.model.decode(
                self.model.class_condition(labels, guided=False), Group(slots, known, values), None
            )
            masked = every >= spec.slots // 2
            theirs = self.quietly(partial(self._z, values, masked.float(), labels))[:, spec.slots // 2 :]
        apart = float((theirs.float() - ours.float()).abs().max() / ours.float().abs().max())
        return f"noise of its own; z of {slots.numel()} tokens within {apart:.0e}"

    def _z(self, values: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
        with self._half:
            x = self._made.forward_mae_encoder(values, masked, self._made.class_emb(labels))
            return self._made.forward_mae_decoder(x, masked)


def filled(made: Any, ours: nn.Module, table: Layout, under: str = "") -> Any:
    """A model of theirs with our weights, under the names that `table` has for them, less `under`.

    ValueError where names or shapes differ.
    """
    state = {table.published(under + key).removeprefix(under): value for key, value in ours.state_dict().items()}
    told = made.load_state_dict(state, strict=False, assign=True)
    missing = [key for key in told.missing_keys if not re.fullmatch(table.ignored or "", under + key)]
    if wrong := [*missing, *told.unexpected_keys]:
        raise ValueError(f"{wrong[0]} is in one of both models alone")
    return made.eval().requires_grad_(False)
