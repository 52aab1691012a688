"""A head that drafts for a raster model from its own states, as EAGLE does (arXiv 2401.15077).

One decoder layer over the model's last hidden states and the embeddings of the next tokens. It predicts the state of
each token, which the model's own output head turns into a law; embedding and output head are the model's. Both inputs
are normalised, since states grow from layer to layer. The condition reaches the head through the states alone.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vargen.core.types import Block, KVCache
from vargen.models.llama import LlamaGenConfig, RMSNorm, Step, Trunk


class EagleHead(Trunk):
    """Predicts the state of a slot from the token that stands there and the state of the token before it."""

    def __init__(self, config: LlamaGenConfig) -> None:
        """For a model of shape `config`."""
        super().__init__(replace(config, layers=1), layers=1, front=0)
        self.token_norm = RMSNorm(config.width, config.norm_eps)
        self.state_norm = RMSNorm(config.width, config.norm_eps)
        self.fuse = nn.Linear(2 * config.width, config.width, bias=False)

    def decode(self, tokens: Tensor, states: Tensor, block: Block, cache: KVCache) -> Tensor:
        """Predicted states (R, n, d) of a block, from its embedded `tokens` and the `states` before them, (R, n, d)."""
        return self.run(self._fused(tokens, states), block, cache)

    def forward(self, tokens: Tensor, states: Tensor, step: Step) -> Tensor:
        """As `decode`, with the positions, mask and cache of `step`."""
        return self.through(self._fused(tokens, states), step)

    def _fused(self, tokens: Tensor, states: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.token_norm(tokens), self.state_norm(states)], dim=-1))
