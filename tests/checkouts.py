"""Stand-ins for checkouts of LlamaGen, VAR and MAR: their modules, signatures and names of weights, around our models.

They draw naively, by a whole forward for every token or scale, as their signatures say; nothing of theirs is here.
"""

from pathlib import Path
from textwrap import dedent

LOAD = """
    from types import SimpleNamespace


    def load(ours, table, state):
        names = {table.published(key): key for key in ours.state_dict()}
        ours.load_state_dict({names[key]: value for key, value in state.items()})
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])


    def draw(logits, top_k, top_p, temperature=1.0):
        from vargen.core.warp import Warp

        scores = Warp(temperature, top_k, top_p).scores(logits)
        return scores.softmax(-1).flatten(0, -2).multinomial(1).view(logits.shape[:-1])
"""
GPT = """
    from dataclasses import dataclass

    from torch import nn
    from utils.standing import load
    from vargen.core.types import Condition
    from vargen.models.llamagen import LAYOUT, LlamaGen, LlamaGenConfig


    @dataclass
    class ModelArgs:
        dim: int = 4096
        n_layer: int = 32
        n_head: int = 32
        rope_base: float = 10000
        norm_eps: float = 1e-5
        num_classes: int = 1000
        caption_dim: int = 2048
        model_type: str = "c2i"
        vocab_size: int = 16384
        cls_token_num: int = 1
        block_size: int = 256


    class Transformer(nn.Module):
        def __init__(self, a):
            super().__init__()
            text = a.caption_dim if a.model_type == "t2i" else 0
            self.ours = LlamaGen(LlamaGenConfig(
                a.n_layer, a.n_head, a.dim, int(a.block_size**0.5), a.vocab_size, a.num_classes, text,
                max(a.cls_token_num, 1)))
            self.num_classes, self.model_type = a.num_classes, a.model_type

        def load_state_dict(self, state, strict=True, assign=False):
            return load(self.ours, LAYOUT, state)

        def forward(self, embedded, padding, ids):
            return self.ours(Condition(embedded, padding), ids)[:, -1]
"""
GENERATE = """
    import torch
    from utils.standing import draw


    @torch.no_grad()
    def generate(model, cond, max_new_tokens, emb_masks=None, cfg_scale=1.0, cfg_interval=-1, temperature=1.0, top_k=0,
                 top_p=1.0):
        print("drawing")
        if cfg_scale > 1:
            text = model.model_type == "t2i"
            null = model.ours.cls_embedding.uncond_embedding if text else model.num_classes
            cond = torch.cat([cond, torch.zeros_like(cond) + null])
            emb_masks = None if emb_masks is None else emb_masks.repeat(2, 1)
        embedded, padding = model.ours.cls_embedding(cond), None if emb_masks is None else emb_masks == 0
        seq = torch.zeros(len(cond), 0, dtype=torch.long)
        for i in range(max_new_tokens):
            logits = model(embedded, padding, torch.cat([seq, seq.new_zeros(len(seq), 1)], dim=1))
            if cfg_scale > 1:
                c, u = logits.chunk(2)
                logits = u + (c - u) * cfg_scale if cfg_interval < 0 or i <= cfg_interval + 1 else c
            token = draw(logits, top_k, top_p, temperature)
            seq = torch.cat([seq, token.repeat(len(seq) // len(token))[:, None]], dim=1)
        return seq[: len(token)].int()
"""
QUANT = """
    import dist
    import torch
    from torch import nn
    from torch.nn import functional as F


    class VectorQuantizer2(nn.Module):
        def __init__(self, vocab_size, Cvae, using_znorm, beta=0.25, default_qresi_counts=0, v_patch_nums=None,
                     quant_resi=0.5, share_quant_resi=4):
            super().__init__()
            self.vocab_size, self.Cvae, self.sides, self.ratio = vocab_size, Cvae, v_patch_nums, quant_resi
            self.quant_resi = nn.Module()
            smooth = (nn.Conv2d(Cvae, Cvae, 3, padding=1) for _ in range(share_quant_resi))
            self.quant_resi.qresi_ls = nn.ModuleList(smooth)
            self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(v_patch_nums), vocab_size))
            self.embedding = nn.Embedding(vocab_size, Cvae)

        def get_next_autoregressive_input(self, si, SN, f_hat, h):
            if si < SN - 1:
                h = F.interpolate(h, size=(self.sides[-1],) * 2, mode="bicubic")
            place = torch.tensor(si / (SN - 1))
            which = (torch.linspace(1 / 12, 11 / 12, 4) - place).abs().argmin()
            f_hat = f_hat + (1 - self.ratio) * h + self.ratio * self.quant_resi.qresi_ls[which](h)
            return f_hat, f_hat if si == SN - 1 else F.interpolate(f_hat, size=(self.sides[si + 1],) * 2, mode="area")
"""
VAR = """
    import torch
    from torch import nn
    from utils.standing import draw, load
    from models.quant import VectorQuantizer2
    from vargen.models.var import LAYOUT, VARConfig
    from vargen.models.var import VAR as Ours


    class VAR(nn.Module):
        def __init__(self, vae_local, num_classes=1000, depth=16, embed_dim=1024, num_heads=16, norm_eps=1e-6,
                     shared_aln=False, attn_l2_norm=False, patch_nums=(1, 2, 3)):
            super().__init__()
            assert attn_l2_norm
            self.vae_proxy, self.sides = (vae_local,), patch_nums
            self.ours = Ours(VARConfig(depth, num_heads, embed_dim, patch_nums, vae_local.vocab_size, vae_local.Cvae,
                                       num_classes, shared_aln, norm_eps))
            self.num_classes, self.head = num_classes, self.ours.head

        def load_state_dict(self, state, strict=True, assign=False):
            return load(self.ours, LAYOUT, state)

        @torch.no_grad()
        def autoregressive_infer_cfg(self, B, label_B, g_seed=None, cfg=1.5, top_k=0, top_p=0.0, more_smooth=False):
            steps, last = self.vae_proxy[0].quantize, len(self.sides) - 1
            condition = self.ours.class_condition(label_B, guided=True)
            f_hat = torch.zeros(B, steps.Cvae, self.sides[-1], self.sides[-1])
            inputs = torch.zeros(B, 0, steps.Cvae)
            for si, pn in enumerate(self.sides):
                c, u = self.ours(condition, inputs.repeat(2, 1, 1))[:, -(pn**2):].chunk(2)
                t = cfg * si / last
                ids = draw((1 + t) * c - t * u, top_k, top_p or 1.0)
                h = steps.embedding(ids).transpose(1, 2).reshape(B, -1, pn, pn)
                f_hat, following = steps.get_next_autoregressive_input(si, last + 1, f_hat, h)
                inputs = torch.cat([inputs, following.flatten(2).transpose(1, 2)], dim=1)
            return self.vae_proxy[0].fhat_to_img(f_hat).add_(1).mul_(0.5)
"""
MAR = """
    import numpy as np
    import torch
    from torch import nn
    from utils.standing import load
    from vargen.core.types import Condition, Group
    from vargen.models.mar import LAYOUT, MARConfig
    from vargen.models.mar import MAR as Ours


    class MAR(nn.Module):
        def __init__(self, img_size=256, vae_stride=16, encoder_embed_dim=1024, encoder_depth=16, encoder_num_heads=16,
                     decoder_embed_dim=1024, decoder_depth=16, decoder_num_heads=16, norm_layer=nn.LayerNorm,
                     vae_embed_dim=16, class_num=1000, buffer_size=64, diffloss_d=3, diffloss_w=1024,
                     num_sampling_steps="100"):
            super().__init__()
            self.side, self.steps, self.channels = img_size // vae_stride, int(num_sampling_steps), vae_embed_dim
            self.ours = Ours(MARConfig(encoder_depth, encoder_num_heads, encoder_embed_dim, diffloss_d, diffloss_w,
                                       self.side, vae_embed_dim, class_num, buffer_size))
            self.class_emb, self.decoder_norm = nn.Embedding(1000, encoder_embed_dim), self.ours.decoder_norm

        def load_state_dict(self, state, strict=True, assign=False):
            self.class_emb.load_state_dict({"weight": state["class_emb.weight"]})
            return load(self.ours, LAYOUT, state)

        def _group(self, mask, values=None):
            every = torch.arange(self.side**2).expand(len(mask), -1)
            return Group(every, every[mask == 0].view(len(mask), -1), values)

        def forward_mae_encoder(self, x, mask, class_embedding):
            return self.ours.encode(Condition(class_embedding[:, None]), self._group(mask, x))

        def forward_mae_decoder(self, x, mask):
            return self.ours.fill(x, self._group(mask))

        def sample_tokens(self, bsz, num_iter=64, cfg=1.0, cfg_schedule="linear", labels=None, temperature=1.0,
                          progress=False):
            assert (self.steps, cfg, cfg_schedule) == (8, 2.0, "linear")
            np.random.shuffle(np.arange(3))
            tokens = torch.randn(bsz, self.channels, self.side, self.side) * temperature
            mask = torch.ones(bsz, self.side**2)
            for _ in range(num_iter):
                values = tokens.flatten(2).transpose(1, 2)
                self.forward_mae_decoder(self.forward_mae_encoder(values, mask, self.class_emb(labels)), mask)
            return tokens
"""
FILES = {
    "LlamaGen": {"autoregressive/models/gpt.py": GPT, "autoregressive/models/generate.py": GENERATE},
    "VAR": {"models/__init__.py": "", "models/var.py": VAR, "models/quant.py": QUANT, "dist.py": ""},
    "MAR": {"models/mar.py": MAR},
}


def written(folder: Path, what: str, **changed: str) -> Path:
    """A stand-in for a checkout of `what`; `changed` are words of its files and what stands in their place."""
    for name, text in {**FILES[what], "utils/standing.py": LOAD}.items():
        for before, after in changed.items():
            text = text.replace(before, after)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text))
    return folder
