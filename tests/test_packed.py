"""Weights in order for a CPU: what runs is a copy of the model that shares them, and that no change escapes."""

import copy
import gc
import threading

import pytest
import torch
from every_kind import ASKED
from small import llamagen, pipeline
from torch import nn
from traced import Traced

from vargen.engine import packed
from vargen.engine.packed import PackedLinear
from vargen.engine.runners import Runners

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    """Those of the tests are smaller than what gains by it."""
    monkeypatch.setattr(packed, "LEAST", 1)
    monkeypatch.setattr(packed, "ALONE", 1)


def drawn(pipe, fast, asked):
    pipe.fast = fast
    return pipe(**asked, seed=2, output_type="latent").tokens


@pytest.mark.parametrize("name", ASKED)
def test_every_kind_draws_what_it_draws_without(name, tmp_path):
    make, asked = ASKED[name]
    pipe = make(tmp_path) if name == "harmon" else make()
    pipe.set_progress_bar_config(disable=True)
    auto, off = drawn(pipe, "auto", asked), drawn(pipe, "off", asked)
    if auto.is_floating_point():
        # As a whole: Harmon's tokens are some 1e5 here, and one that is near zero is a difference of such.
        assert (auto - off).norm() <= 5e-6 * off.norm()
    else:
        assert torch.equal(auto, off)
    assert not any(isinstance(part, PackedLinear) for part in pipe.transformer.modules())
    assert pipe(**asked, seed=2, output_type="latent").trace.kernels.get("linear") is None
    pipe.fast = "auto"
    assert pipe(**asked, seed=2, output_type="latent").trace.kernels["linear"] == "onednn"


def test_a_copy_shares_all_weights_and_leaves_the_model_alone():
    model = llamagen()
    before, state = dict(model.named_modules()), model.state_dict()
    run = packed.packed(model)
    assert dict(model.named_modules()) == before
    assert sum(isinstance(part, PackedLinear) for part in run.modules()) == len(packed.fitting(model)) > 4
    shared = dict(model.named_parameters())
    assert all(value is shared[name] for name, value in run.named_parameters())
    assert all(torch.equal(value, state[key]) for key, value in run.state_dict().items())


def times_two(model):
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(2)


def loaded(model):
    model.load_state_dict({key: value.flip(0) for key, value in model.state_dict().items()})


def replaced(model):
    model.layers[0].attention_norm.weight = nn.Parameter(torch.full((32,), 3.0))


def another_layer(model):
    model.output = nn.Linear(32, 48, bias=False)


def in_other_numbers(model):
    model.to(torch.bfloat16)


def past_autograd(model):  # as averages of weights are written in training
    for value in model.parameters():
        value.data.mul_(2)


def by_numpy(model):
    for value in model.parameters():
        value.numpy()[...] *= 2


def one_number(model):
    model.layers[0].attention.wo.weight.data[3, 5] = 1e4


def by_attribute(model):
    for layer in model.layers:
        layer.attention_norm.eps = 10.0


def by_method(model):
    decode = model.decode
    model.decode = lambda *arguments: 3 * decode(*arguments)


CHANGES = [times_two, loaded, replaced, another_layer, in_other_numbers, past_autograd, by_numpy, one_number]


@pytest.mark.parametrize("change", [*CHANGES, by_attribute, by_method])
def test_a_change_is_seen(change):
    pipe, asked = pipeline(), {"class_labels": [1, 2], "method": "ar"}
    first = drawn(pipe, "auto", asked)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        change(pipe.transformer)
    after = drawn(pipe, "auto", asked)
    assert torch.equal(after, drawn(pipe, "off", asked))
    assert not torch.equal(after, first)


def test_models_of_other_sizes_share_what_is_in_order():
    model = llamagen()
    runs = [packed.packed(each) for each in (model, copy.copy(model))]
    first, second = ([part._ordered for part in run.modules() if isinstance(part, PackedLinear)] for run in runs)
    assert all(one is other for one, other in zip(first, second, strict=True))


def test_nothing_is_held_when_the_model_is_gone():
    gc.collect()
    before = len(packed._ordered)
    runners, model = Runners(), llamagen()
    runners.of("model", model, "auto")
    assert len(packed._ordered) > before
    del runners, model
    gc.collect()
    assert len(packed._ordered) == before


def test_what_stays_as_it_is(monkeypatch):
    model = llamagen()
    assert Runners().of("model", model, "off") is model
    assert packed.fitting(nn.ModuleList([nn.Linear(4, 4).half(), nn.Linear(4, 4, device="meta")])) == []
    monkeypatch.setattr(packed, "total_memory", lambda device: 1000)
    assert packed.packed(model) is model


class Listener:
    def __init__(self):
        self.heard = 0

    def hear(self, *_):
        self.heard += 1


def by_hook(part, listener):
    part.register_forward_hook(listener.hear)


def by_pre_hook(part, listener):
    part.register_forward_pre_hook(listener.hear)


def by_forward(part, listener):
    inner = part.forward

    def forward(*arguments):
        listener.hear()
        return inner(*arguments)

    part.forward = forward


def by_class(part, listener):
    class Attention(type(part.attention)):
        def forward(self, *arguments):
            self.listener.hear()
            return super().forward(*arguments)

    part.attention.__class__, part.attention.listener = Attention, listener


@pytest.mark.parametrize("listen", [by_hook, by_pre_hook, by_forward, by_class])
def test_who_listens_hears(listen):
    """Also who begins after a call, and by a method, whose object a copy of the model would have a copy of."""
    pipe, listener = pipeline(), Listener()
    asked = {"class_labels": [1], "method": "ar"}
    first = drawn(pipe, "auto", asked)
    listen(pipe.transformer.layers[0], listener)
    assert torch.equal(drawn(pipe, "auto", asked), first)
    assert listener.heard > 1


@pytest.mark.parametrize("listen", [by_hook, by_pre_hook, by_forward])
def test_graphs_do_not_pass_by_who_listens(listen):
    pipe, listener = pipeline(), Listener()
    pipe._runners = Runners(Traced())
    asked = {"class_labels": [1], "method": "ar", "seed": 2, "output_type": "latent"}
    first = [pipe(**asked) for _ in range(3)][-1]
    assert first.trace.kernels["decode"] == "graph"
    listen(pipe.transformer.layers[0], listener)
    assert torch.equal(pipe(**asked).tokens, first.tokens)
    assert listener.heard > 1


class Remembering(type(llamagen())):
    """A model of somebody's own, which keeps something from one call to the next."""

    def class_condition(self, labels, *, guided):
        self.factor = 1 + labels.float().mean()
        return super().class_condition(labels, guided=guided)

    def decode(self, block, cache):
        return super().decode(block, cache) * self.factor


def test_a_model_that_remembers_is_run_itself():
    pipe, asked = pipeline(), {"class_labels": [4, 4], "method": "ar"}
    pipe.transformer.__class__ = Remembering
    assert torch.equal(drawn(pipe, "auto", asked), drawn(pipe, "off", asked))


def test_what_cannot_be_copied_is_run_as_it_is():
    pipe, asked = pipeline(), {"class_labels": [4], "method": "ar"}
    before = drawn(pipe, "auto", asked)
    pipe.transformer.lock = threading.Lock()
    assert torch.equal(drawn(pipe, "auto", asked), before)
    assert "linear" not in pipe(**asked, seed=2, output_type="latent").trace.kernels


def test_the_trace_says_it_of_the_model_alone():
    runners, model = Runners(), llamagen()
    assert runners.of("model", model, "auto") is not model
    assert runners.notes == {"linear": "onednn"}
    assert runners.of("drafter", model, "off") is model
    assert runners.notes
    assert runners.of("model", model, "off") is model
    assert not runners.notes


def test_small_layers_stay_as_they_are(monkeypatch):
    """Where handing a product to oneDNN takes longer than the product: all of few weights, and a lone row of more."""
    monkeypatch.undo()
    few, more = nn.Linear(128, 256), nn.Linear(512, 512)
    assert packed.fitting(nn.Sequential(few, more)) == [more]
    ordered, alone, several = PackedLinear(more), torch.randn(1, 1, 512), torch.randn(2, 1, 512)
    asked = []
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *given: asked.append(given) or more(given[0]))
    assert torch.equal(ordered(alone), more(alone))
    assert not asked
    ordered(several)
    assert len(asked) == 1
