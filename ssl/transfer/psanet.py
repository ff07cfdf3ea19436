"""PSANet: point-wise spatial attention (Zhao et al. 2018, sections 3.1 to 3.4), which CIB's Table 6 segments with.

Each position i of an h×w map predicts a weight for every offset to another position, (2h - 1)(2w - 1) of them, of which
h·w fall inside the map from where it stands ("over-completed" maps, section 3.3). Two branches: what i *collects* from
j is weighted by i's own prediction for j - i, what j *distributes* to i by j's prediction for i - j.

As in the authors' code: maps are halved before, weights are a softmax over all j in both branches, and what comes out
is brought back and set beside the map it came from.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from objcrop.errors import UsageError
from objcrop.ssl.transfer.fcn import convolution

SHRINK = 2


class PointwiseSpatialAttention(nn.Module):
    """From a map (N, C, h, w) to (N, 2C, h, w): itself, and what each position collects and is sent.

    Args:
        channels: of the map.
        width: of the branches.
        largest: height and width of the largest map that it will see, cells.
    """

    def __init__(self, channels: int, width: int, largest: tuple[int, int]) -> None:
        super().__init__()
        self.largest = tuple(shrunk(side) for side in largest)
        offsets = (2 * self.largest[0] - 1) * (2 * self.largest[1] - 1)
        self.reduce, self.attention = _branch(channels, width, offsets)
        self.reduce_p, self.attention_p = _branch(channels, width, offsets)
        self.proj = nn.Sequential(*convolution(2 * width, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Collect and distribute over all positions.

        Raises:
            UsageError: the map is larger than the largest that weights were made for.
        """
        size = tuple(shrunk(side) for side in x.shape[-2:])
        if size[0] > self.largest[0] or size[1] > self.largest[1]:
            raise UsageError(
                f"a map of {x.shape[-1]}×{x.shape[-2]} cells is larger than those that PSANet was made for; give it "
                "windows of the size of its crops."
            )
        collecting = F.interpolate(self.reduce(x), size, mode="bilinear", align_corners=True)
        sending = F.interpolate(self.reduce_p(x), size, mode="bilinear", align_corners=True)
        collected = collect(collecting, self.attention(collecting), self.largest)
        received = distribute(sending, self.attention_p(sending), self.largest)
        out = self.proj(torch.cat([collected, received], 1))
        return torch.cat([x, F.interpolate(out, x.shape[-2:], mode="bilinear", align_corners=True)], 1)


def collect(x: torch.Tensor, weights: torch.Tensor, largest: tuple[int, ...]) -> torch.Tensor:
    """Return at each position i the mean of x over all j, weighted by the softmax over j of i's weight for j - i.

    Args:
        x: (N, C, h, w).
        weights: (N, (2H - 1)(2W - 1), h, w), row by row of the offsets from -(H - 1), -(W - 1) on.
        largest: H and W, at least h and w.
    """
    flat = weights.flatten(2).transpose(1, 2)  # of position i, by offset
    at = _offsets(x.shape[-2:], largest, x.device).expand(len(x), -1, -1)
    share = flat.gather(2, at).softmax(2)  # (N, i, j)
    return torch.einsum("nij,ncj->nci", share, x.flatten(2)).view_as(x)


def distribute(x: torch.Tensor, weights: torch.Tensor, largest: tuple[int, ...]) -> torch.Tensor:
    """Return at each position i the mean of x over all j, weighted by the softmax over j of j's weight for i - j.

    Arguments as of `collect`.
    """
    flat = weights.flatten(2).transpose(1, 2)
    at = _offsets(x.shape[-2:], largest, x.device).expand(len(x), -1, -1)
    share = flat.gather(2, at).softmax(1)  # (N, j, i)
    return torch.einsum("nji,ncj->nci", share, x.flatten(2)).view_as(x)


def _offsets(size: tuple[int, ...], largest: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return which of the weights is for the way from each position to each other one, int64 (1, h·w, h·w)."""
    y, x = (torch.arange(side, device=device) for side in size)
    down = y[None, :] - y[:, None] + largest[0] - 1
    across = x[None, :] - x[:, None] + largest[1] - 1
    number = down[:, None, :, None] * (2 * largest[1] - 1) + across[None, :, None, :]
    return number.reshape(1, len(y) * len(x), len(y) * len(x))


def shrunk(side: int) -> int:
    """Return the side of a map that was halved so that its corners stay."""
    return (side - 1) // SHRINK + 1


def _branch(channels: int, width: int, offsets: int) -> tuple[nn.Sequential, nn.Sequential]:
    weights = nn.Sequential(*convolution(width, width), nn.Conv2d(width, offsets, 1, bias=False))
    return nn.Sequential(*convolution(channels, width)), weights


def psanet_head(channels: int, classes: int, largest: tuple[int, int]) -> nn.Sequential:
    """Return the head, from a map (N, channels, h, w) to logits (N, classes, h, w); `largest` as above."""
    width = channels // 4
    return nn.Sequential(
        PointwiseSpatialAttention(channels, width, largest),
        *convolution(2 * channels, width, 3),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, classes, 1),
    )
