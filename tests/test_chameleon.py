"""Chameleon's decoder against transformers', and Lumina-mGPT's layout and generation against slow hand-written ones."""

from dataclasses import replace

import pytest
import torch
from chameleon import CODES, CONFIG, NAMES, SIZES, decoder, lumina, text

from vargen.core import noise
from vargen.core.types import Block
from vargen.models.chameleon import Chameleon
from vargen.models.lumina_mgpt import Anole, Vocabulary, crops
from vargen.pipelines.prompted import PromptedPipeline

FIRST, NEWLINE, BEGIN = NAMES["IMGIMGAZ"], NAMES["<reserved08799>"], NAMES["<racm3:break>"]
PROMPTS = ["a red boat by the sea", "the sea"]


def theirs(config):
    """transformers' class with the weights of `decoder(config)`, by the documented map: norms' rows expand."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    encoder = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 8, "base_channels": 32}
    encoder |= {"channel_multiplier": [1, 1], "num_res_blocks": 1, "resolution": 32}
    model = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            model_parallel_size=config.groups,
            swin_norm=config.norm_last,
            max_position_embeddings=config.context,
            vocabulary_map=NAMES,
            vq_config=encoder,
        )
    )
    state = {}
    for key, value in decoder(config).state_dict().items():
        heads = {"q_norm": config.heads, "k_norm": config.kv_heads}
        rows = next((count for name, count in heads.items() if name in key), len(value))
        state[key] = value.repeat_interleave(rows // len(value), dim=0)
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all("vqmodel" in key for key in missing.missing_keys)
    return model.eval()


SHAPES = {
    "7B": CONFIG,
    "34B": replace(CONFIG, heads=8, kv_heads=4, groups=4, norm_last=True),
    "grouped": replace(CONFIG, kv_heads=2),
}


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_are_those_of_transformers(name):
    config = SHAPES[name]
    model, reference = lumina(config=config), theirs(config)
    ids, mask = model.tokenize(PROMPTS, text())
    condition = model.text_condition(ids, mask, guided=True)
    tokens = torch.randint(CODES, (2, model.spec.slots), generator=torch.Generator().manual_seed(0))
    tokens = torch.where(model.spec.ends(torch.arange(model.spec.slots)), CODES, tokens)
    logits = model(condition, tokens.repeat(2, 1))
    for row in range(4):
        words = ids[row % 2, row // 2][mask[row % 2, row // 2]].tolist()
        image = [NEWLINE if token == CODES else FIRST + token for token in tokens[row % 2].tolist()]
        sequence = torch.tensor([[*words, *model.opening(), *image]])
        states = reference.model(input_ids=sequence).last_hidden_state
        wanted = reference.lm_head(states)[0, len(words) + 2 : -1, FIRST : FIRST + CODES]
        assert (logits[row, :, :CODES] - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_weights_go_back_into_transformers_rows():
    """The other way: the rows of transformers' norms, one of each group, are the file's."""
    config = SHAPES["34B"]
    state, reference = decoder(config).state_dict(), theirs(config).state_dict()
    ours = {}
    for key, value in state.items():
        if "q_norm" in key or "k_norm" in key:
            each = len(reference[key]) // config.groups
            ours[key] = reference[key][::each]
            assert value.shape == (config.groups, config.head_dim)
        else:
            ours[key] = reference[key]
    again = Chameleon(config)
    again.load_state_dict(ours)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_decoding_by_slots_equals_teacher_forcing(size):
    model = lumina(size)
    condition = model.text_condition(*model.tokenize(PROMPTS, text()), guided=True)
    slots, rows = model.spec.slots, 4
    tokens = torch.randint(CODES, (rows, slots), generator=torch.Generator().manual_seed(1))
    whole, front = model(condition, tokens), condition.embedding.shape[1]
    cache = model.make_cache(rows, 2, front)
    out = [model.prefill(condition, cache)]
    for start in range(0, slots - 1, 5):
        at = torch.arange(start, min(start + 5, slots - 1)).expand(rows, -1)
        out.append(model.decode(Block(tokens.gather(1, at), at, start, int(at.max()) + 1), cache))
    assert torch.allclose(torch.cat(out, dim=1), whole, atol=2e-5)


TABLE = {  # height and width in pixels: what follows the prompt, as names; rows and columns of codes
    (64, 64): (["<racm3:break>", "<reserved08802>", "<reserved08802>"], 4, 4),
    (32, 96): (["<racm3:break>", "<reserved08801>", "<reserved08803>"], 2, 6),
    (96, 32): (["<racm3:break>", "<reserved08803>", "<reserved08801>"], 6, 2),
}


@pytest.mark.parametrize("size", SIZES)
def test_layout_against_a_table(size):
    model, (opening, rows, columns) = lumina(size), TABLE[size]
    assert model.opening() == [NAMES[name] for name in opening]
    assert (model.spec.rows, model.spec.columns, model.spec.newline) == (rows, columns + 1, CODES)
    assert model.spec.slots == rows * (columns + 1)
    ends = model.spec.ends(torch.arange(model.spec.slots)).view(rows, -1)
    assert ends[:, -1].all()
    assert not ends[:, :-1].any()
    with torch.no_grad():
        fed = model.embed(torch.tensor([[0, 5, CODES]]))
        wanted = model.decoder.model.embed_tokens(torch.tensor([[FIRST, FIRST + 5, NEWLINE]]))
    assert torch.equal(fed, wanted)


def test_published_sizes():
    """Chameleon's 7B-768: grids of 32 pixels, as many as fit into 24 x 24, no side four times the other."""
    sizes = crops(768)
    assert (768, 768) in sizes
    assert (384, 1536) in sizes
    assert (1536, 384) in sizes
    assert all(h % 32 == w % 32 == 0 and h * w <= 768 * 768 and max(h, w) <= 4 * min(h, w) for h, w in sizes)
    assert crops(512)[0] == (256, 1024)


def slow(model, prompt, seed, *, scale, top_k, temperature):
    """A generation as published: one token at a time over whole sequences, guidance, constraint, top-k, temperature."""
    reference, tokenizer = theirs(CONFIG), text()
    height, width = model.size
    words = [NAMES["<s>"], *tokenizer.encode(f"{width}x{height} {prompt}", add_special_tokens=False)]
    sequence, start = [*words, NAMES["<reserved08706>"], *model.opening()], len(words) + 1
    rows, columns = height // 16, width // 16
    out = []
    for n in range(rows * (columns + 1)):
        conditional, unconditional = (
            reference.lm_head(reference.model(input_ids=torch.tensor([part])).last_hidden_state)[0, -1]
            for part in (sequence, sequence[start:])
        )
        logits = unconditional + scale * (conditional - unconditional)
        if (n + 1) % (columns + 1) == 0:
            token = NEWLINE
        else:
            allowed = torch.full_like(logits, -float("inf"))
            allowed[FIRST : FIRST + CODES] = logits[FIRST : FIRST + CODES]
            allowed[allowed < allowed.topk(top_k).values[-1]] = -float("inf")
            scores = (allowed / temperature)[FIRST : FIRST + CODES]
            g = noise.gumbel(torch.tensor([seed]), torch.tensor([n]), noise.Purpose.TOKEN, CODES + 1)[0, 0, :CODES]
            token = FIRST + int((scores + g).argmax())
        sequence.append(token)
        out.append(token)
    return torch.tensor(out).view(rows, columns + 1)[:, :-1] - FIRST


def pipeline(model):
    pipe = PromptedPipeline(model, None, text_tokenizer=text())
    pipe.set_progress_bar_config(disable=True)
    return pipe


LAW = {"guidance_scale": 3.0, "top_k": 7, "temperature": 0.9}


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_a_generation_is_the_slow_one_token_for_token(size):
    model = lumina()
    wanted = [slow(model.at(size), p, 5 + i, scale=3.0, top_k=7, temperature=0.9) for i, p in enumerate(PROMPTS)]
    for method in ("ar", "sjd-exact:window=6", "sjd-exact:window=3:guess=left"):
        where = {"height": size[0], "width": size[1], "output_type": "latent"}
        found = pipeline(model)(prompt=PROMPTS, method=method, seed=5, **LAW, **where)
        assert torch.equal(found.tokens, torch.stack(wanted)), method


METHODS = ("ar", "sjd:window=5", "sjd-coupled:window=5", "sjd-exact:window=5", "sjd-pac:window=6:tree=2-2")
METHODS += ("zipar:window=2", "zipar-adaptive:window=2", "jacobi-2d:window=2:drafts=3")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES)
def test_every_method_draws_codes_and_nothing_else(method, size):
    where = {"height": size[0], "width": size[1], "output_type": "latent"}
    out = pipeline(lumina())(
        prompt=["a", "the red sea by a boat", "boat"], method=method, seed=[3, 1, 2], **LAW, **where
    )
    assert out.tokens.shape == (3, size[0] // 16, size[1] // 16)
    assert 0 <= int(out.tokens.min()) <= int(out.tokens.max()) < CODES


@pytest.mark.parametrize("method", METHODS)
def test_an_image_does_not_depend_on_its_batch(method):
    pipe, how = pipeline(lumina()), {"output_type": "latent", **LAW}
    prompts = ["a", "the red sea by a boat", "boat", "sea"] * 4
    together = pipe(prompt=prompts, seed=0, method=method, batch_size=16, **how).tokens
    for i in (0, 1, 15):
        assert torch.equal(pipe(prompt=prompts[i], seed=i, method=method, **how).tokens[0], together[i])


def test_anole_has_neither_sizes_nor_newlines():
    model = lumina()
    how = {"sizes": model.sizes, "factor": model.factor, "template": "{prompt}"}
    anole = Anole(model.decoder, Vocabulary.read(NAMES), size=(64, 64), **how)
    assert anole.opening() == [BEGIN]
    assert (anole.spec.rows, anole.spec.columns, anole.spec.vocabulary, anole.spec.newline) == (4, 4, CODES, None)
    out = pipeline(anole)(prompt="a red boat", seed=1, method="sjd-exact:window=4", output_type="latent")
    plain = pipeline(anole)(prompt="a red boat", seed=1, method="ar", output_type="latent")
    assert torch.equal(out.tokens, plain.tokens)
    assert out.tokens.shape == (1, 4, 4)


def test_a_picture_in_a_prompt():
    """Its tokens stand where the prompt says, and guidance is against the image to be drawn alone."""
    model = lumina()
    codes = torch.arange(8).view(2, 4)  # 32 x 64 pixels
    row = [[FIRST + 4 * i + j for j in range(4)] + [NEWLINE] for i in range(2)]
    shown = [BEGIN, NAMES["<reserved08801>"], NAMES["<reserved08802>"], *row[0], *row[1], NAMES["<eoss>"]]
    ids, mask = model.tokenize(["a <|image|> boat", "red"], text(), [[codes], [codes]])
    a, boat, red = (NAMES[word] for word in ("a", "boat", "red"))
    end = NAMES["<reserved08706>"]
    assert ids[0, 0].tolist() == [NAMES["<s>"], a, *shown, boat, end]
    assert ids[1, 0][mask[1, 0]].tolist() == [NAMES["<s>"], *shown, red, end]
    assert not mask[:, 1].any()
    both, words = model.tokenize(["red"], text(), [[codes, codes]])
    assert both[0, 0][words[0, 0]].tolist() == [NAMES["<s>"], *shown, *shown, red, end]
    for prompt, pictures in (("a <|image|> boat", [codes, codes]), ("a <|image|> boat", [])):
        with pytest.raises(ValueError, match=f"got {len(pictures)} pictures for 1 places"):
            model.tokenize([prompt], text(), [pictures])
    anole = Anole(model.decoder, model.vocabulary, size=(64, 64), sizes=SIZES, factor=16, template="{prompt}")
    assert anole.picture(codes) == [BEGIN, *(FIRST + code for code in range(8)), NAMES["<eoss>"]]
