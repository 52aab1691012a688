"""Models of transformers, tiny and random, drawn by our loop through their own `generate`: token for token what theirs
gives, and back again. Laws and refusals are in `test_accelerate_law.py`.
"""

import copy
import inspect
import pickle

import pytest
import torch
from held import CALLS, METHODS, chameleon_call, emu_call, theirs
from transformers.generation import GenerateDecoderOnlyOutput
from wrapped import chameleon_model, emu_model, janus_model

import vargen
from vargen.pipelines.accelerate import KINDS


@pytest.fixture(scope="module")
def made():
    return {"janus": janus_model(), "emu3": emu_model(), "chameleon": chameleon_model()}


@pytest.fixture(autouse=True)
def released(made):
    """Models are given back as they were."""
    yield
    for model in made.values():
        vars(model).pop("generate", None)


@pytest.fixture(params=["janus", "emu3", "chameleon"])
def kind(request):
    return request.param


@pytest.fixture
def held(made, kind):
    """A model, and a call of it for images."""
    model = made[kind]
    return model, CALLS[kind]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_greedy_is_token_for_token_theirs(held, count, scale, kind):
    """With prompts of several lengths, padded on the left."""
    model, call = held
    given = call(
        count, guidance_scale=3.0 if kind == "janus" else scale
    )  # at 1 transformers' own Janus ends in an error
    wanted = theirs(model, given)
    assert len(wanted.unique()) > 2
    for method in METHODS:
        assert vargen.accelerate(model, method) is model
        found = model.generate(**given)
        assert torch.equal(found, wanted), method
        assert found.dtype == wanted.dtype
        assert not found.is_inference()
        assert model.generate.trace.method == method
    assert model.generate.trace.forwards_per_image < 17


def test_emu3_is_cut_where_theirs_is(made):
    """After so many new tokens, by default 20; against the prompt's last token where no negative one is given."""
    model = made["emu3"]
    for how in ({"max_new_tokens": 9}, {"max_new_tokens": 3}, {"max_new_tokens": None}, {"max_length": 15}):
        given = emu_call(2, **{"max_new_tokens": None, **how})
        given |= {"negative_prompt_ids": None, "negative_prompt_attention_mask": None}
        wanted = theirs(model, given)
        vargen.accelerate(model, "sjd")  # with a window that it measures
        assert torch.equal(model.generate(**given), wanted), how


def test_results_have_their_shape(held):
    model, call = held
    wanted = theirs(model, call(2))
    vargen.accelerate(model)
    for given in (call(2), call(2, return_dict_in_generate=True), call(2, num_beams=1, top_p=0.3, output_scores=False)):
        found = model.generate(**given)
        if given.get("return_dict_in_generate"):
            assert isinstance(found, GenerateDecoderOnlyOutput)
            found = found.sequences
        assert torch.equal(found, wanted)
    ids = call(2).pop("input_ids")
    positional = {name: value for name, value in call(2).items() if name != "input_ids"}
    assert torch.equal(model.generate(ids, **positional), wanted)
    several = call(2, do_sample=True, top_k=1, num_return_sequences=3)
    found = model.generate(**several)
    assert torch.equal(found, wanted.repeat_interleave(3, 0))
    narrow = model.generate(**call(2, input_ids=ids.int()))
    assert narrow.dtype == torch.int32


def test_seeds_come_from_torch(held):
    model, call = held
    vargen.accelerate(model, "sjd-exact:window=4")
    given = call(1, do_sample=True, num_return_sequences=4, top_k=0, temperature=1.5)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(model.generate(**given))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].unique(dim=0)) == 4
    assert len(set(model.generate.trace.seeds)) == 4
    before = torch.get_rng_state()
    model.generate(**call(1))
    assert torch.equal(torch.get_rng_state(), before)  # as greedy decoding leaves it alone


def test_text_is_untouched_and_release_restores(held):
    model, call = held
    given = {name: value for name, value in call(2).items() if name in ("input_ids", "attention_mask")}
    given |= {"max_new_tokens": 6, "do_sample": False, "num_beams": 2}
    wanted, images = model.generate(**given), theirs(model, call(1))
    keys, modes = set(model.state_dict()), [part.training for part in model.modules()]
    gradients = [value.requires_grad for value in model.parameters()]
    vargen.accelerate(model, "ar")
    model.generate(**call(1))
    assert torch.equal(model.generate(**given), wanted)
    _, pipe = model.generate._made
    assert {id(value) for value in pipe.transformer.parameters()} <= {id(value) for value in model.parameters()}
    assert set(model.state_dict()) == keys
    assert inspect.signature(model.generate) == inspect.signature(type(model).generate.__get__(model))
    assert [part.training for part in model.modules()] == modes
    assert [value.requires_grad for value in model.parameters()] == gradients
    assert vargen.release(model) is model
    assert "generate" not in vars(model)
    assert model.generate.__func__ is type(model).generate
    assert torch.equal(theirs(model, call(1)), images)
    with pytest.raises(ValueError, match=r"this \w+ is not accelerated"):
        vargen.release(model)


def test_what_stood_there_before_comes_back(made):
    model = made["janus"]

    def own(*_, **__):
        return "own"

    model.generate = own
    vargen.accelerate(vargen.accelerate(model, "ar"), "sjd-exact:window=4")
    assert model.generate(torch.ones(1, 2)) == "own"
    assert vargen.release(model).generate is own


def test_copies_and_folders(held, tmp_path):
    model, call = held
    vargen.accelerate(model, "sjd-exact:window=4")
    wanted = model.generate(**call(1))
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin.generate.model is twin
        assert twin.generate.method == "sjd-exact:window=4"
        with torch.no_grad():
            next(twin.parameters()).mul_(1.0)
        assert torch.equal(twin.generate(**call(1)), wanted)
        assert "generate" not in vars(vargen.release(twin))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    loaded.generation_config = model.generation_config  # of which a folder keeps no entry for Janus's images
    assert torch.equal(theirs(loaded, call(1)), wanted)


def test_changed_weights_are_seen(made, kind):
    model, call = copy.deepcopy(made[kind]), CALLS[kind]
    vargen.accelerate(model)
    before = model.generate(**call(2))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    after = model.generate(**call(2))
    assert not torch.equal(after, before)
    assert torch.equal(after, theirs(model, call(2)))
    model.to(torch.bfloat16)
    assert model.generate(**call(2)).shape == before.shape
    assert next(model.parameters()).dtype == torch.bfloat16
    model.to(torch.float64)  # from halves, whose greedy tokens are others
    assert torch.equal(model.generate(**call(2)), theirs(model, call(2)))


class Switched(torch.nn.Linear):
    """As adapters are: with a switch that is no weight."""

    on = False

    def forward(self, input):
        return -super().forward(input) if self.on else super().forward(input)


def test_switches_of_somebody_s_own_layers_are_seen(made, kind):
    model, call = copy.deepcopy(made[kind]), CALLS[kind]
    language = vargen.accelerate(model).generate.parts()[0]
    attention = language.layers[0].self_attn
    plain = attention.o_proj
    attention.o_proj = Switched(plain.in_features, plain.out_features, bias=False)
    attention.o_proj.weight = plain.weight
    drawn = []
    for on in (False, True):
        attention.o_proj.on = on
        drawn.append(model.generate(**call(2)))
        assert torch.equal(drawn[-1], theirs(model, call(2)))
    assert not torch.equal(*drawn)


def test_methods_and_things_are_checked_at_once(made):
    model = made["janus"]
    for method, complaint in [
        ("sdj", "unknown method 'sdj'; did you mean sjd"),
        ("var", "method var does not draw with raster models"),
        ("sjd:windw=3", "has no setting 'windw'"),
        (7, "got method 7, expected a name"),
        ("speculative", "needs a drafter by name"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            vargen.accelerate(model, method)
    vargen.accelerate(model, "sjd-coupled:rule=lantern:k=3")
    with pytest.raises(ValueError, match="rule lantern needs the codes of the image tokenizer"):
        model.generate(**CALLS["janus"](1))
    vargen.release(model)
    with pytest.raises(ValueError, match="got fast 'very', expected auto, off, triton"):
        vargen.accelerate(model, fast="very")
    assert "generate" not in vars(model)
    for thing in (None, "janus", torch.nn.Linear(2, 2), model.model):
        for change in (vargen.accelerate, vargen.release):
            kinds = f"one of transformers' or diffusers' {', '.join(KINDS)}"
            with pytest.raises(ValueError, match=f"got a .*, expected {kinds}"):
                change(thing)


def test_models_that_our_loop_cannot_run_are_refused(made, monkeypatch):
    model = made["emu3"]
    monkeypatch.setattr(model.model.text_model.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(ValueError, match="attention by flash_attention_2, expected one of sdpa, eager"):
        vargen.accelerate(model)
    monkeypatch.undo()
    away = copy.deepcopy(model)
    away.lm_head.to("meta")
    with pytest.raises(ValueError, match="on 2 devices or offloaded"):
        vargen.accelerate(away)
    away.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match="got a lm_head that is a Sequential"):
        vargen.accelerate(away)
    other = chameleon_model()
    other.config.vocabulary_map = {"<image>": 4}
    with pytest.raises(ValueError, match="a vocabulary_map without image codes"):
        vargen.accelerate(other)


def test_chameleon_s_modes(made):
    model = vargen.accelerate(made["chameleon"])
    text = chameleon_call(2, max_new_tokens=4)
    wanted = type(model).generate(model, **{name: value for name, value in text.items() if name != "generation_mode"})
    assert torch.equal(model.generate(**text | {"generation_mode": "text"}), wanted)
    with pytest.raises(ValueError, match="got generation_mode 'video', expected text or image"):
        model.generate(**text | {"generation_mode": "video"})
    text["input_ids"][0, -1] = 30
    with pytest.raises(ValueError, match="does not end in the token 5, which begins an image"):
        model.generate(**text)
    ids = torch.full((3, 1), 5)
    with pytest.raises(ValueError, match=r"got negative_prompt_ids \(3, 1\), expected token ids of 2 prompts"):
        model.generate(**chameleon_call(2, guidance_scale=2.0, negative_prompt_ids=ids))
