"""transformers' layers by few operations: the numbers of their own forward, which runs where anything is unknown."""

from typing import Any

import every_kind
import pytest
import torch
from torch import nn

from vargen.models import lean

FAMILIES = {"emu3": every_kind.emu, "janus": every_kind.janus, "glm": every_kind.glm}


@pytest.fixture(params=FAMILIES)
def pipe(request):
    made = FAMILIES[request.param]()
    made.set_progress_bar_config(disable=True)
    return made


def laws(model, *, layers: bool):
    """Logits behind a ragged batch of prompts, and of a window of five tokens, with our layers or with theirs."""
    from vargen.core.types import Block

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 10, (2, 2, 7), generator=generator)
    mask = torch.ones(2, 2, 7, dtype=torch.bool)
    mask[1, :, 5:] = False
    if hasattr(model, "start"):
        ids[0, 0, 6] = ids[1, 0, 4] = model.start
        ids[..., 0] = torch.where(ids[..., 0] == model.start, 2, ids[..., 0])
    condition = model.text_condition(ids, mask, guided=False)
    cache = model.make_cache(2, front=condition.embedding.shape[1])
    assert cache.layers is not None
    if not layers:
        cache.layers = None
    tokens = torch.randint(0, 12, (2, 5), generator=generator)
    slots = torch.arange(5).expand(2, -1)
    return model.prefill(condition, cache), model.decode(Block(tokens, slots, 0, 5), cache)


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-5), (torch.bfloat16, 0.06)])
def test_the_numbers_are_theirs(pipe, dtype, most):
    model = pipe.transformer.to(dtype)
    for ours, theirs in zip(laws(model, layers=True), laws(model, layers=False), strict=True):
        scale = theirs.abs().max()
        assert (ours - theirs).abs().max() < most * scale


class Doubled(nn.Module):
    """What stands in a linear layer's place, as an adapter does."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


@torch.inference_mode()
def test_adapters_are_run(pipe):
    model = pipe.transformer
    before = laws(model, layers=True)[1]
    attention = model.language.layers[0].self_attn
    attention.q_proj = Doubled(attention.q_proj)
    ours, theirs = laws(model, layers=True)[1], laws(model, layers=False)[1]
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    assert (ours - before).abs().max() > 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("part", ["layer", "self_attn", "mlp", "input_layernorm", "norm"])
def test_who_is_listened_to_runs_by_itself(pipe, part):
    language, heard = pipe.transformer.language, []
    layer = language.layers[0]
    module = {"layer": layer, "norm": language.norm}.get(part) or getattr(layer, part)
    handle = module.register_forward_hook(lambda *_: heard.append(part))
    assert lean.layers(language) is None
    pipe(prompt=["sea"], method="ar", seed=0, output_type="latent")
    assert heard
    handle.remove()
    module.forward = module.forward
    assert lean.layers(language) is None


def test_what_is_not_known_runs_by_itself(pipe):
    language = pipe.transformer.language
    config, layer = language.config, language.layers[0]
    assert lean.layers(language) is not None
    config.hidden_act = "gelu"
    assert lean.layers(language) is None
    config.hidden_act = "silu"
    config._attn_implementation = "flash_attention_2"
    assert lean.layers(language) is None
    config._attn_implementation = "eager"
    assert lean.layers(language) is not None
    layer.mlp = Doubled(layer.mlp)
    assert lean.layers(language) is None


@torch.inference_mode()
def test_a_hook_on_a_linear_layer_is_heard(pipe):
    heard = []
    pipe.transformer.language.layers[1].self_attn.o_proj.register_forward_hook(lambda *_: heard.append(1))
    laws(pipe.transformer, layers=True)
    assert heard == [1, 1]
