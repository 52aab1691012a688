"""What people bring from diffusers works here, or says in one sentence why not; surroundings do not reach in."""

import pytest
import torch
from PIL import Image
from small import latent_pipeline, pipeline, scale_pipeline

import vargen


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture(scope="module")
def lumina():
    pipe = vargen.load("pocket-lumina", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_generator_moves_on(pipe):
    """As in diffusers: one that was seeded draws the same first image, and another one when it is used again."""

    def draw(generator):
        return pipe("a", method="ar", output_type="latent", generator=generator, num_images_per_prompt=2)

    one = torch.Generator().manual_seed(0)
    first, second = draw(one), draw(one)
    assert not set(first.trace.seeds) & set(second.trace.seeds)
    assert torch.equal(draw(torch.Generator().manual_seed(0)).tokens, first.tokens)
    pair = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    several = draw(pair)
    assert several.trace.seeds[0] == first.trace.seeds[0]
    assert len(set(several.trace.seeds) | set(draw(pair).trace.seeds)) == 4


def test_without_a_seed_torch_s_own_generator_says(pipe):
    """As in diffusers: `torch.manual_seed`, which `set_seed` of all libraries calls, repeats what follows."""

    def seeds(global_seed):
        torch.manual_seed(global_seed)
        return [pipe(["a"], method="ar", output_type="latent").trace.seeds for _ in range(2)]

    with torch.random.fork_rng():
        first, again, other = seeds(1), seeds(1), seeds(2)
    assert first == again
    assert len({*first[0], *first[1], *other[0]}) == 3


def test_habits_of_diffusers(pipe):
    told = []

    def tell(which, step, settled, tensors):
        told.append((which, step, settled, {key: value.clone() for key, value in tensors.items()}))

    asked = {"method": "ar", "seed": 3, "output_type": "np"}
    names = ["tokens", "settled"]
    (images,) = pipe(
        "a", **asked, return_dict=False, callback_on_step_end=tell, callback_on_step_end_tensor_inputs=names
    )
    plain = pipe("a", **asked)
    assert (images == plain.images).all()
    assert [step for _, step, *_ in told] == list(range(36))
    assert [settled for *_, settled, _ in told] == list(range(1, 37))
    assert torch.equal(told[-1][3]["tokens"].view(6, 6), plain.tokens[0])
    assert told[-1][3]["settled"].tolist() == [36]
    again = type(pipe)(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert again.preset is pipe.preset
    other = type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert (other("a", **asked).images == plain.images).all()
    assert (again("a", **asked).images == plain.images).all()


def test_surroundings_do_not_reach_in(pipe):
    """Neither autocast nor another default dtype changes a token or a pixel, in a call or between steps of a stream."""
    for method in ("ar", "sjd-coupled:window=8", "zipar-adaptive", "sjd-coupled:window=8:guess=sample-above"):
        asked = {"method": method, "seed": 0}
        plain = pipe(["a", "b"], **asked, output_type="np")
        with torch.autocast("cpu", torch.bfloat16):
            cast = pipe(["a", "b"], **asked, output_type="np")
            steps = [(p.tokens.clone(), torch.is_autocast_enabled("cpu")) for p in pipe.stream(["a", "b"], **asked)]
        torch.set_default_dtype(torch.float64)
        try:
            wide = pipe(["a", "b"], **asked, output_type="np")
        finally:
            torch.set_default_dtype(torch.float32)
        assert (cast.images == plain.images).all()
        assert (wide.images == plain.images).all()
        assert torch.equal(steps[-1][0].view(plain.tokens.shape), plain.tokens)
        assert all(cast for _, cast in steps)  # between the steps it is the caller's


@pytest.mark.parametrize("make", [scale_pipeline, latent_pipeline])
def test_surroundings_of_other_kinds(make):
    pipe = make()
    plain = pipe([1, 2], seed=0, output_type="np").images
    with torch.autocast("cpu", torch.bfloat16):
        assert (pipe([1, 2], seed=0, output_type="np").images == plain).all()
    torch.set_default_dtype(torch.float64)
    try:
        assert (pipe([1, 2], seed=0, output_type="np").images == plain).all()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("negative_prompt", "small draws classes and takes no negative_prompt"),
        ("num_inference_steps", "got num_inference_steps, which small does not take: it draws tokens"),
        ("cfg_scale", "it is guidance_scale"),
        ("guidence_scale", "is it guidance_scale?"),
        ("windw", "no setting of sjd (window, guess); is it window?"),
        ("callback_on_step_end_tensor_inputs", "expected a list of tokens and settled"),
        ("callback_on_step_end", "expected a function"),
    ],
)
def test_other_keywords_are_answered(pipe, keyword, words):
    value = ["latents"] if keyword.endswith("inputs") else 3
    with pytest.raises(ValueError) as told:  # noqa: PT011 - the words are looked at below
        pipe("a", method="sjd", **{keyword: value})
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_callback_changes_nothing(pipe):
    def wipe(which, step, settled, tensors):
        tensors["tokens"].zero_()
        return tensors

    asked = {"method": "ar", "seed": 3, "output_type": "latent"}
    assert torch.equal(pipe("a", callback_on_step_end=wipe, **asked).tokens, pipe("a", **asked).tokens)


def test_a_negative_prompt_is_what_guidance_is_against(lumina):
    """Guidance is taken against the text that is given, as if it had been embedded by hand; one for all, or each."""
    prompts, other = ["a red boat at sea", "a green tree"], "a house"
    asked = {"method": "sjd-exact:window=16", "seed": 0, "output_type": "latent", "guidance_scale": 3.0}
    drawn = lumina(prompt=prompts, negative_prompt=other, **asked).tokens
    ids, mask = lumina.encode_prompt(prompts)
    against, words = lumina.encode_prompt([other, other])
    longest = max(ids.shape[-1], against.shape[-1])
    rows = [torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in (ids, against, mask, words)]
    by_hand = {
        "prompt_embeds": torch.stack([rows[0][:, 0], rows[1][:, 0]], dim=1),
        "prompt_attention_mask": torch.stack([rows[2][:, 0], rows[3][:, 0]], dim=1),
    }
    assert torch.equal(lumina(**by_hand, **asked).tokens, drawn)
    assert torch.equal(lumina(prompt=prompts, negative_prompt=[other, other], **asked).tokens, drawn)
    assert not torch.equal(lumina(prompt=prompts, **asked).tokens, drawn)
    own = lumina(prompt=prompts, **asked).tokens
    for nothing in ("", ["", " "]):
        assert torch.equal(lumina(prompt=prompts, negative_prompt=nothing, **asked).tokens, own)
    one = lumina(prompt=prompts, negative_prompt=["", other], **asked).tokens
    assert torch.equal(one, torch.stack([own[0], drawn[1]]))
    unguided = {**asked, "guidance_scale": 1.0}
    assert torch.equal(
        lumina(prompt=prompts, negative_prompt=other, **unguided).tokens, lumina(prompt=prompts, **unguided).tokens
    )
    for wrong, words in (
        ([other] * 3, "got 3 negative prompts for 2 prompts"),
        (3, "got negative_prompt 3"),
    ):
        with pytest.raises(ValueError, match=words):
            lumina(prompt=prompts, negative_prompt=wrong, **asked)
    with pytest.raises(ValueError, match="a negative_prompt and no prompt"):
        lumina(**by_hand, negative_prompt=other, **asked)


@pytest.mark.parametrize("make", [pipeline, scale_pipeline, latent_pipeline])
def test_latents_go_back(make):
    pipe = make()
    plain = pipe([1, 2], seed=0, output_type="np")
    latent = pipe([1, 2], seed=0, output_type="latent")
    assert latent.images is latent.tokens or torch.equal(latent.images, latent.tokens)
    assert (pipe.decode(latent.images, "np") == plain.images).all()
    with pytest.raises(ValueError, match="got tokens"):
        pipe.decode(latent.tokens[:, 1:], "np")
    if make is not latent_pipeline:
        for wrong in (latent.tokens + 48, latent.tokens - 48, latent.tokens.float()):
            with pytest.raises(ValueError, match="got tokens that are no ids"):
                pipe.decode(wrong, "np")


def test_latents_of_a_model_with_newlines_hold_none():
    from test_lumina_edges import pipeline as lines

    pipe = lines()
    out = pipe(prompt="sea", seed=0, output_type="latent", method="ar")
    assert out.images.shape == out.tokens.shape == (1, 4, 4)
    assert pipe.decode(out.images, "pt").shape[:2] == (1, 3)


def test_what_a_call_gives_shows_itself(pipe, tmp_path):
    out = pipe(["a", "b"], method="ar", seed=4)
    assert len(out) == 2
    assert out[1] is out.images[1]
    assert out["images"] is out.to_tuple()[0] is out.images
    assert repr(out).startswith("Generation(2 images of small by ar: 36.0 forwards an image, ")
    assert len(repr(out)) < 120
    assert out._repr_png_()[:4] == b"\x89PNG"
    first, second = out.save(tmp_path / "new")
    assert (first.name, second.name) == ("small-4.png", "small-5.png")
    read = Image.open(second)
    assert read.tobytes() == out[1].tobytes()
    assert (read.text["seed"], read.text["method"]) == ("5", "ar")  # pyright: ignore[reportAttributeAccessIssue]
    arrays = pipe("a", method="ar", seed=4, output_type="pt")
    assert arrays._repr_png_() is None
    with pytest.raises(ValueError, match="are no PIL images"):
        arrays.save(tmp_path)


def test_a_bar_needs_somewhere_to_go(pipe, monkeypatch):
    """A process may have no standard error: a service, or a shell's 2>&-."""
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr(pipe, "_progress_bar_config", {"disable": False})
    assert len(pipe("a", method="ar", seed=4)) == 1


def test_a_file_may_be_named_to_save_to(pipe, tmp_path):
    out = pipe(["a", "b"], method="ar", seed=4)
    assert [path.name for path in out.save(tmp_path / "x.png")] == ["x.png", "x_2.png"]
    assert [path.name for path in out.save(tmp_path / "new" / "x.JPG")] == ["x.JPG", "x_2.JPG"]
    assert Image.open(tmp_path / "new" / "x.JPG").format == "JPEG"
    assert Image.open(tmp_path / "x_2.png").tobytes() == out[1].tobytes()
    assert [path.name for path in out.save(tmp_path / "run.v1")] == ["small-4.png", "small-5.png"]


def test_a_prompt_may_stand_first(lumina):
    asked = {"method": "sjd-exact:window=16", "seed": 0, "output_type": "latent"}
    assert torch.equal(lumina("a red boat", **asked).tokens, lumina(prompt="a red boat", **asked).tokens)
    with pytest.raises(ValueError, match="takes no class"):
        lumina(3, **asked)
    with pytest.raises(ValueError, match="takes no class"):
        lumina("a red boat", prompt="a green tree", **asked)


def test_names_at_the_top():
    assert set(dir(vargen)) == {*vargen.__all__, "__version__"}
    assert all(callable(getattr(vargen, name)) for name in vargen.__all__)
    assert "pocket-llamagen" in vargen.list_models()
    assert vargen.list_methods("pocket-var") == ["code", "var"]
    assert set(vargen.list_methods("pocket-mar")) == {"mar", "disa", "csd"}
    assert vargen.list_methods() == sorted(vargen.list_methods())
    with pytest.raises(ValueError, match="unknown model"):
        vargen.list_methods("pocket-dalle")


def test_inference_steps_of_what_denoises(pipe):
    small, asked = latent_pipeline(), {"seed": 0, "output_type": "latent"}
    by_name = small([1], method="mar", num_inference_steps=7, **asked).tokens
    assert torch.equal(by_name, small([1], method="mar:steps=7", **asked).tokens)
    assert not torch.equal(by_name, small([1], method="mar:steps=6", **asked).tokens)
    annealed = small([1], method="disa:lower=3", num_inference_steps=7, **asked).tokens
    assert torch.equal(annealed, small([1], method="disa:lower=3:upper=7", **asked).tokens)
    with pytest.raises(ValueError, match="got both num_inference_steps and steps"):
        small([1], method="mar", steps=7, num_inference_steps=7, **asked)
    for wrong in (0, 2.5, "x"):
        with pytest.raises(ValueError, match="got num_inference_steps"):
            small([1], method="mar", num_inference_steps=wrong, **asked)


def test_images_of_one_seed_are_all_kept(pipe, tmp_path):
    out = pipe(["a", "b"], method="ar", seed=[4, 4])
    assert [path.name for path in out.save(tmp_path)] == ["small-4.png", "small-4_2.png"]
    assert [path.name for path in out.save(tmp_path)] == ["small-4_3.png", "small-4_4.png"]
    assert Image.open(tmp_path / "small-4.png").tobytes() == out[0].tobytes()


def test_none_for_a_prompt_is_no_prompt(lumina):
    asked = {"method": "sjd-exact:window=16", "seed": 0, "output_type": "latent"}
    assert torch.equal(lumina("a red boat", prompt=None, **asked).tokens, lumina("a red boat", **asked).tokens)
