"""Files that the official training scripts write: what lies beside the weights, and what wrappers put before keys."""

import argparse
import itertools
import re

import pytest
import torch
from harmon_plain import SMALL as HARMON
from small import CONFIG, LATENTS, SCALES, llamagen, multiscale_vq, vq

import vargen
from vargen.core import checkpoints, weight_files
from vargen.models import chameleon, flowar, harmon, mar, pocket, xar
from vargen.models import llamagen as llamagen_module
from vargen.models import var as var_module
from vargen.models.chameleon import Chameleon
from vargen.models.eagle import EagleHead
from vargen.models.flowar import FlowAR, FlowARConfig
from vargen.models.harmon import Harmon
from vargen.models.llamagen import LlamaGen
from vargen.models.mar import MAR
from vargen.models.var import VAR
from vargen.models.xar import XAR, XARConfig
from vargen.tokenizers import kl as kl_module
from vargen.tokenizers import multiscale_vq as multiscale_module
from vargen.tokenizers import vq as vq_module
from vargen.tokenizers.kl import KLTokenizer
from vargen.tokenizers.multiscale_vq import MultiScaleVQTokenizer
from vargen.tokenizers.vq import VQTokenizer

MULTISCALE = multiscale_vq().config
MODULES = {  # every family and image tokenizer, small, with the layout of its published files
    "llamagen": (lambda: LlamaGen(CONFIG), llamagen_module.LAYOUT),
    "var": (lambda: VAR(SCALES), var_module.LAYOUT),
    "mar": (lambda: MAR(LATENTS), mar.LAYOUT),
    "flowar": (lambda: FlowAR(FlowARConfig(1, 2, 32, head_depth=1, head_width=64)), flowar.LAYOUT),
    "xar": (lambda: XAR(XARConfig(1, 2, 32)), xar.LAYOUT),
    "harmon": (lambda: Harmon(HARMON), harmon.LAYOUT),
    "chameleon": (lambda: Chameleon(pocket.LUMINA), chameleon.LAYOUT),
    "eagle": (lambda: EagleHead(CONFIG), checkpoints.PLAIN),
    "vq": (lambda: VQTokenizer(vq().config), vq_module.LLAMAGEN),
    "taming": (lambda: VQTokenizer(vq().config), vq_module.taming_layout(vq().config)),
    "multiscale": (lambda: MultiScaleVQTokenizer(MULTISCALE), multiscale_module.layout(MULTISCALE)),
    "kl": (lambda: KLTokenizer(pocket.KL), kl_module.layout(pocket.KL)),
}


def published(name):
    """An empty module, its layout, and a file's state of it."""
    make, layout = MODULES[name]
    with torch.device("meta"):
        module = make()
    generator = torch.Generator().manual_seed(0)
    shapes = {key: shape for key, (_, shape) in layout.expected(module).items()}
    return module, layout, {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def loaded(name, state, path):
    module, layout, _ = published(name)
    torch.save({layout.under: state} if layout.under else state, path)
    checkpoints.load_into(module, path, layout)
    return module.state_dict()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "transformer.", "module._orig_mod."])
@pytest.mark.parametrize("name", MODULES)
def test_one_prefix_of_all_keys_is_taken_off(tmp_path, name, prefix):
    _, _, state = published(name)
    wanted = loaded(name, state, tmp_path / "a.pt")
    longer = {prefix + key: value for key, value in state.items()}
    with pytest.warns(UserWarning, match=rf"vargen: .*b\.pt: took {re.escape(prefix)} off every key"):
        found = loaded(name, longer, tmp_path / "b.pt")
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())


def test_what_is_no_common_prefix_stays(tmp_path):
    state, path = llamagen().state_dict(), tmp_path / "a.safetensors"
    keys = list(state)
    for spoiled in (
        {f"module.{key}" if key != keys[-1] else f"_orig_mod.{key}": value for key, value in state.items()},
        {f"network.{key}": value for key, value in state.items()},
        {f"module.module.module.{key}": value for key, value in state.items()},
    ):
        checkpoints.save(path, spoiled)
        with pytest.raises(ValueError, match=r"not one key fits \(it begins with "):
            checkpoints.load_into(llamagen(), path)
    checkpoints.save(
        path, {**{f"module.{key}": value for key, value in state.items()}, keys[0]: state[keys[0]].clone()}
    )
    with pytest.raises(checkpoints.Misfit, match=f"missing {keys[1]};.*and .* more"):
        checkpoints.load_into(llamagen(), path)


ARGS = argparse.Namespace(lr=1e-4, betas=[0.9, 0.95], device="cuda", name=None, nested=argparse.Namespace(gpu=0))


@pytest.mark.parametrize("zipped", [True, False])
def test_the_arguments_of_a_run_are_data(tmp_path, zipped):
    """LlamaGen's train_c2i.py and vq_train.py, MAR's save_model."""
    model, other, path = llamagen(), llamagen(scale=0.1), tmp_path / "a.pt"
    model.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters())
    logits = model(model.class_condition(torch.tensor([1]), guided=False), torch.zeros(1, 36, dtype=torch.int64))
    logits.sum().backward()
    optimiser.step()
    saved = {"optimizer": optimiser.state_dict(), "steps": 100, "args": ARGS, "epoch": 1, "scaler": {"scale": 65536.0}}
    torch.save({"model": model.state_dict(), **saved}, path, _use_new_zipfile_serialization=zipped)
    checkpoints.load_into(other, path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def test_averaged_weights_lie_beside_plain_ones_and_arguments(tmp_path):
    module, layout, state = published("mar")
    path = tmp_path / "checkpoint-last.pth"
    torch.save({"model": {}, "model_ema": state, "optimizer": {}, "epoch": 1, "args": ARGS}, path)
    checkpoints.load_into(module, path, layout)
    assert weight_files.find(path, "model_ema").tables == ("model_ema",)


def test_what_var_s_trainer_writes(tmp_path):
    """Both the transformer and its image tokenizer, each found by its own keys, in either order."""
    for number, order in enumerate(itertools.permutations(("var_wo_ddp", "vae_local", "config"))):
        transformer, images = published("var"), published("multiscale")
        parts = {"var_wo_ddp": transformer[2], "vae_local": images[2], "config": {"patch_nums": (1, 2, 3, 4)}}
        path = tmp_path / f"{number}.pth"
        trainer = {name: parts[name] for name in order}
        torch.save({"epoch": 1, "iter": 0, "trainer": trainer, "args": {"depth": 2}}, path)
        for module, layout, state in (transformer, images):
            checkpoints.load_into(module, path, layout)
            shapes = {key: tuple(value.shape) for key, value in state.items()}
            assert weight_files.find(path, wanted=shapes).shapes == shapes


def test_the_file_of_a_trainer_by_name(tmp_path):
    """`vargen.load` with what VAR's train.py writes of the model that ships."""
    plain = vargen.load("pocket-var", device="cpu")
    path, state = tmp_path / "ar-ckpt-last.pth", plain.transformer.state_dict()
    torch.save({"epoch": 1, "trainer": {"vae_local": {"other": torch.zeros(1)}, "var_wo_ddp": state}}, path)
    pipe = vargen.load("pocket-var", checkpoint=path, device="cpu")
    assert all(torch.equal(value, state[key]) for key, value in pipe.transformer.state_dict().items())
