"""Pictures in prompts, sizes that the model chooses, and vocabularies that cannot be."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from chameleon import CONFIG, NAMES, SIZES, decoder, lumina, vqgan
from PIL import Image
from test_chameleon import LAW, pipeline

from vargen.core.image_processor import fit
from vargen.models.lumina_mgpt import LuminaMGPT, Vocabulary


def test_pictures_are_brought_to_a_size_of_the_model():
    wide = Image.new("RGB", (400, 100), "red")
    wide.paste("blue", (0, 0, 200, 100))
    found = fit(wide, SIZES)
    assert found.shape == (1, 3, 32, 96)
    assert found[0, :, 16, 10].tolist() == pytest.approx([-1, -1, 1], abs=0.02)
    assert found[0, :, 16, 85].tolist() == pytest.approx([1, -1, -1], abs=0.02)
    clear = fit(Image.new("RGBA", (50, 50), (0, 0, 0, 0)), SIZES)
    assert clear.shape == (1, 3, 64, 64)
    assert (clear == 1).all()
    assert (fit(Image.new("RGBa", (50, 50)), SIZES) == 1).all()
    assert fit(Image.new("L", (1, 3000), 255), SIZES).shape == (1, 3, 96, 32)
    assert fit(Image.new("RGB", (100, 98)), SIZES).shape == (1, 3, 64, 64)  # 64 / (64 / 98) is more than 98
    for wrong, complaint in (("boat.png", "expected a PIL image"), (Image.new("I", (9, 9)), "8 bits a channel")):
        with pytest.raises(ValueError, match=complaint):
            fit(wrong, SIZES)


def test_the_model_may_choose_the_size():
    """Sizes are among its own, and an image is what it would be had its size been given."""
    pipe, how = pipeline(lumina()), {"method": "sjd-exact:window=4", **LAW}
    pipe.register_modules(tokenizer=vqgan())
    out = pipe(prompt=["a red boat", "sea"] * 30, seed=0, free_size=True, **how)
    sizes = [image.size for image in out.images]
    assert set(sizes) <= {(w, h) for h, w in SIZES}
    assert len(set(sizes)) > 1
    for i in (0, 1, 17):
        given = {"width": sizes[i][0], "height": sizes[i][1]}
        prompts = pipe.encode_prompt("a red boat" if i % 2 == 0 else "sea")  # of the size in the template: 64x64
        named = dict(zip(("prompt_embeds", "prompt_attention_mask"), prompts, strict=True))
        assert torch.equal(pipe(**named, seed=i, **given, **how).tokens[0], out.tokens[i])
    with pytest.raises(ValueError, match="gives PIL images"):
        pipe(prompt="sea", free_size=True, output_type="pt")
    alone = [pipe(prompt=["a red boat", "sea"][i % 2], seed=i, free_size=True, **how).images[0].size for i in range(6)]
    assert alone == sizes[:6]


def test_sizes_are_chosen_among_those_that_leave_room():
    pipe, room = pipeline(lumina(config=replace(CONFIG, context=30))), {}  # 64x64 has 20 slots, the others 14 and 18
    for size in SIZES:
        room[size] = pipe.at(*size).transformer.room
    assert room == {(64, 64): 7, (32, 96): 13, (96, 32): 9}
    narrow = pipe.at(32, 96)
    narrow.register_modules(tokenizer=vqgan())
    states, mask = narrow.encode_prompt("a red boat by the sea by")  # 10 tokens
    for seed in range(12):
        out = narrow(prompt_embeds=states, prompt_attention_mask=mask, seed=seed, free_size=True, method="ar")
        assert out.images[0].size == (96, 32)


def test_a_size_is_made_once():
    pipe = pipeline(lumina())
    assert pipe.at(32, 96) is pipe.at(height=32, width=96)
    assert pipe.at() is pipe.at(64, 64) is pipe
    pipe(
        prompt="sea", method="sjd-coupled", height=32, width=96, output_type="latent", seed=0
    )  # its widths are measured once
    assert len(pipe.at(32, 96)._costs) == 1
    assert pipe.at(32, 96).transformer.decoder is pipe.transformer.decoder


def another_model(pipe):
    pipe.transformer = lumina(seed=5)


def another_decoder(pipe):
    pipe.transformer.decoder = lumina(seed=5).decoder


def another_template(pipe):
    pipe.transformer.template = "{prompt} by the sea"


def another_recipe(pipe):
    hot = {name: replace(recipe, temperature=3.0) for name, recipe in pipe.preset.recipes.items()}
    pipe.preset = replace(pipe.preset, recipes=hot)


@pytest.mark.parametrize("change", [another_model, another_decoder, another_template, another_recipe])
def test_what_is_changed_counts_at_every_size(change):
    pipe, fresh = pipeline(lumina()), pipeline(lumina())
    asked = {"prompt": "a red boat", "method": "ar", "height": 32, "width": 96, "output_type": "latent", "seed": 0}
    asked["guidance_scale"] = 20.0
    before = pipe(**asked)
    for each in (pipe, fresh):
        change(each)
    after, wanted = pipe(**asked), fresh(**asked)
    assert torch.equal(after.tokens, wanted.tokens)
    assert after.trace.drawn["weights"] == wanted.trace.drawn["weights"]
    assert not torch.equal(after.tokens, before.tokens)


def test_another_drafter_of_the_same_name_counts_at_every_size():
    pipe, draft = pipeline(lumina()), {"prompt": "sea", "method": "speculative", "output_type": "latent", "seed": 0}
    for seed in (5, 6):
        pipe.drafter = pipe.drafters["small"] = lumina(seed=seed)
        pipe(**draft, height=32, width=96)
        drafted: Any = pipe.at(32, 96).drafter
        assert drafted.decoder is pipe.drafter.decoder


def test_bad_vocabularies():
    ids = Vocabulary.read(NAMES)
    how = {"size": (64, 64), "sizes": SIZES, "factor": 16, "template": "{prompt}"}
    for wrong, complaint in (
        (replace(ids, newline=CONFIG.vocabulary), "ids beyond the"),
        (replace(ids, separator=-1), "ids beyond the"),
        (replace(ids, grids=ids.grids[:2]), "with 2 size tokens, expected 3"),
    ):
        with pytest.raises(ValueError, match=complaint):
            LuminaMGPT(decoder(), wrong, **how)
    with pytest.raises(ValueError, match="in which <s> has no id"):
        Vocabulary.read(dict.fromkeys(NAMES))  # pyright: ignore[reportArgumentType]
