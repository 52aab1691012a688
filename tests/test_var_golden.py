"""VAR and its tokenizer against recorded outputs of the official implementation, through the official files."""

import pytest
import synth
import torch

from vargen.core import checkpoints
from vargen.models import var
from vargen.models.var import VAR, VARConfig
from vargen.pipelines.next_scale import NextScalePipeline
from vargen.tokenizers import multiscale_vq
from vargen.tokenizers.multiscale_vq import MultiScaleVQConfig, MultiScaleVQTokenizer

CASES = ("var_l2", "var_shared_aln")


def relative(out, ref):
    return ((out - ref).norm() / ref.norm()).item()


def official(case):
    """The configurations of a golden case."""
    c, v = case["config"], case["config"]["vqvae"]
    sides, codes, dim = tuple(c["patch_nums"]), v["vocab_size"], v["z_channels"]
    images = MultiScaleVQConfig(tuple(v["ch"] * m for m in (1, 1, 2, 2, 4)), 2, dim, codes, sides)
    shapes = (c["depth"], c["num_heads"], c["embed_dim"], sides, codes, dim, c["num_classes"], c["shared_aln"])
    return VARConfig(*shapes), images


@pytest.fixture(scope="module", params=CASES)
def golden(request, tmp_path_factory):
    """Transformer and tokenizer, loaded as official files are, and the recorded tensors."""
    case, recorded = synth.case(request.param)
    config, images = official(case)
    with torch.device("meta"):
        parts = VAR(config), MultiScaleVQTokenizer(images)
    layouts = var.LAYOUT, multiscale_vq.layout(images)
    for part, layout, kind in zip(parts, layouts, ("", "vqvae_"), strict=True):
        path = tmp_path_factory.mktemp("official") / "official.pth"
        shapes = case[f"{kind}parameters"] | case[f"{kind}buffers"]
        state = synth.state_dict(shapes)
        torch.save({key: value * ("zero_k_bias" not in key) for key, value in state.items()}, path)
        checkpoints.load_into(part, path, layout)
        part.eval().requires_grad_(False)
    return *parts, recorded


def test_tokenizer(golden):
    _, images, recorded = golden
    assert torch.equal(images.encode(recorded["image"]), recorded["encoded_codes"])
    assert relative(images.decode(recorded["codes"]).clamp(-1, 1), recorded["decoded"]) < 1e-4
    assert relative(images.pyramid(recorded["codes"])[1], recorded["next_scale_inputs"]) < 1e-4


def test_teacher_forced_logits(golden):
    model, _, recorded = golden
    condition = model.class_condition(recorded["label"], guided=False)
    assert relative(model(condition, recorded["next_scale_inputs"]), recorded["logits"]) < 1e-4


@pytest.mark.parametrize("batch", [1, 2])
def test_cached_logits_scale_by_scale_and_in_one_pass(golden, batch):
    """Every way to cut the scales into passes, the last scale's keys kept or not."""
    model, _, recorded = golden
    labels, inputs = recorded["label"][:batch], recorded["next_scale_inputs"][:batch]
    condition, spec = model.class_condition(labels, guided=False), model.spec
    scales = len(spec.sides)
    for cuts in ([*range(1, scales + 1)], [2, scales], [scales - 1, scales], [scales]):
        for slots in (spec.slots, spec.start(scales - 1)):
            cache, start = model.make_cache(batch, slots), 0
            for stop in cuts:
                part = inputs[:, max(0, spec.start(start) - 1) : spec.start(stop) - 1]
                logits = model.decode(condition, part, range(start, stop), cache)
                wanted = recorded["logits"][:batch, spec.start(stop - 1) : spec.start(stop)]
                assert relative(logits, wanted) < 1e-4
                start = stop


@pytest.mark.parametrize("method", ["var", "code:scales=0", "code:scales=2", "code:scales=4"])
def test_greedy_codes_and_image(golden, method):
    """With a model as its own refiner, whoever draws which scale, the image is the same."""
    model, images, recorded = golden
    pipe = NextScalePipeline(model, images)
    pipe.drafter = model
    pipe.set_progress_bar_config(disable=True)
    options = {"guidance_scale": 1.5, "top_k": 1, "seed": 0, "output_type": "pt"}
    out = pipe(recorded["label"].tolist(), method=method, **options)
    assert torch.equal(out.tokens, recorded["greedy_cfg1_5_codes"])
    assert relative(out.images, recorded["greedy_cfg1_5_image"]) < 1e-4
