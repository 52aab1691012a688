"""Values of every kind where a call, or `decode`, wants something else: one sentence, and nothing is lost."""

import pytest
import torch
from small import latent_pipeline, pipeline, scale_pipeline


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


WRONG = [
    ({"callback_on_step_end_tensor_inputs": None}, "got callback_on_step_end_tensor_inputs None"),
    ({"callback_on_step_end_tensor_inputs": 5}, "got callback_on_step_end_tensor_inputs 5"),
    ({"callback_on_step_end_tensor_inputs": "tokens"}, "got callback_on_step_end_tensor_inputs 'tokens'"),
    ({"callback_on_step_end_tensor_inputs": [torch.ones(2)]}, "got callback_on_step_end_tensor_inputs"),
    ({"generator": []}, "got 0 generators for 1 images"),
    ({"generator": [torch.Generator()] * 3}, "got 3 generators for 1 images"),
    ({"seed": torch.tensor(1.5)}, "got seed tensor"),
    ({"seed": [1, 2]}, "got 2 seeds for 1 images"),
    ({"seed": b"1"}, "got seed b'1'"),
    ({"temperature": torch.ones(2)}, "got temperature"),
    ({"temperature": b"1"}, "got temperature b'1'"),
    ({"guidance_scale": torch.ones(1).numpy()[0] > 0}, "got guidance scale np.True_"),
    ({"temperature": torch.ones(2, 2).numpy()}, "got temperature"),
    ({"output_type": torch.ones(2).numpy()}, "got output type"),
    ({"output_type": ["pil"]}, "got output type"),
    ({"image_size": 0}, "got image size 0"),
    ({"num_images_per_prompt": 10**9}, "got number of images 1000000000, expected at most 1000000"),
    ({"num_images_per_prompt": 10**5000}, "got number of images a number of 16610 bits, expected at most 1000000"),
    ({"top_k": "9" * 9999}, "got top-k '999"),
    ({"method": "sjd:window=" + "x" * 9999}, "got window 'xxx"),
    ({"method": ""}, "unknown method ''"),
    ({"method": []}, "got method []"),
    ({"method": 0}, "got method 0"),
    ({"return_dict": None}, "got return_dict None"),
    ({"free_size": "no"}, "got free_size 'no'"),
]


@pytest.mark.parametrize(("given", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_wild_values_are_one_sentence(pipe, given, words):
    with pytest.raises(ValueError) as told:  # noqa: PT011 - the words are looked at below
        pipe(["a"], **{"method": "ar", **given})
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 400


@pytest.mark.parametrize("method", ["zipar:window=", "zipar-adaptive:window=", "jacobi-2d:window=3:ahead="])
def test_a_window_is_as_large_as_anybody_says(pipe, method):
    """All columns are the most that a row waits for."""
    how = {"seed": 2, "output_type": "latent"}
    wanted, found = (pipe("a", method=f"{method}{count}", **how).tokens for count in (6, 10**30))
    assert torch.equal(found, wanted)


def test_scalars_of_any_kind_are_seeds(pipe):
    asked = {"method": "ar", "output_type": "latent"}
    plain = pipe("a", seed=3, **asked).tokens
    for seed in (torch.tensor(3), torch.tensor(3).numpy(), torch.tensor([3]), [3]):
        assert torch.equal(pipe("a", seed=seed, **asked).tokens, plain)


@pytest.mark.parametrize("make", [pipeline, scale_pipeline, latent_pipeline])
def test_what_decode_does_not_take(make):
    pipe = make()
    tokens = pipe([1], seed=0, output_type="latent").tokens
    for wrong in (None, tokens.tolist(), tokens.numpy(), tokens[:0], tokens[0, 0], torch.tensor(3), tokens[0]):
        with pytest.raises(ValueError, match="got tokens"):
            pipe.decode(wrong, "np")
    for named in ({"output_type": "latent"}, {"output_type": 3}, {"image_size": -1}, {"image_size": "x"}):
        with pytest.raises(ValueError, match=r"got (output type|image size)"):
            pipe.decode(tokens, **named)
    if make is latent_pipeline:
        assert (pipe.decode(tokens.double(), "np") == pipe.decode(tokens, "np")).all()
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="not all finite"):
                pipe.decode(torch.full_like(tokens, value), "np")
    elif make is pipeline:
        assert (pipe.decode(tokens.flatten(1), "np") == pipe.decode(tokens, "np")).all()


@pytest.mark.parametrize("make", [pipeline, scale_pipeline, latent_pipeline])
def test_without_an_image_tokenizer(make):
    """Tokens can be had where the model draws them without one; whatever shows pictures says what is missing."""
    pipe = make()
    tokens = pipe([1], seed=0, output_type="latent").tokens
    pipe.register_modules(tokenizer=None)
    missing = "has no image tokenizer here"
    if make is not scale_pipeline:
        assert torch.equal(pipe([1], seed=0, output_type="latent").tokens, tokens)
        last = list(pipe.stream([1], seed=0))[-1]
        with pytest.raises(ValueError, match=missing):
            last.images()
    else:
        with pytest.raises(ValueError, match=missing):
            pipe([1], seed=0, output_type="latent")
    for ask in (lambda: pipe([1], seed=0), lambda: pipe.decode(tokens)):
        with pytest.raises(ValueError, match=missing):
            ask()
