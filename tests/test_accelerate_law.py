"""What a call of an accelerated model asks for: the law that transformers' own processors make, and the grid that a
function allows; what cannot be carried over is refused by name.
"""

from dataclasses import fields

import pytest
import torch
from held import (
    CALLS,
    ENDS,
    HIGH,
    NAMES,
    VISUAL,
    WIDE,
    allowed,
    emu_call,
    emu_ids,
    first_laws,
    janus_call,
    theirs,
)
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, MaxLengthCriteria
from wrapped import CODES, EMU, chameleon_model, emu_model, janus_model

import vargen
from vargen.core.warp import Warp
from vargen.pipelines import asked_grid, asked_law


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


LAWS = [
    {},
    {"top_k": 7, "temperature": 0.7},
    {"top_k": 0, "top_p": 0.6},
    {"top_k": None, "top_p": 0.9, "temperature": 1.3},
    {"generation_config": GenerationConfig(do_sample=True, top_k=3, temperature=2.0)},
    {"do_sample": 1, "top_k": 7, "temperature": 0.7},
    {"do_sample": 0, "temperature": 0.3},
    {"do_sample": False, "temperature": 0.3, "min_p": 0.2, "typical_p": 0.1},
]


@pytest.mark.parametrize("how", LAWS)
def test_the_law_is_that_of_their_processors(made, how):
    """Their default of top-k 50 among it; and greedy decoding looks at no setting of sampling."""
    model = made["emu3"]
    given = emu_call(1, **({"do_sample": True} | how), guidance_scale=None)
    if "generation_config" in how:
        del given["do_sample"]
    asked = asked_law.read(model, given, ("prefix_allowed_tokens_fn", *(name for name in given if "negative" in name)))
    logits = 3 * torch.randn(5, 80, generator=torch.Generator().manual_seed(0))
    scores = model._get_logits_processor(asked.config)(torch.zeros(5, 1, dtype=torch.int64), logits)
    if not asked.drawn:
        scores = torch.where(scores == scores.amax(-1, keepdim=True), 0.0, float("-inf"))
    ours = Warp(*(asked.law[name] for name in ("temperature", "top_k", "top_p")))(logits)
    assert torch.allclose(ours, scores.softmax(-1), atol=1e-6)
    assert torch.equal(ours > 0, scores > float("-inf"))


def test_the_models_own_config_counts(made):
    model = made["janus"]
    model.generation_config.update(top_p=0.25, do_sample=True, guidance_scale=2)
    try:
        asked = asked_law.read(model, {"input_ids": torch.ones(1, 2, dtype=torch.int64)}, (), 5.0)
    finally:
        model.generation_config.update(top_p=None, do_sample=None, guidance_scale=None)
    assert asked.law == {"guidance_scale": 2.0, "temperature": 1.0, "top_k": 50, "top_p": 0.25}


@pytest.mark.parametrize("method", ["ar", "sjd-exact:window=4", "sjd-coupled:window=4"])
def test_frequencies_are_those_of_the_law(made, kind, method):
    """Of the first two codes, by transformers' own forward and, for Emu3, processors: guidance, temperature, top-k."""
    model, count, scale, warp = made[kind], 1500, 1.5, Warp(2.0, 4)
    how = {"do_sample": True, "temperature": 2.0, "top_k": 4, "guidance_scale": scale, "max_new_tokens": 2}
    given = CALLS[kind](1, **how, num_return_sequences=count)
    codes, first, second = first_laws(kind, model, given, scale)
    law = (warp(first)[0][:, None] * warp(second)).flatten()
    vargen.accelerate(model, method)
    torch.manual_seed(0)
    front = 0 if kind == "janus" else given["input_ids"].shape[1]
    places = torch.searchsorted(codes, model.generate(**given)[:, front : front + 2].contiguous())
    found = torch.bincount(places[:, 0] * CODES + places[:, 1], minlength=CODES**2)
    assert found[law == 0].sum() == 0
    there = law * count >= 5
    statistic = ((found - law * count).square() / (law * count))[there].sum()
    degrees = int(there.sum())
    assert degrees > 5
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5


REFUSED = {
    "logits_processor": LogitsProcessorList([lambda ids, scores: scores]),
    "stopping_criteria": [MaxLengthCriteria(9)],
    "streamer": object(),
    "assistant_model": object(),
    "custom_generate": "somebody/else",
    "inputs_embeds": torch.zeros(1, 2, 32),
    "pixel_values": torch.zeros(1, 3, 8, 8),
    "output_scores": True,
    "output_logits": True,
    "num_beams": 2,
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 2,
    "suppress_tokens": [3],
    "bad_words_ids": [[3]],
    "sequence_bias": [[[3], 1.0]],
    "min_p": 0.1,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.1,
    "prompt_lookup_num_tokens": 3,
    "max_time": 1.0,
}


def test_what_cannot_be_carried_over_is_refused_by_name(held, monkeypatch):
    model, call = held
    vargen.accelerate(model)
    monkeypatch.setattr(type(model.generate), "_tokens", None)  # nothing is drawn
    for name, value in REFUSED.items():
        with pytest.raises(ValueError, match=rf"^got {name}[ ,].*vargen does not carry over"):
            model.generate(**call(1, do_sample=True, **{name: value}))
    for scale in (0.5, float("nan")):
        with pytest.raises(ValueError, match=r"got guidance_scale \S+, expected 1 \(off\) or more"):
            model.generate(**call(1, guidance_scale=scale))


def test_every_setting_of_theirs_is_carried_indifferent_or_refused(made):
    """Also those that a later version adds."""
    usual = vars(GenerationConfig())
    known = asked_law.CARRIED | asked_law.INDIFFERENT
    names = [name for name in usual if not name.startswith("_") and name not in known]
    assert len(names) > 30
    for name in names:
        config, _ = made["emu3"]._prepare_generation_config(None, do_sample=True)
        asked_law._check(config)
        setattr(config, name, 0.77)
        with pytest.raises(ValueError, match=rf"^got {name} 0.77, "):
            asked_law._check(config)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"input_ids": torch.zeros(2, 3)}, r"got input_ids torch.float32 \(2, 3\), expected token ids \(B, T\)"),
        ({"input_ids": None}, "got input_ids None"),
        ({"inputs": torch.ones(1, 2, dtype=torch.int64)}, "got both inputs and input_ids"),
        ({"attention_mask": torch.tensor([[1] * 6 + [0]])}, "not of padding on the left"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1, 1, 1, 1]])}, "not of padding on the left"),
        ({"attention_mask": torch.ones(2, 7)}, r"got attention_mask \(2, 7\), expected 0 and 1 of the shape \(1, 7\)"),
        ({"pad_token_id": None}, "without bos_token_id, pad_token_id or boi_token_id"),
        ({"do_sample": True, "top_p": 3.0}, "got top-p 3.0"),
        ({"do_sample": True, "temperature": 0.0}, "got temperature 0"),
        ({"do_sample": True, "num_return_sequences": 1.5}, "got num_return_sequences 1.5, expected a whole number"),
        ({"num_return_sequences": 0}, "got num_return_sequences 0, expected at least 1"),
        ({"generation_config": {"top_k": 1}}, "got generation_config {'top_k': 1}, expected a GenerationConfig"),
    ],
)
def test_bad_input_is_one_sentence(made, how, complaint):
    model = made["janus"]
    vargen.accelerate(model)
    with pytest.raises(ValueError, match=complaint):
        model.generate(**janus_call(1, **how))


def test_lengths_and_masks_of_emu3(made):
    """A text ends where its function says so, however many tokens are allowed."""
    model = made["emu3"]
    wanted = theirs(model, emu_call(1))
    vargen.accelerate(model, "ar")
    assert torch.equal(model.generate(**emu_call(1, max_new_tokens=10**12)), wanted)
    for how, said in (
        ({"max_new_tokens": 1.5}, "got max_new_tokens 1.5, expected a whole number"),
        ({"negative_prompt_ids": None}, "negative_prompt_attention_mask and no negative_prompt_ids"),
    ):
        with pytest.raises(ValueError, match=said):
            model.generate(**emu_call(1, **how))


def test_a_mask_is_inferred_as_theirs_is(made):
    model = made["emu3"]
    given = emu_call(3, attention_mask=None)
    wanted = theirs(model, given)
    vargen.accelerate(model)
    assert torch.equal(model.generate(**given), wanted)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda _, ids: [NAMES["sea"]], "an image begins with several codes"),
        (lambda _, ids: [2, *VISUAL], "none of which ends a text"),
        (lambda _, ids: [], "allows nothing for prompt 0"),
        (lambda _, ids: VISUAL[: len(ids)], "is of no row"),
        (lambda _, ids: VISUAL if len(ids) % 5 else [8, 9], "is of no row"),
        (lambda _, ids: [2] if len(ids) > 12 else VISUAL if len(ids) % 5 else [8], "is of no row"),
        (lambda b, ids: allowed(b, ids) if len(ids) < 12 else [8 + b], "is of no row"),
        (lambda b, ids: VISUAL if (len(ids) - 5) % (5 + b) else [8], "several grids"),
        (lambda _, ids: VISUAL[len(ids) > 8 and int(ids[8]) != 22 :], "hangs on the codes that are drawn"),
    ],
)
def test_what_allows_no_grid_is_refused(made, function, complaint):
    model = made["emu3"]
    vargen.accelerate(model)
    with pytest.raises(ValueError, match=f"got a prefix_allowed_tokens_fn .*{complaint}"):
        model.generate(**emu_call(2, prefix_allowed_tokens_fn=function))


def test_a_grid_is_learned():
    ids, _ = emu_ids("sea")
    said = asked_grid.Allowed(allowed, len(EMU)).along(0, ids[0], 50, [2])
    found = asked_grid.grid(said, [2])
    assert (found.rows, found.columns, found.newline) == (HIGH, WIDE, NAMES["<|extra_200|>"])
    assert found.codes.tolist() == VISUAL
    assert found.tail == tuple(NAMES[name] for name in ENDS)
    assert found.length == HIGH * (WIDE + 1) + len(ENDS)
    assert len(fields(found)) == 6
