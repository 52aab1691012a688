"""GLM-Image's first stage: what transformers' own classes compute and draw, and what is refused."""

import pytest
import torch
from glm import CASE, CODES, FULL, PREVIEW, RECORDED, SPEC, START, ours, prompts, theirs
from glm_folder import words

from vargen.core import registry
from vargen.core.specs import RasterSpec
from vargen.core.warp import Warp
from vargen.engine import loops
from vargen.engine.guidance import Guidance
from vargen.models import glm_image
from vargen.models.glm_image import GlmImage
from vargen.models.prompted import Passing
from vargen.pipelines.glm_image import GlmImagePipeline
from vargen.pipelines.prompted import PromptedPipeline
from vargen.samplers.contract import Task

METHODS = ("ar", "sjd:window=5", "sjd-coupled:window=5", "sjd-exact:window=5", "sjd-pac:window=5")
GUESSES = ("sjd-exact:window=9:guess=preview", "sjd-coupled:window=7:guess=sample-preview", "sjd:window=6:guess=above")
WAITING = ("zipar:window=99", "zipar-adaptive:window=99", "jacobi-2d:window=99:drafts=4:guess=above")


def drawn(model, which, method, **how):
    pipe = GlmImagePipeline(model)
    pipe.set_progress_bar_config(disable=True)
    ids, mask = prompts(*which)
    how = {"seed": 0, "output_type": "latent", **how}
    return pipe(prompt_embeds=ids, prompt_attention_mask=mask, method=method, **how)


@pytest.fixture(scope="module")
def model():
    return ours()


@pytest.mark.parametrize("which", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("method", [*METHODS, *GUESSES, *WAITING])
def test_both_grids_token_for_token(model, method, which):
    out = drawn(model, which, method, top_k=1)
    assert torch.equal(out.tokens, torch.stack([RECORDED[f"greedy_{i}"] for i in which]))
    preview, full = model.spec.split(out.tokens)
    assert preview.shape[1:] == PREVIEW
    assert full.shape[1:] == FULL


def test_logits_of_given_tokens(model):
    ids, mask = prompts(0)
    condition = model.text_condition(ids, mask.bool(), guided=False)
    found = model(condition, RECORDED["forced_ids"][None])[0]
    torch.testing.assert_close(found, RECORDED["forced_logits"][:, :CODES], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_positions(model, which):
    """Text, preview and full grid; the end token's place is not used."""
    length, cache = len(RECORDED[f"prompt_{which}"]), Passing()
    cache.front, cache.shift = length + 3, torch.tensor([[3]])  # padded in front
    found = model.places(torch.arange(length + SPEC.slots)[None], cache)
    found = found.expand(3, -1, -1)[:, 0]
    assert torch.equal(found, RECORDED[f"positions_{which}"][:, : length + SPEC.slots])


def test_the_law_is_theirs_over_the_codes():
    """Temperature 0.9 and top-p 0.75; ids that are no codes are ruled out first."""
    warp, logits = Warp(0.9, 0, 0.75), RECORDED["law_logits"]
    torch.testing.assert_close(warp(logits), RECORDED["law"], atol=1e-5, rtol=1e-4)
    masked = logits.clone()
    masked[:, CODES:] = -float("inf")
    torch.testing.assert_close(warp(logits[:, :CODES]), warp(masked)[:, :CODES], atol=1e-6, rtol=1e-5)


def test_the_processor_s_preview_of_a_small_image():
    """19 x 13 before 6 x 4: a preview larger than what it shows."""
    spec = glm_image.spec_of((192, 128), CODES)
    out = drawn(ours(spec=spec), (0,), "sjd-exact:window=8:guess=preview", top_k=1)
    assert torch.equal(out.tokens[0], RECORDED["sized_greedy"])


@pytest.mark.parametrize("size", list(CASE["sizes"]))
def test_grids_are_the_processor_s(size):
    high, wide = map(int, size.split("x"))
    full, small = map(tuple, CASE["sizes"][size])
    spec = glm_image.spec_of((high, wide), CODES)
    assert ((spec.rows, spec.columns), spec.previews) == (full, (small,))


def test_sizes_are_what_the_dit_takes():
    known = set(glm_image.sizes())
    assert {(1024, 1024), (1152, 768), (512, 512), (2048, 2048), (2048, 512), (1088, 1920)} <= known
    assert not {(128, 192), (512, 480), (4096, 512), (2048, 2080), (1000, 1000)} & known
    assert all(high % 32 == wide % 32 == 0 for high, wide in known)


@pytest.mark.parametrize("method", ["ar", "sjd-coupled:window=6", "sjd-exact:window=8:guess=preview"])
def test_an_image_does_not_hang_on_its_company(model, method):
    law = {"temperature": 0.9, "top_p": 0.75}
    many = drawn(model, (0, 1, 2), method, seed=[5, 6, 7], **law).tokens
    for row in range(3):
        assert torch.equal(drawn(model, (row,), method, seed=5 + row, **law).tokens[0], many[row])
    assert torch.equal(drawn(model, (2, 0), method, seed=[7, 5], **law).tokens, many[[2, 0]])


def test_codes_alone_are_drawn():
    """Also where what ends an image is by far the likeliest: no early end."""
    model = theirs()
    with torch.no_grad():
        model.lm_head.weight[CODES:] = model.lm_head.weight[:1] * 9
    out = drawn(ours(model), (0, 1), "sjd-exact:window=6")
    assert out.tokens.shape == (2, SPEC.slots)
    assert int(out.tokens.max()) < CODES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ids, mask: (ids[:, :, :-1], mask[:, :, :-1]), "starts an image"),
        (lambda ids, mask: (ids * 1000, mask), "no token ids"),
        (lambda ids, mask: (ids[:, :1], mask[:, :1]), "expected token ids"),
        (lambda ids, mask: (ids.repeat(1, 1, 99), mask.repeat(1, 1, 99)), "expected at most"),
    ],
)
def test_prompts_that_are_none(model, change, said):
    ids, mask = change(*prompts(0))
    pipe = GlmImagePipeline(model)
    with pytest.raises(ValueError, match=said):
        pipe(prompt_embeds=ids, prompt_attention_mask=mask, output_type="latent")


def test_there_is_no_guidance_in_this_stage(model):
    ids, mask = prompts(0)
    with pytest.raises(ValueError, match="without guidance"):
        PromptedPipeline(model, None)(
            prompt_embeds=ids, prompt_attention_mask=mask, output_type="latent", guidance_scale=2.0
        )


def tiny(size=(192, 128)):
    model, context = theirs(), (size, (128, 192))
    made = GlmImage(model.model.language_model, model.lm_head, codes=CODES, start=START, size=size, sizes=context)
    return GlmImagePipeline(made, text_tokenizer=words())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "a red boat<sop>6 4<eop>"}, "give height and width"),
        ({"prompt": "a <|dit_token_5|> boat"}, "image tokens"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": "boat " * 4000}, "expected at most"),
        ({"prompt": "boat", "height": 200}, "nearest"),
        ({"prompt": "boat", "height": 0}, "at least 1"),
        ({"prompt": "boat", "width": 4096}, "nearest"),
        ({"prompt": "boat"}, "diffusion transformer"),
        ({"prompt": "boat", "num_inference_steps": 0, "output_type": "latent"}, "num_inference_steps"),
        ({"prompt": "boat", "guidance_scale": -1, "output_type": "latent"}, "guidance scale"),
        ({"class_labels": 3}, "takes no class"),
        ({"prompt": "boat", "negative_prompt": "sea", "output_type": "latent"}, "negative_prompt"),
    ],
)
def test_one_clear_sentence(given, said):
    with pytest.raises(ValueError, match=said) as caught:
        tiny()(**given)
    assert "\n" not in str(caught.value)


def test_prompts_are_the_processor_s():
    from glm_folder import processor

    pipe, read = tiny(), processor()
    texts = ["a red boat", "sea"]
    turns = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    how = {"target_h": 192, "target_w": 128, "return_tensors": "pt", "padding": True}
    wanted = read.apply_chat_template(turns, tokenize=True, return_dict=True, processor_kwargs=how)
    ids, mask = pipe.encode_prompt(texts)
    for row in range(2):
        assert (
            ids[row, 0][mask[row, 0]].tolist() == wanted["input_ids"][row][wanted["attention_mask"][row] == 1].tolist()
        )
    assert not mask[:, 1].any()


def test_prompts_say_their_size():
    pipe, text = tiny(), words()
    ids, mask = pipe.at(128, 192).encode_prompt("a red boat")
    assert pipe.transformer.said_size(ids[0, 0][mask[0, 0]], text) == (128, 192)
    assert pipe.transformer.text_of(ids[0, 0][mask[0, 0]], text) == "a red boat"
    with pytest.raises(ValueError, match="192x128 pixels, and 128x192 is drawn"):
        pipe(prompt_embeds=ids, prompt_attention_mask=mask, output_type="latent")
    bare = torch.tensor([[[82, 83, START], [0, 0, 0]]])
    there = torch.tensor([[[1, 1, 1], [0, 0, 0]]])
    with pytest.raises(ValueError, match="grids of an image"):
        pipe(prompt_embeds=bare, prompt_attention_mask=there, output_type="latent")


def test_a_spec_of_any_grids():
    spec = RasterSpec(3, 5, CODES, 0, previews=((2, 2),))
    made = ours().drawing(spec)
    assert made.spec == spec
    assert made.size == (96, 160)
    assert glm_image.cells(spec)[:, :5].tolist() == [[0, 0, 0, 0, 2], [0, 0, 1, 1, 2], [0, 1, 0, 1, 2]]


def edit():
    """The model without a preview, and the golden case's prompt with its picture's codes, under their grid."""
    made = ours().drawing(RasterSpec(*FULL, CODES, 0))
    ids = RECORDED["edit_prompt"].clone()
    ids[ids == CASE["special"]["image"]] = RECORDED["edit_source_ids"]
    states, mask = torch.zeros(1, 2, len(ids), dtype=torch.int64), torch.zeros(1, 2, len(ids), dtype=torch.bool)
    states[0, 0], mask[0, 0] = ids, True
    grid = CASE["grids"]["source"]
    return made, states, mask, [[(grid[0], grid[1])]]


def test_a_picture_in_the_prompt_stands_as_a_grid():
    made, states, mask, grids = edit()
    condition = made.text_condition(states, mask, grids, guided=False)
    assert condition.places is not None
    assert torch.equal(condition.places[:, 0], RECORDED["edit_positions"][:, : states.shape[-1]])
    found = made(condition, RECORDED["edit_greedy"][None])[0]
    torch.testing.assert_close(found, RECORDED["edit_logits"][:, :CODES], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="as image in a call"):
        made.text_condition(states, mask, guided=False)


@pytest.mark.parametrize("rounded", [1, 16])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_drawn_behind_a_picture(method, rounded):
    """Greedy, also beside a longer prompt and padded further: places are of each row's own."""
    made, states, mask, grids = edit()
    longer = torch.cat([torch.full((1, 2, 3), 70), states], 2)
    both = (torch.cat([torch.nn.functional.pad(states, (0, 3)), longer]), torch.cat([mask, mask]))
    both = (both[0], torch.nn.functional.pad(both[1], (0, 3)))
    both[1][1, 0] = True
    condition = made.text_condition(*both, grids * 2, guided=False).rounded(rounded)
    name, settings = registry.method(method)
    sampler = name(settings, Task(made.spec, torch.arange(2), Warp(top_k=1)))
    with torch.inference_mode():
        for _ in loops.raster(made, condition, sampler, Guidance(1.0), loops.Clock(made.device), loops.Counts()):
            pass
    assert torch.equal(sampler.tokens[0], RECORDED["edit_greedy"])
    assert not torch.equal(sampler.tokens[1], RECORDED["edit_greedy"])


def test_a_transformers_that_calls_its_layers_otherwise():
    """A later release may: that is said before anything is drawn."""
    model = theirs()

    class Later(type(model.model.language_model)):
        def forward(self, inputs_embeds, memory=None):
            return inputs_embeds

    model.model.language_model.__class__ = Later
    with pytest.raises(ValueError, match=r"of transformers \d.* takes neither cache nor past_key_values") as caught:
        ours(model)
    assert "\n" not in str(caught.value)
