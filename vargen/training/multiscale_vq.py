"""Training of `pocket-multiscale-vq`: as `vq.py`, with a loss on the features after every scale."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargen.tokenizers.multiscale_vq import MultiScaleVQTokenizer
from vargen.tokenizers.vq import VQTokenizer
from vargen.training.vq import VQTraining

COMMITMENT = 0.05


def initialise(tokenizer: MultiScaleVQTokenizer, source: VQTokenizer) -> None:
    """Take the convolutions of `source` that have the same shapes; smoothing starts by changing nothing."""
    ours = tokenizer.state_dict()
    same = {key: value for key, value in source.state_dict().items() if key in ours and ours[key].shape == value.shape}
    kept = {key: value for key, value in same.items() if key.startswith(("encoder.", "decoder."))}
    tokenizer.load_state_dict(ours | kept)
    for smoothing in tokenizer.quantize.smoothings:
        assert isinstance(smoothing, nn.Conv2d)
        nn.init.dirac_(smoothing.weight)
        assert smoothing.bias is not None
        nn.init.zeros_(smoothing.bias)


class MultiScaleTraining(VQTraining):
    """The tokenizer with the state that its training needs beside it."""

    def _quantise(self, z: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        quantiser = self.tokenizer.quantize
        rest, total, loss = z.detach(), torch.zeros_like(z), z.new_zeros(())
        ids, points = [], []
        for scale in range(len(quantiser.sides)):
            with torch.no_grad():
                points.append(quantiser.shrunk(rest, scale))
                ids.append(quantiser.nearest(points[-1]))
            added = quantiser.added(F.embedding(ids[-1], quantiser.codebook()), scale)
            rest, total = rest - added.detach(), total + added
            loss = loss + 0.25 * F.mse_loss(z, total.detach()) + F.mse_loss(total, z.detach())
        # Codes that are moved now are not yet those of this step: they serve from the next one on.
        self.count(torch.cat(ids, 1).flatten(), torch.cat(points, 1).flatten(0, 1), step, generator)
        return z + (total - z).detach(), COMMITMENT * z.shape[1] / len(quantiser.sides) * loss

    @torch.no_grad()
    def _start_codebook(self, z: Tensor, generator: torch.Generator) -> None:
        """Random points, as many of each scale, of what is missing there if all before were stored exactly."""
        quantiser, rest, points = self.tokenizer.quantize, z, []
        codes, scales = quantiser.embedding.num_embeddings, len(quantiser.sides)
        for scale in range(scales):
            found = quantiser.shrunk(rest, scale)
            rest = rest - quantiser.added(found, scale)
            flat = found.flatten(0, 1)
            wanted = codes * (scale + 1) // scales - codes * scale // scales
            points.append(flat[torch.randint(len(flat), (wanted,), generator=generator).to(z.device)])
        quantiser.embedding.weight.copy_(torch.cat(points))
        self.usage.fill_(1.0)
