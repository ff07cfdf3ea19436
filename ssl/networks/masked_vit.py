"""The networks of MAE: a Vision Transformer that sees some patches of a view, a small one that draws the others.

To a transformer the order of its tokens is nothing but their positions, so neither of the two is handed tokens in the
order of the image: the seen ones come first, and nothing is put back (He et al. 2022 unshuffle; the numbers are equal).
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from objcrop.errors import UsageError
from objcrop.extras import from_extra
from objcrop.ssl.networks.backbones import backbone, load_weights


def vision_transformer(arch: str, size: int, init: str | None = None) -> tuple[nn.Module, int]:
    """Make a Vision Transformer of timm as MAE begins with it.

    Linear layers, the patches' projection among them, are Xavier uniform, the CLS token is normal with deviation .02,
    positions are a sin-cos embedding that is not trained but kept with the weights.

    Args:
        arch: "timm/NAME".
        size: side of the views, pixels.
        init: as of `backbone`; positions are then those of the file.

    Returns:
        The network and its width.

    Raises:
        UsageError: it is none, or a view is no whole number of patches.
        ObjcropError: weights that cannot be read or are of another network.
    """
    network: Any
    network, width = backbone(arch, size)
    if not is_plain(network):
        raise UsageError(
            f"arch is '{arch}', but mae hides patches of a plain Vision Transformer with a CLS token: take "
            "timm/vit_base_patch16_224 or another of timm's."
        )
    side = network.patch_embed.patch_size[0]
    if size % side:
        below = max(size // side, 1) * side
        raise UsageError(
            f"size is {size}, but {arch} cuts views into patches of {side} px: take {below} or {below + side}."
        )
    network.apply(_xavier)
    project = network.patch_embed.proj.weight  # of a convolution, but as a linear layer of the patch
    bound = (6 / (width + project[0].numel())) ** 0.5
    nn.init.uniform_(project, -bound, bound)
    nn.init.normal_(network.cls_token, std=0.02)
    positions = sincos_positions(size // side, width)
    with torch.no_grad():
        network.pos_embed.zero_()
        network.pos_embed[0, -len(positions) :] = positions
    network.pos_embed.requires_grad_(False)
    if init is not None:
        load_weights(network, init)
    return network, width


def is_plain(network: nn.Module) -> bool:
    """Whether a network is a plain Vision Transformer of timm with a CLS token and positions."""
    timm = sys.modules.get("timm.models.vision_transformer")  # without it there is none of its networks
    return (
        timm is not None
        and type(network) is timm.VisionTransformer
        and network.global_pool == "token"
        and network.pos_embed is not None
    )


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos_positions(side: int, width: int) -> torch.Tensor:
    """Return where each of side × side patches lies, row by row, float32 (side², width).

    The first half of the channels tells the column, the second the row: [sin, cos] of it × 10000^(-2i / (width / 2)).
    """
    at = np.arange(side)[:, None] / 10000 ** (np.arange(width // 4) / (width / 4))
    waves = np.concatenate([np.sin(at), np.cos(at)], axis=1)
    column, row = np.tile(waves, (side, 1)), np.repeat(waves, side, axis=0)
    return torch.from_numpy(np.concatenate([column, row], axis=1).astype(np.float32))


def taken(patches: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Return these patches of each image: (N, L, D) by int64 (N, K) to (N, K, D)."""
    return patches.gather(1, which[..., None].expand(-1, -1, patches.shape[-1]))


def encode_seen(network: Any, views: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return the tokens that a Vision Transformer makes of some patches, after its last norm.

    Args:
        network: of timm.
        views: (N, 3, S, S).
        seen: int64 (N, K), numbers of patches, row by row.

    Returns:
        (N, 1 + K, width): the CLS token (and registers, where the network has some), then the patches.
    """
    tokens = network._pos_embed(network.patch_embed(views))
    first = network.num_prefix_tokens
    tokens = torch.cat([tokens[:, :first], taken(tokens[:, first:], seen)], dim=1)
    return network.norm(network.blocks(network.norm_pre(tokens)))


class Decoder(nn.Module):
    """Draws the patches that were not seen (He et al. 2022, section 3 and appendix A.1).

    Args:
        width: of the encoder's tokens.
        side: patches along a side.
        first: tokens of the encoder before its patches.
        pixels: numbers of a patch.
        dim: own width, a multiple of 32, the width of a head.
        depth: blocks.
    """

    positions: torch.Tensor

    def __init__(self, width: int, side: int, first: int, pixels: int, dim: int, depth: int) -> None:
        super().__init__()
        Block = from_extra("timm.models.vision_transformer").Block
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.first = first
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.register_buffer("positions", sincos_positions(side, dim), persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, dim // 32, 4.0, True, norm_layer=norm) for _ in range(depth)))
        self.norm = norm(dim)
        self.predict = nn.Linear(dim, pixels)
        self.apply(_xavier)

    def forward(self, tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Return pixels of the patches that were not seen.

        Args:
            tokens: (N, first + K, width) of the encoder.
            order: int64 (N, L), numbers of all patches, the K seen first.

        Returns:
            (N, L - K, pixels), patches as in `order`.
        """
        tokens = self.embed(tokens)
        hidden = order.shape[1] + self.first - tokens.shape[1]
        masks = self.mask_token.expand(len(tokens), hidden, -1)
        patches = torch.cat([tokens[:, self.first :], masks], dim=1) + self.positions[order]
        tokens = self.blocks(torch.cat([tokens[:, : self.first], patches], dim=1))
        return self.predict(self.norm(tokens[:, -hidden:]))
