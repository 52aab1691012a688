"""GLM-Image as people hold it, in transformers' model and in diffusers' pipeline: the same calls, drawn by our loop."""

import copy
import inspect
import pickle
import threading

import pytest
import torch
from glm_folder import first, pipeline
from PIL import Image

import vargen
from vargen.pipelines.accelerated_glm import SEEDS

METHODS = ("ar", "sjd:window=6", "sjd-coupled:window=5", "sjd-exact:window=8:guess=preview", "sjd-pac:window=5")
SIZE = {"height": 128, "width": 192}


@pytest.fixture
def pipe():
    return pipeline()


def call(pipe, *texts, high=128, wide=192, pictures=None, **how):
    """What diffusers' pipeline hands to `generate`: prompts by the processor, padded on the left."""
    shown = [[{"type": "image", "image": one} for one in some] for some in pictures or [[]] * len(texts)]
    turns = [
        [{"role": "user", "content": [*some, {"type": "text", "text": text}]}]
        for some, text in zip(shown, texts, strict=True)
    ]
    asked = {"target_h": high, "target_w": wide, "return_tensors": "pt", "padding": True}
    read = pipe.processor.apply_chat_template(turns, tokenize=True, return_dict=True, processor_kwargs=asked)
    grids = read["image_grid_thw"][: int(read["images_per_sample"][0])]
    sources = len(pictures[0]) if pictures else 0
    return {**read, "max_new_tokens": int(grids[sources:].prod(-1).sum()) + 1, "do_sample": False, **how}


def theirs(model, given):
    """What transformers draws, the last token aside: ours is what ends an image, theirs may be any."""
    return type(model).generate(model, **given)[:, :-1]


@pytest.mark.parametrize("texts", [("sea",), ("a red boat", "sea", "a boat night")])
def test_greedy_is_token_for_token_theirs(pipe, texts):
    model, given = pipe.vision_language_encoder, call(pipe, *texts)
    wanted = theirs(model, given)
    assert len(wanted.unique()) > 8
    for method in METHODS:
        assert vargen.accelerate(model, method) is model
        found = model.generate(**given)
        assert torch.equal(found[:, :-1], wanted), method
        assert (found[:, -1] == model.config.image_end_token_id).all()
        assert found.dtype == wanted.dtype
    vargen.release(model)
    assert torch.equal(model.generate(**given)[:, :-1], wanted)


def test_pictures_in_the_prompts_are_read(pipe):
    shown = [[Image.new("RGB", (512, 512), colour)] for colour in ("red", "navy")]
    model, given = pipe.vision_language_encoder, call(pipe, "a red boat", "sea", pictures=shown)
    wanted = theirs(model, given)
    for method in ("ar", "sjd-exact:window=8"):
        vargen.accelerate(model, method)
        found = model.generate(**given)
        places = found == model.config.image_token_id
        assert torch.equal(found[:, :-1][~places[:, :-1]], wanted[~places[:, :-1]]), method


def test_it_is_cut_where_theirs_is(pipe):
    model = pipe.vision_language_encoder
    for most in (1, 7, 100):
        given = call(pipe, "sea", "a red boat", max_new_tokens=most)
        wanted = type(model).generate(model, **given)
        assert torch.equal(vargen.accelerate(model, "sjd").generate(**given), wanted)
        vargen.release(model)


def test_several_images_of_a_prompt_differ(pipe):
    """Which transformers itself gets wrong: it repeats grids and not their numbers."""
    model = vargen.accelerate(pipe.vision_language_encoder, "sjd-exact:window=16")
    given = call(
        pipe, "sea", "a red boat", do_sample=True, num_return_sequences=2, top_k=0, temperature=0.9, top_p=0.75
    )
    torch.manual_seed(3)
    found = model.generate(**given)
    assert found.shape[0] == 4
    assert len({tuple(row.tolist()) for row in found}) == 4
    torch.manual_seed(3)
    assert torch.equal(model.generate(**given), found)
    assert int(found[:, given["input_ids"].shape[1] : -1].max()) < model.config.vq_config.num_embeddings


def test_seeds_give_what_our_own_pipeline_draws(pipe):
    """The same loop, law and noise."""
    from vargen.models.glm_image import GlmImage
    from vargen.pipelines.glm_image import GlmImagePipeline

    model = pipe.vision_language_encoder
    how = {"codes": 64, "start": 64, "size": (128, 192), "sizes": ((128, 192),)}
    own = GlmImagePipeline(
        GlmImage(model.model.language_model, model.lm_head, **how), text_tokenizer=pipe.processor.tokenizer
    )
    law = {"temperature": 0.9, "top_p": 0.75, "top_k": 0}
    wanted = own(["sea"], seed=11, output_type="latent", method="sjd-exact:window=8", **law).tokens
    vargen.accelerate(model, "sjd-exact:window=8")
    given, before = call(pipe, "sea", do_sample=True, **law), SEEDS.set([11])
    assert torch.equal(model.generate(**given)[:, given["input_ids"].shape[1] : -1], wanted)
    SEEDS.reset(before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"guidance_scale": 2.0}, "without guidance"),
        ({"num_beams": 2}, "num_beams"),
        ({"logits_processor": [print]}, "logits_processor"),
        ({"image_grid_thw": torch.tensor([[1, 4, 6]])}, "grids"),
        ({"image_grid_thw": torch.tensor([[2, 4, 6], [1, 13, 19]])}, "grids"),
        ({"image_grid_thw": torch.tensor([[1, 4, 0], [1, 13, 19]])}, "above 0"),
        ({"image_grid_thw": [1, 4, 6]}, "above 0"),
        ({"images_per_sample": torch.tensor([1, 1])}, "images_per_sample"),
        ({"pixel_values": torch.zeros(4, 768)}, "places for codes"),
        ({"attention_mask": torch.zeros(1, 3)}, "attention_mask"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(pipe, change, said):
    model = vargen.accelerate(pipe.vision_language_encoder)
    with pytest.raises(ValueError, match=said) as caught:
        model.generate(**{**call(pipe, "sea"), **change})
    assert "\n" not in str(caught.value)


def test_prompts_without_the_grids_are_refused(pipe):
    model = vargen.accelerate(pipe.vision_language_encoder)
    given = call(pipe, "sea")
    with pytest.raises(ValueError, match="starts an image"):
        model.generate(
            **{**given, "input_ids": given["input_ids"][:, :-1], "attention_mask": given["attention_mask"][:, :-1]}
        )


ASKED = {**SIZE, "num_inference_steps": 2, "output_type": "np"}


def test_a_pipeline_paints_the_same_of_the_same_codes(pipe):
    """Accelerated and not: codes that the first stage drew, handed back, give the same picture."""
    plain, heard = pipeline(), []
    assert vargen.accelerate(pipe, "sjd-exact:window=16") is pipe
    assert type(pipe).__name__ == "GlmImagePipeline"
    assert isinstance(pipe, type(plain))
    own = type(pipe).generate_prior_tokens
    type(pipe).generate_prior_tokens = lambda self, **how: heard.append(own(self, **how)) or heard[-1]
    found = pipe(prompt=["sea", "boat"], generator=torch.Generator().manual_seed(7), **ASKED).images
    prior = heard[0][0]
    assert prior.shape == (2, 96)
    wanted = plain(
        prompt=["sea", "boat"], prior_token_ids=prior, generator=torch.Generator().manual_seed(7), **ASKED
    ).images
    assert (found == wanted).all()
    again = pipe(prompt=["sea", "boat"], generator=torch.Generator().manual_seed(7), **ASKED).images
    assert (again == found).all()
    given = pipe(prompt="sea", prior_token_ids=prior[:1], generator=torch.Generator().manual_seed(7), **ASKED).images
    alone = plain(prompt="sea", prior_token_ids=prior[:1], generator=torch.Generator().manual_seed(7), **ASKED).images
    assert (given == alone).all()
    assert vargen.release(pipe) is pipe
    assert type(pipe) is type(plain)


def test_generators_are_of_their_images(pipe):
    """An image is that of its generator, whatever its company, and images of a prompt have codes of their own."""
    vargen.accelerate(pipe, "sjd-coupled:window=8")

    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    heard = []
    own = type(pipe).generate_prior_tokens
    type(pipe).generate_prior_tokens = lambda self, **how: heard.append(own(self, **how)) or heard[-1]
    pipe(prompt=["sea", "boat"], generator=seeded(5, 6), **ASKED)
    pipe(prompt="boat", generator=seeded(6), **ASKED)
    out = pipe(prompt="boat", generator=seeded(6, 8), num_images_per_prompt=2, **ASKED)
    assert len(out.images) == 2
    first, second, third = (each[0] for each in heard)
    assert torch.equal(first[1], second[0])
    assert torch.equal(third[0], second[0])
    assert not torch.equal(third[0], third[1])
    with pytest.raises(ValueError, match="generators for 2 images"):
        pipe(prompt=["sea", "boat"], generator=seeded(1), **ASKED)


def test_copies_of_a_pipeline_are_accelerated(pipe):
    vargen.accelerate(pipe, "sjd-exact:window=8")
    pipe.vision_language_encoder.generate.trace = None
    for again in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        again.set_progress_bar_config(disable=True)
        again(prompt="sea", generator=torch.Generator().manual_seed(1), **ASKED)
        assert again.vision_language_encoder.generate.trace.method == "sjd-exact:window=8"
        vargen.release(again)
    assert pipe.vision_language_encoder.generate.trace is None


def test_what_is_no_such_pipeline(pipe, tmp_path):
    with pytest.raises(ValueError, match="not accelerated"):
        vargen.release(pipe)
    vargen.accelerate(pipe)
    pipe.save_pretrained(tmp_path)
    pipe.vision_language_encoder = None
    vargen.release(pipe)
    with pytest.raises(ValueError, match="without its vision_language_encoder"):
        vargen.accelerate(pipe)


def test_offloaded_models_are_brought_to_their_device(pipe):
    model, brought = first(), []

    class Hook:
        def pre_forward(self, module, *_, **__):
            brought.append(module)

    model._hf_hook = Hook()
    vargen.accelerate(model, "sjd").generate(**call(pipe, "sea"))
    assert brought == [model]


def test_a_pipeline_whose_first_stage_is_gone_or_another(pipe):
    """Codes that are there are painted without it, as diffusers does; another first stage draws as its class does."""
    prior = torch.zeros(1, 96, dtype=torch.int64)
    how = {"prompt": "sea", "prior_token_ids": prior, **ASKED}
    wanted = pipe(generator=torch.Generator().manual_seed(1), **how).images
    vargen.accelerate(pipe)
    vargen.release(pipe.vision_language_encoder)
    assert copy.deepcopy(pipe).vision_language_encoder is not None
    pipe.vision_language_encoder = None
    assert (pipe(generator=torch.Generator().manual_seed(1), **how).images == wanted).all()
    assert copy.deepcopy(pipe).vision_language_encoder is None


def test_whoever_looks_at_a_call_sees_diffusers_own(pipe):
    own = inspect.signature(type(pipe).__call__)
    with pytest.raises(ValueError, match="`prompt` has to be") as plain:
        pipe(prompt=5, **ASKED)
    vargen.accelerate(pipe)
    assert inspect.signature(type(pipe).__call__) == own
    with pytest.raises(ValueError, match="`prompt` has to be") as found:
        pipe(prompt=5, **ASKED)
    assert str(found.value) == str(plain.value)


def test_calls_at_the_same_time_have_pictures_of_their_own(pipe, monkeypatch):
    """Another call comes in between, as a thread's may, with more pictures."""
    model = pipe.vision_language_encoder
    one, two = (call(pipe, "sea", pictures=[[Image.new("RGB", (640, 512))] * count]) for count in (1, 2))
    held = vargen.accelerate(model, "ar").generate
    wanted, seeds = model.generate(**one), held._seeds

    def between(*asked):
        monkeypatch.setattr(held, "_seeds", seeds)
        model.generate(**two)
        return seeds(*asked)

    monkeypatch.setattr(held, "_seeds", between)
    assert torch.equal(model.generate(**one), wanted)


def test_a_seed_is_of_its_call_alone(pipe):
    """Whatever another thread draws with the same model while a pipeline draws."""
    model, how = vargen.accelerate(pipe, "ar").vision_language_encoder, {"prompt": "sea", **ASKED}
    wanted = pipe(generator=torch.Generator().manual_seed(1), **how).images
    own, drawn = type(pipe).generate_prior_tokens, []

    def between(self, **given):
        other = threading.Thread(target=lambda: drawn.append(model.generate(**call(pipe, "a", "red", do_sample=True))))
        other.start()
        other.join()
        return own(self, **given)

    type(pipe).generate_prior_tokens = between
    assert (pipe(generator=torch.Generator().manual_seed(1), **how).images == wanted).all()
    assert len(drawn[0]) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": Image.new("RGB", (64, 64))}, "image of type Image, expected a list"),
        ({"image": torch.zeros(1, 3, 64, 64)}, "image of type Tensor, expected a list"),
        ({"image": [[], []]}, "got 2 lists of pictures for 1 prompts"),
        ({"generator": 3}, "got generator 3, expected a torch.Generator"),
    ],
)
def test_wrong_pictures_and_generators_of_several_images(pipe, given, said):
    with pytest.raises(ValueError, match=said):
        vargen.accelerate(pipe)(prompt="sea", num_images_per_prompt=2, **{**ASKED, **given})
