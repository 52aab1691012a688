"""Joined weights by the names that a state has: what is loaded in parts, or with other shapes."""

import copy

import chameleon
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import llamagen, mar

from vargen.core import checkpoints
from vargen.models.flowar import FlowAR, FlowARConfig


def flowar_model():
    """Whose head attends."""
    return FlowAR(FlowARConfig(1, 2, 32, 3, 5, 1, 64, True, (1, 2), 4))


JOINED = {  # a model, and the parts of one parameter
    "gate and up": (llamagen, ("layers.0.feed_forward.w1.weight", "layers.0.feed_forward.w3.weight")),
    "turned": (llamagen, ("layers.0.attention.wqkv.weight",)),
    "FlowAR's gate and up": (flowar_model, ("encoder_blocks.0.mlp.fc1_g.bias", "encoder_blocks.0.mlp.fc1_x.bias")),
    "FlowAR's bias, turned": (flowar_model, ("encoder_blocks.0.attn.qkv.bias",)),
    "FlowAR's keys, turned": (flowar_model, ("head.blocks.0.cross.kv.weight",)),
    "the modulations of MAR's head": (mar, ("head.blocks.0.modulate.weight", "head.modulate.weight")),
    "q, k, v": (chameleon.decoder, tuple(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")),
}
MODELS = (llamagen, chameleon.decoder, flowar_model, mar)


@pytest.mark.parametrize("case", JOINED)
def test_rows_of_other_numbers_are_refused_though_their_sum_is_right(case):
    make, names = JOINED[case]
    model = make()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    bad = dict(state)
    for name, more in zip(names, (4, -4, 0), strict=False):
        bad[name] = torch.zeros(len(state[name]) + more, *state[name].shape[1:])
    with pytest.raises(RuntimeError, match=f"size mismatch for {names[0]}"):
        model.load_state_dict(bad)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in names)


@pytest.mark.parametrize("case", JOINED)
def test_a_part_alone_is_loaded_and_the_others_stay(case):
    make, names = JOINED[case]
    model = make()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    told = model.load_state_dict({names[-1]: state[names[-1]].double() + 1}, strict=False)
    assert not told.unexpected_keys
    assert set(names[:-1]) <= set(told.missing_keys)
    assert names[-1] not in told.missing_keys
    after = model.state_dict()
    assert all(torch.equal(value, state[key] + (key == names[-1])) for key, value in after.items())
    if len(names) > 1:
        del state[names[0]]
        with pytest.raises(RuntimeError, match=names[0]):
            model.load_state_dict(state)


def test_a_state_is_written_by_safetensors_itself(tmp_path):
    for make in MODELS:
        state = make().state_dict()
        save_file(state, tmp_path / "weights.safetensors")
        found = load_file(tmp_path / "weights.safetensors")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("make", MODELS)
def test_a_file_is_read_whole(make, tmp_path):
    """Also where parts of several modules are joined in one above them all."""
    model = make()
    checkpoints.save(tmp_path / "weights.safetensors", model.state_dict())
    fresh = copy.deepcopy(model).to("meta")
    checkpoints.load_into(fresh, tmp_path / "weights.safetensors")
    own = fresh.state_dict()
    assert all(torch.equal(own[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("make", MODELS)
def test_a_parameter_with_a_name_of_the_state_is_what_the_state_has(make):
    """Whoever trains a part by the module's own names, LoRA say, is refused, and not read in another order."""
    model = make()
    state, own = model.state_dict(), dict(model.named_parameters())
    assert own.keys() & state.keys()
    assert all(torch.equal(own[name], state[name]) for name in own.keys() & state.keys())
    assert own.keys() - state.keys()
