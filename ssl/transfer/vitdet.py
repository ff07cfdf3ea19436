"""ViTDet (Li et al. 2022): Mask and Cascade R-CNN on a plain Vision Transformer and a simple feature pyramid.

Attention sees windows of 14 × 14 patches, in four blocks that are spread evenly the whole image (section 3); it has
relative positions in both directions (appendix A.2). The pyramid is made of the last map alone.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import Conv2dNormActivation

from objcrop.errors import UsageError
from objcrop.extras import from_extra
from objcrop.ssl.networks.masked_vit import is_plain
from objcrop.ssl.transfer.cascade_heads import WEIGHTS, CascadeHeads
from objcrop.ssl.transfer.origin import Origin
from objcrop.ssl.transfer.proposal_network import ProposalNetwork, Proposed
from objcrop.ssl.transfer.rcnn import DETECTRON2, RCNN
from objcrop.ssl.transfer.region_heads import BoxPredictor, MaskPredictor, RegionHeads

WINDOW = 14  # patches along a side
DROP_PATH = 0.1  # of the last block, less before; ViT-B's, as the next
LAYER_DECAY = 0.7  # of the rate from a block to the one before
NORM: Any = partial(LayerNorm2d, eps=1e-6)


class RelativePositions(nn.Module):
    """Adds to attention what queries find in tables of the distance to each key, down and across (MViTv2, eq. 4).

    Args:
        side: patches along a side that the tables, (2 × side - 1, head width) each, are made for; they begin at zero
            and are interpolated for others.
        width: of a head.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(2 * side - 1, width))
        self.across = nn.Parameter(torch.zeros(2 * side - 1, width))

    def forward(self, queries: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return the bias (B, heads, h × w, h × w) of queries (B, heads, h × w, width) of a map of this size."""
        high, wide = size
        queries = queries.unflatten(2, size)
        down = torch.einsum("bnhwc,hkc->bnhwk", queries, _of_distances(self.down, high))
        across = torch.einsum("bnhwc,wkc->bnhwk", queries, _of_distances(self.across, wide))
        bias = down[..., :, None] + across[..., None, :]
        return bias.flatten(4).flatten(2, 3)


def _of_distances(table: torch.Tensor, side: int) -> torch.Tensor:
    """Return the rows of a table, interpolated to this side, for each query and key, (side, side, width)."""
    if len(table) != 2 * side - 1:
        table = F.interpolate(table.T[None], 2 * side - 1, mode="linear")[0].T
    at = torch.arange(side, device=table.device)
    return table[at[:, None] - at[None] + side - 1]


class ViTDetBackbone(nn.Module):
    """A Vision Transformer and its pyramid, "0" to "3", and "pool", each half as wide as the one before.

    Args:
        origin: the network, which is changed in place: its CLS token and last norm are no longer learnt.
        width: channels of the pyramid.
        longest: the longest side of images, pixels.

    Attributes:
        strides: pixels to a cell of each level.

    Raises:
        UsageError: it is no plain Vision Transformer with a CLS token and patches of 16 pixels.
    """

    def __init__(self, origin: Origin, width: int, longest: int) -> None:
        super().__init__()
        network: Any = origin.network
        if not is_plain(network) or network.patch_embed.patch_size != (16, 16):
            raise UsageError(
                f"arch is '{origin.arch}', but vitdet takes a plain Vision Transformer with patches of 16 pixels: take "
                "timm/vit_base_patch16_224, or a model for ResNets."
            )
        DropPath = from_extra("timm.layers").DropPath
        self.body = network
        network.norm.requires_grad_(False)
        network.cls_token.requires_grad_(False)
        network.pos_embed.requires_grad_(True)
        depth, dim = len(network.blocks), network.embed_dim
        self.whole = {(quarter + 1) * depth // 4 - 1 for quarter in range(4)}
        for i, block in enumerate(network.blocks):
            if i:
                block.drop_path1, block.drop_path2 = (DropPath(DROP_PATH * i / (depth - 1)) for _ in range(2))
        sides = [-(-longest // 16) if i in self.whole else WINDOW for i in range(depth)]
        head = dim // network.blocks[0].attn.num_heads
        self.positions = nn.ModuleList(RelativePositions(side, head) for side in sides)
        finest = (
            nn.ConvTranspose2d(dim, dim // 2, 2, 2),
            NORM(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2),
        )
        scales = (
            (finest, dim // 4),
            ((nn.ConvTranspose2d(dim, dim // 2, 2, 2),), dim // 2),
            ((), dim),
            ((nn.MaxPool2d(2),), dim),
        )
        self.pyramid = nn.ModuleList(
            nn.Sequential(*layers, _convolution(channels, width, 1), _convolution(width, width, 3))
            for layers, channels in scales
        )
        self.strides = [4, 8, 16, 32, 64]

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Return the pyramid of images (N, 3, H, W), whose sides are multiples of 32."""
        body = self.body
        x = body.patch_embed.norm(body.patch_embed.proj(images).permute(0, 2, 3, 1))
        x = body.norm_pre(x + self._where(x.shape[1], x.shape[2]))
        for i, block in enumerate(body.blocks):
            x = self._block(block, self.positions[i], x, None if i in self.whole else WINDOW)
        last = x.permute(0, 3, 1, 2)
        maps = [level(last).float() for level in self.pyramid]
        names = ("0", "1", "2", "3", "pool")
        return OrderedDict(zip(names, (*maps, F.max_pool2d(maps[-1], 1, 2)), strict=True))

    def _where(self, high: int, wide: int) -> torch.Tensor:
        """Return the positions of so many patches, (1, high, wide, C), interpolated from those of pretraining."""
        known = self.body.pos_embed[:, -self.body.patch_embed.num_patches :]
        grid = known.unflatten(1, self.body.patch_embed.grid_size).permute(0, 3, 1, 2)
        return F.interpolate(grid, (high, wide), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)

    @staticmethod
    def _block(block: Any, positions: nn.Module, x: torch.Tensor, window: int | None) -> torch.Tensor:
        """Return a block's output of a map (N, h, w, C), its attention in windows, padded with zeros, or whole."""
        n, high, wide, _ = x.shape
        normed = block.norm1(x)
        if window is None:
            seen = _attention(block.attn, positions, normed)
        else:
            padded = F.pad(normed, (0, 0, 0, -wide % window, 0, -high % window))
            rows, columns = padded.shape[1] // window, padded.shape[2] // window
            tiles = padded.unflatten(1, (rows, window)).unflatten(3, (columns, window)).transpose(2, 3)
            seen = _attention(block.attn, positions, tiles.flatten(0, 2))
            seen = seen.unflatten(0, (n, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :high, :wide]
        x = x + block.drop_path1(block.ls1(seen))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _convolution(channels: int, width: int, kernel: int) -> nn.Module:
    return Conv2dNormActivation(channels, width, kernel, norm_layer=NORM, activation_layer=None)


def _attention(attention: Any, positions: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return timm's attention over a map (B, h, w, C) with relative positions."""
    size = (x.shape[1], x.shape[2])
    x = attention.qkv(x.flatten(1, 2)).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    queries, keys, values = attention.q_norm(x[0]), attention.k_norm(x[1]), x[2]
    bias = positions(queries, size).to(queries.dtype)
    seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    return attention.proj(seen.transpose(1, 2).flatten(2)).unflatten(1, size)


def vitdet_detector(
    origin: Origin, classes: int, *, cascade: bool, anchor: int, regions: int, width: int, longest: int
) -> RCNN:
    """Return ViTDet with Mask R-CNN's heads, or Cascade R-CNN's with masks.

    Args:
        origin: a Vision Transformer.
        classes: how many, the background not among them.
        cascade: whether three box heads stand in a row.
        anchor: of the finest level, the square root of its area in pixels; twice as much on each level.
        regions: learnt from in each image.
        width: channels of pyramid and heads, a quarter of those of the box head's last layer.
        longest: the longest side of images, pixels.
    """
    backbone = ViTDetBackbone(origin, width, longest)
    anchors = DETECTRON2.anchors([[anchor << level] for level in range(5)], backbone.strides)
    rpn = ProposalNetwork(anchors, width, Proposed(2000, 1000, 1000, 1000), DETECTRON2.beta, convolutions=2)
    levels = backbone.strides[:4]
    masks = (
        DETECTRON2.pool(14, levels),
        MaskRCNNHeads(width, (width,) * 4, 1, norm_layer=NORM),
        MaskPredictor(width, classes + 1),
    )
    how: Any = {"regions": regions, "beta": DETECTRON2.beta, "aligned": DETECTRON2.aligned}
    box_heads = [_box_head(width) for _ in (WEIGHTS if cascade else "1")]
    predictors = [BoxPredictor(4 * width, classes + 1, one_box=cascade) for _ in box_heads]
    pool = DETECTRON2.pool(7, levels)
    if cascade:
        return RCNN(backbone, rpn, CascadeHeads(pool, box_heads, predictors, *masks, **how))
    return RCNN(backbone, rpn, RegionHeads(pool, box_heads[0], predictors[0], *masks, **how))


def _box_head(width: int) -> nn.Module:
    """Return four convolutions and a linear layer, with LayerNorm after the first four."""
    head = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [4 * width], norm_layer=NORM)
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
    return head


def layer_scale(name: str, depth: int) -> float:
    """Return the share of the rate that a weight of the backbone, by its name in `RCNN`, learns with (ViTDet A.2)."""
    if name.startswith("backbone.body.blocks."):
        return LAYER_DECAY ** (depth - int(name.split(".")[3]))
    return LAYER_DECAY ** (depth + 1) if name.startswith("backbone.body.") else 1.0
