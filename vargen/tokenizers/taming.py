"""The convolutional autoencoder of taming-transformers (arXiv 2012.09841), in the midst of most image tokenizers.

It is diffusers' own; here is its assembly, and how the published files name its parts.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import Decoder, Encoder

# Our keys inside a block to those of every published file; how blocks are counted differs from family to family.
BLOCKS = (
    (r"(down|up)samplers\.0", r"\1sample"),
    (r"group_norm", "norm"),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def original(levels: int) -> tuple[tuple[str, str], ...]:
    """The renaming for files with the names of taming-transformers, which count the decoder's levels backwards."""
    return (
        *((rf"up_blocks\.{i}\.", f"up.{levels - 1 - i}.") for i in range(levels)),
        (r"down_blocks", "down"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"\.resnets\.", ".block."),
        (r"\.attentions\.", ".attn."),
        *BLOCKS,
    )


def autoencoder(
    channels: tuple[int, ...],
    *,
    layers: int,
    latent_channels: int,
    norm_groups: int,
    attends: bool = True,
    spatial: bool = False,
) -> "tuple[Encoder, Decoder]":
    """Encoder (B, 3, H, W) to (B, latent_channels, H / f, W / f) and decoder, f = 2^(levels - 1).

    `channels` are those of each level, with a 2x step between neighbours; `layers` the residual blocks of a level of
    the encoder, and one less than those of the decoder. The middle attends, and the coarsest level where it `attends`.
    With `spatial`, the decoder's norms are MoVQ's (arXiv 2209.09002), which take the codes as well.
    """
    from diffusers.models.autoencoders.vae import Decoder, Encoder  # slow to import

    last = len(channels) - 1
    down = tuple("AttnDownEncoderBlock2D" if attends and i == last else "DownEncoderBlock2D" for i in range(last + 1))
    up = tuple("AttnUpDecoderBlock2D" if attends and i == 0 else "UpDecoderBlock2D" for i in range(last + 1))
    shared = {"block_out_channels": channels, "layers_per_block": layers, "norm_num_groups": norm_groups}
    encoder = Encoder(3, latent_channels, down, double_z=False, **shared)
    return encoder, Decoder(latent_channels, 3, up, norm_type="spatial" if spatial else "group", **shared)
