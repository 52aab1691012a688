"""The VQ tokenizer: shapes, codes on the sphere, and the published sizes."""

import pytest
import torch
import torch.nn.functional as F
from small import vq

from vargen.tokenizers.vq import VQConfig, VQTokenizer


def test_shapes_and_grid():
    model = vq()
    images = torch.rand(2, 3, 12, 20) * 2 - 1
    ids = model.encode(images)
    assert ids.shape == (2, 6, 10)
    assert model.decode(ids).shape == images.shape


def test_nearest_is_the_nearest_by_distance_whatever_the_stored_length():
    quantize = vq().quantize
    with torch.no_grad():
        quantize.embedding.weight.mul_(torch.rand(48, 1) * 9 + 0.1)
    z = torch.randn(100, 4)
    distance = torch.cdist(F.normalize(z, dim=-1), F.normalize(quantize.embedding.weight, dim=-1))
    assert torch.equal(quantize.nearest(z), distance.argmin(-1))


def test_codes_encode_to_themselves():
    model = vq()
    codebook = model.quantize.codebook()
    assert torch.equal(model.quantize.nearest(codebook * 3), torch.arange(48))


def test_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"\(13, 12\) pixels, expected multiples of 2"):
        vq().encode(torch.zeros(1, 3, 13, 12))


@pytest.mark.parametrize(
    ("channels", "parameters", "factor"),
    [((128, 128, 256, 256, 512), 71_883_403, 16), ((128, 256, 256, 512), 70_109_835, 8)],
)
def test_published_sizes(channels, parameters, factor):
    with torch.device("meta"):
        model = VQTokenizer(VQConfig(channels=channels))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.config.factor == factor
