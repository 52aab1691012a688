"""Calls of `generate` that draw images with the tiny models of `wrapped.py`, and what transformers itself gives."""

import torch
import torch.nn.functional as F
from transformers import ChameleonForConditionalGeneration
from wrapped import CODES, EMU, SIDE, prompts

METHODS = ("ar", "sjd:window=4", "sjd-coupled:window=5", "sjd-exact:window=5", "sjd-pac:window=5")
NAMES = {name: i for i, name in enumerate(EMU)}
VISUAL = list(range(NAMES["<|visual token 000000|>"], NAMES["<|visual token 000000|>"] + CODES))
HIGH, WIDE = 3, 4
ENDS = ("<|extra_201|>", "<|image end|>", "<eos>")  # of the frame, of the image, of the text


def emu_ids(*texts):
    return prompts([[1, *(NAMES[word] for word in text.split()), 5, 6] for text in texts])


def allowed(_, ids):
    """As transformers' documentation of Emu3 has it, tensors among it."""
    offset = len(ids) - ids.tolist().index(NAMES["<|image token|>"])
    behind = offset - (WIDE + 1) * HIGH
    if behind > 0:
        return (torch.tensor(NAMES[ENDS[behind - 1]]),) if behind <= len(ENDS) else (0,)
    return torch.tensor([NAMES["<|extra_200|>"]]) if offset % (WIDE + 1) == 0 else VISUAL


def janus_call(count=3, **how):
    ids, mask = prompts([[1, 9, 5, 6, 7, 10, 4], [1, 9, 8, 10, 4], [1, 9, 6, 10, 4]][:count])
    return {"input_ids": ids, "attention_mask": mask, "generation_mode": "image", "do_sample": False, **how}


def emu_call(count=3, **how):
    ids, mask = emu_ids(*["a red boat", "sea", "red sea"][:count])
    negative, there = emu_ids(*["low low", "low", "low low a low"][:count])
    against = {"negative_prompt_ids": negative, "negative_prompt_attention_mask": there, "guidance_scale": 3.0}
    given = {"input_ids": ids, "attention_mask": mask, "prefix_allowed_tokens_fn": allowed, "max_new_tokens": 40}
    return {**given, **against, "do_sample": False, **how}


def chameleon_call(count=3, **how):
    ids, mask = prompts([[1, 17, 28, 29, 5], [1, 30, 5], [1, 28, 30, 5]][:count])
    return {"input_ids": ids, "attention_mask": mask, "generation_mode": "image", "do_sample": False, **how}


CALLS = {"janus": janus_call, "emu3": emu_call, "chameleon": chameleon_call}


@torch.no_grad()
def chameleon_laws(model, ids, mask, against, scale):
    """Guided scores (B, V) of the codes behind ids (B, T), by transformers' own hidden states and head."""
    scores = []
    for tokens, there in ((ids, mask), against):
        places = (there.cumsum(1) - 1).clamp(min=0)
        states = model.model(input_ids=tokens, attention_mask=there, position_ids=places).last_hidden_state[:, -1]
        scores.append(F.linear(states, model.lm_head.weight)[:, model.model.vocabulary_mapping.image_tokens])
    return scores[1] + scale * (scores[0] - scores[1])


@torch.no_grad()
def janus_laws(model, ids, codes, scale):
    """The same of Janus, behind the prompt (1, T), or behind it and each of some codes (B,)."""
    scores = []
    for tokens in (ids, torch.where((ids == 1) | (ids == 4), ids, 0)):
        x = model.get_input_embeddings()(tokens)
        if codes is not None:
            drawn = model.prepare_embeddings_for_image_generation(codes[:, None])
            x = torch.cat([x.expand(len(codes), -1, -1), drawn], 1)
        scores.append(model.model.generation_head(model.model.language_model(inputs_embeds=x).last_hidden_state[:, -1]))
    return scores[1] + scale * (scores[0] - scores[1])


def emu_laws(model, ids, negative, scale):
    """The same of Emu3, as transformers' processors leave them."""
    masks = {"attention_mask": torch.ones_like(ids), "negative_prompt_attention_mask": torch.ones_like(negative)}
    how = {"prefix_allowed_tokens_fn": allowed, "guidance_scale": scale, "max_new_tokens": 1, "do_sample": False}
    told = {"return_dict_in_generate": True, "output_scores": True}
    return model.generate(ids, negative_prompt_ids=negative, **masks, **how, **told).scores[0][:, VISUAL]


def first_laws(kind, model, call, scale):
    """Ids (V,) that stand for the codes; guided scores of the first code (1, V), and of the second one behind each."""
    ids = call["input_ids"]
    if kind == "janus":
        codes = torch.arange(CODES)
        return codes, janus_laws(model, ids, None, scale), janus_laws(model, ids, codes, scale)
    other = call.get("negative_prompt_ids", ids[:, -1:])
    codes = torch.tensor(VISUAL if kind == "emu3" else model.model.vocabulary_mapping.image_tokens)
    lines, others = (torch.cat([part.expand(CODES, -1), codes[:, None]], 1) for part in (ids, other))
    if kind == "emu3":
        return codes, emu_laws(model, ids, other, scale), emu_laws(model, lines, others, scale)
    alone, behind = ((other, torch.ones_like(other)), (others, torch.ones_like(others)))
    first = chameleon_laws(model, ids, torch.ones_like(ids), alone, scale)
    return codes, first, chameleon_laws(model, lines, torch.ones_like(lines), behind, scale)


def chameleon_plain(model, input_ids, attention_mask, guidance_scale=1.0, **_):
    """A plain loop, since transformers has none."""
    codes, mask = torch.tensor(model.model.vocabulary_mapping.image_tokens), attention_mask
    ids, other = input_ids, input_ids[:, -1:]
    there = torch.ones_like(other)
    for _ in range(SIDE * SIDE):
        drawn = codes[chameleon_laws(model, ids, mask, (other, there), guidance_scale).argmax(-1)][:, None]
        ids, other = torch.cat([ids, drawn], 1), torch.cat([other, drawn], 1)
        mask, there = F.pad(mask, (0, 1), value=1), F.pad(there, (0, 1), value=1)
    return torch.cat([ids, ids.new_full((len(ids), 1), 6)], 1)


def theirs(model, call):
    """What transformers draws, or the loop that stands for it."""
    if isinstance(model, ChameleonForConditionalGeneration):
        return chameleon_plain(model, **call)
    return type(model).generate(model, **call)
