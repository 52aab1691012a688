"""Harmon: its files, one pass against a plain one, the prompts in a batch, and images from end to end."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from harmon_plain import SIZES, SMALL, Plain, official, small, small_file
from small import randomised
from torch import Tensor

from vargen.core import checkpoints, registry
from vargen.core.noise import PathNoise
from vargen.core.types import Denoising, Group
from vargen.models.harmon import LAYOUT, Harmon, HarmonConfig, Rotations
from vargen.models.mar import MAR
from vargen.presets import harmon as presets
from vargen.presets import mar as mar_presets
from vargen.samplers.continuous import stacked

UNREAD = ("llm.lm_head.weight", "mar.class_emb.weight")
SLOTS, CHANNELS = SMALL.side**2, SMALL.mar.channels
PROMPTS = ([0, 3, 11, 12], [0, 3, 12, 14, 13, 10, 15, 11, 1], [0, 5, 1])  # ids of three lengths
AGAINST = [0, 3, 1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small(tmp_path_factory.mktemp("harmon"))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def prompts(rows: tuple[list[int], ...], length: int, pad: int = 1) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, 2, length) of prompts, padded on the right."""
    both = [part for row in rows for part in (row, AGAINST)]
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in both])
    mask = torch.tensor([[i < len(row) for i in range(length)] for row in both])
    return ids.unflatten(0, (-1, 2)), mask.unflatten(0, (-1, 2))


def group(images: int, known: int, drawn: int, seed: int = 0, slots: int = SLOTS) -> Group:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, slots, generator=generator).argsort(-1)
    values = torch.randn(images, slots, CHANNELS, generator=generator)
    return Group(order[:, known : known + drawn], order[:, :known].sort(-1).values, values)


def decode(model: Harmon, rows: tuple[list[int], ...], some: Group, *, guided: bool = True, length: int = 9) -> Tensor:
    condition = model.text_condition(*prompts(rows, length), guided=guided)
    return model.decode(condition, some, model.make_cache(len(condition.embedding)))


@pytest.mark.parametrize("name", SIZES)
def test_every_preset_has_the_published_shape(name):
    mar, llm = SIZES[name]
    shapes = official((*mar[:-1], 16, 16, 64), (*llm[:-1], 151_936))
    with torch.device("meta"):
        model = Harmon(presets.SHAPES[name])
    read = {key: shape for key, shape in shapes.items() if key not in UNREAD}
    assert {key: shape for key, (_, shape) in LAYOUT.expected(model).items()} == read
    (c, d), linears = (mar[1], llm[1]), 2 * mar[1] * llm[1] + 2 * llm[1] ** 2
    assert sum(math.prod(shape) for shape in read.values()) == mar[-1] - 1000 * c + llm[-1] + linears + 3 * d + c
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(map(math.prod, read.values()))
    assert (model.spec.slots, model.spec.channels, model.spec.classes, model.spec.plan) == (1024, 16, 0, "masked")
    assert not [key for key, buffer in model.named_buffers() if buffer.is_meta]  # nothing that a file would not fill


def test_presets():
    named = {name for name, where in registry.MODELS.items() if where == "vargen.presets.harmon:PRESETS"}
    assert named == set(presets.PRESETS) == set(SIZES)
    assert list(presets.FILES.values()) == ["harmon_0.5b.pth", "harmon_1.5b.pth", "harmon_1.5b-o.pth"]
    for name, preset in presets.PRESETS.items():
        assert (preset.classes, preset.method, list(preset.recipes)) == (0, "mar", ["demo", "disa"])
        assert preset.drafter == (None if name == "harmon-0.5b" else "harmon-0.5b")
        for recipe in preset.recipes.values():
            _, plain = registry.method("mar", recipe.settings)
            _, annealed = registry.method("disa", recipe.settings)
            assert (recipe.guidance_scale, plain.iterations, plain.steps, plain.schedule) == (3.0, 64, 100, "constant")
            assert (annealed.iterations, annealed.upper, annealed.lower, annealed.highest) == (64, 50, 5, 950)
            assert annealed.schedule == registry.method("csd", recipe.settings)[1].schedule == "constant"
    assert [presets.text_of(name) for name in SIZES] == [
        "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct",
    ]  # fmt: skip


@pytest.mark.parametrize("unread", [True, False])
def test_an_official_file_loads(tmp_path, unread):
    state = small_file() | {"vae.encoder.conv_in.weight": torch.ones(2), "mar.vae.x": torch.ones(1)}
    if not unread:
        state = {key: value for key, value in state.items() if key not in UNREAD and "vae." not in key}
    torch.save(state, tmp_path / "harmon.pth")
    with torch.device("meta"):
        model = Harmon(SMALL)
    checkpoints.load_into(model, tmp_path / "harmon.pth", LAYOUT)
    ours = {LAYOUT.published(key): value for key, value in model.state_dict().items()}
    assert set(state) - set(ours) == ({*UNREAD, "vae.encoder.conv_in.weight", "mar.vae.x"} if unread else set())
    assert all(torch.equal(value, state[key]) for key, value in ours.items())


def test_other_files_are_refused_by_key(tmp_path):
    state = small_file()
    del state["proj_in.2.bias"], state["llm.model.norm.weight"], state["mar.diffloss.net.res_blocks.1.in_ln.bias"]
    state |= {
        "mar.mask_token": torch.ones(1, 1, 5),
        "llm.model.layers.3.x": torch.ones(1),
        "proj_in.1.weight": torch.ones(1),
    }
    torch.save(state, tmp_path / "harmon.pth")
    with pytest.raises(checkpoints.Misfit) as caught:
        checkpoints.load_into(Harmon(SMALL), tmp_path / "harmon.pth", LAYOUT)
    assert sorted(caught.value.problems) == [
        "mar.mask_token is (1, 1, 5), expected (1, 1, 16)",
        "missing llm.model.norm.weight",
        "missing mar.diffloss.net.res_blocks.1.in_ln.bias",
        "missing proj_in.2.bias",
        "unexpected llm.model.layers.3.x",
        "unexpected proj_in.1.weight",
    ]


@pytest.mark.parametrize(
    ("side", "known", "drawn"), [(6, 0, 1), (6, 1, 4), (6, 20, 16), (6, 35, 1), (4, 0, 5), (4, 11, 5)]
)
def test_a_pass_against_a_plain_one(tmp_path, side, known, drawn):
    """Three images at once, prompts of three lengths, both halves; and each alone, by hand."""
    config = replace(SMALL, side=side)
    some, plain = group(3, known, drawn, slots=side**2), Plain(small_file(), config)
    z = decode(small(tmp_path, config), PROMPTS, some)
    assert z.shape == (6, drawn, SMALL.mar.width)
    for row, words in enumerate((*PROMPTS, *[AGAINST] * 3)):
        image = row % 3
        expected = plain.z(words, some.values[image], some.known[image].tolist(), some.slots[image].tolist())
        torch.testing.assert_close(z[row], expected, rtol=1e-4, atol=1e-4)


def test_position_tables_are_stretched_as_published():
    config = mar_presets.SHAPES["mar-base"]
    mar = randomised(MAR(replace(config, layers=1, width=24, head_depth=1, head_width=8, classes=0)), 0, 1.0)
    assert isinstance(mar, MAR)
    found = mar.positions((32, 32))
    for table, ours, front in (
        (mar.encoder_positions, found.encoder, 64),
        (mar.decoder_positions, found.decoder, 64),
        (mar.diffusion_positions, found.drawn, 0),
    ):
        image = table[:, front:].reshape(1, 16, 16, 24).permute(0, 3, 1, 2)
        image = F.interpolate(image, size=(32, 32), mode="bilinear", align_corners=False)
        assert torch.equal(ours, torch.cat([table[:, :front], image.permute(0, 2, 3, 1).flatten(1, 2)], 1)[0])
    for same in (mar.positions(), mar.positions((16, 16))):
        assert torch.equal(same.encoder, mar.encoder_positions[0])
        assert torch.equal(same.drawn, mar.diffusion_positions[0])
    assert "classes.weight" not in mar.state_dict()


def test_padding_is_invisible(model):
    some = group(3, 12, 5)
    together = decode(model, PROMPTS, some).unflatten(0, (2, 3))
    wider = decode(model, PROMPTS, some, length=17).unflatten(0, (2, 3))
    torch.testing.assert_close(wider, together, rtol=1e-5, atol=1e-5)
    for row, words in enumerate(PROMPTS):
        one = Group(*(part[row : row + 1] for part in (some.slots, some.known, some.values)))
        alone = decode(model, (words,), one, length=len(words))
        torch.testing.assert_close(alone, together[:, row], rtol=1e-5, atol=1e-5)
    ids, mask = prompts(PROMPTS, 9)
    conditions = [model.text_condition(i, mask, guided=True) for i in (ids, ids.masked_fill(~mask, 7))]
    assert torch.equal(conditions[0].embedding, conditions[1].embedding)
    assert not torch.allclose(together[0], together[1], atol=1e-2)  # while what is not padding shows


def test_prompts_are_read_once_and_stay_as_they_are(model):
    condition, cache = model.text_condition(*prompts(PROMPTS, 9), guided=True), model.make_cache(6)
    read = []
    hook = model.llm.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    assert cache.bytes == 0
    first = model.decode(condition, group(3, 12, 5), cache)
    kept = [part.clone() for pair in cache.prompts for part in pair]
    assert cache.bytes == 4 * 2 * SMALL.layers * 6 * SMALL.kv_heads * 9 * SMALL.width // SMALL.heads
    model.decode(condition, group(3, 30, 2, seed=1), cache)
    again = model.decode(condition, group(3, 12, 5), cache)
    hook.remove()
    assert [ids is None for ids in read] == [False, True, True, True]
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(kept, (part for pair in cache.prompts for part in pair), strict=True))


@pytest.mark.parametrize("guided", [True, False])
def test_several_groups_of_every_image_in_one_pass(model, guided):
    """As they are drafted: of different lengths, the shorter one filled up, in a pass that also reads the prompts."""
    groups = [group(2, 5, 3), group(2, 9, 2, seed=1)]
    condition, cache = (
        model.text_condition(*prompts(PROMPTS[:2], 9), guided=guided),
        model.make_cache(4 if guided else 2),
    )
    several = condition.embedding.split(2)
    several = replace(condition, embedding=torch.cat([part.repeat(2, 1, 1) for part in several]))
    for _ in range(2):
        z = model.decode(several, stacked(groups), cache).split(4)
        for index, one in enumerate(groups):
            ours = torch.cat([part.split(2)[index][:, : one.slots.shape[1]] for part in z])
            torch.testing.assert_close(ours, decode(model, PROMPTS[:2], one, guided=guided), rtol=1e-5, atol=1e-5)


def test_guidance_decides_how_many_rows_are_run(model):
    rows: dict[str, list[int]] = {"encoder": [], "llm": [], "decoder": [], "head": []}
    parts = {"encoder": model.mar.encoder_norm, "decoder": model.mar.decoder_norm}
    parts |= {"llm": model.llm.norm, "head": model.head.cond_embed}
    hooks = [
        part.register_forward_pre_hook(lambda module, given, name=name: rows[name].append(len(given[0])))
        for name, part in parts.items()
    ]
    some, drawn = group(3, 12, 5), []
    noise = PathNoise(torch.tensor([1, 2, 3]), some.slots, CHANNELS)
    for guided, scale in ((False, 1.0), (True, 1.0), (True, 3.0)):
        z = decode(model, PROMPTS, some, guided=guided)
        drawn.append(model.head.sample(z, Denoising(4, scale), noise))
    for hook in hooks:
        hook.remove()
    assert rows == {"encoder": [3, 3, 3], "llm": [3, 3, 6, 6, 6, 6], "decoder": [3, 6, 6], "head": [3, 3, 6]}
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(drawn[1], drawn[2], atol=1e-2)


def test_rotations_are_those_of_transformers_and_survive_a_cast():
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = Qwen2Config(hidden_size=128, num_attention_heads=2, num_key_value_heads=2, rope_parameters=rope)
    places, x = torch.arange(1200)[None], torch.zeros(1)
    for ours, theirs in zip(Rotations(64)(x, places), Qwen2RotaryEmbedding(config)(x, places), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    cast = Rotations(64).to(torch.bfloat16)(x, places)
    assert torch.equal(cast[0], Rotations(64)(x, places)[0])


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="no multiples"):
        Harmon(HarmonConfig(SMALL.mar, heads=5))
