"""Projection and prediction heads, one per role or one for all.

OAC 3: object crops and scene crops get different projection heads; the backbone is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn


def moco_head(width: int, hidden: int, dim: int) -> nn.Module:
    """Return MoCo-v2's MLP head: width, hidden, dim, no BatchNorm (Chen et al. 2020)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


def densecl_head(width: int, hidden: int, dim: int) -> nn.Module:
    """Return MoCo-v2's head as DenseCL begins it: Kaiming's variance over the inputs, no bias yet."""
    head = moco_head(width, hidden, dim)
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return head


def dense_head(channels: int, hidden: int, dim: int) -> nn.Module:
    """Return DenseCL's head for cells, MoCo-v2's as 1×1 convolutions: maps (N, channels, h, w) to (N, dim, h, w)."""
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, dim, 1))


def byol_head(width: int, hidden: int, dim: int) -> nn.Module:
    """Return BYOL's projector or predictor, and SwAV's: linear, BatchNorm, ReLU, linear (Grill et al. 2020, app. F).

    A bias before BatchNorm would do nothing.
    """
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
    )


def simclr_head(width: int, hidden: int, dim: int) -> nn.Module:
    """Return SimCLR's head: linear, BatchNorm, ReLU, linear, BatchNorm without a shift (Chen et al. 2020, as coded)."""
    last = nn.BatchNorm1d(dim)
    last.bias.requires_grad_(False)
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, dim, bias=False),
        last,
    )


def region_head(channels: int, width: int, pooled: int) -> nn.Module:
    """Return the head of an R-CNN as SoCo and Detectron2 have it: four 3×3 convolutions with BatchNorm, one linear.

    Args:
        channels: of the regions (N, channels, pooled, pooled).
        width: of the vector (N, width) that it makes.
        pooled: cells a side.
    """
    layers: list[nn.Module] = []
    for _ in range(4):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layers += convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    linear = nn.Linear(channels * pooled**2, width)
    return nn.Sequential(*layers, nn.Flatten(), linear, nn.ReLU(inplace=True))


class RoleHeads(nn.Module):
    """One head a role.

    All heads run on every input and the role's output is selected: a head that sat out a step would have no gradient,
    and DistributedDataParallel would wait for it for ever.

    Args:
        roles: the roles of the views, "object" or "scene"; repeats share a head.
        shared: one head for all roles.
        make: makes one head.
    """

    def __init__(self, roles: Sequence[str], shared: bool, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        names = ["all"] if shared else sorted(set(roles))
        self.shared = shared or len(names) == 1
        self.heads = nn.ModuleDict({name: make() for name in names})

    def forward(self, features: torch.Tensor, role: str) -> torch.Tensor:
        """Return this role's output, (N, dim) of features (N, width), or whatever one head makes of what it takes."""
        if self.shared:
            return next(iter(self.heads.values()))(features)
        outputs = {name: head(features) for name, head in self.heads.items()}
        idle = sum(out.sum() for name, out in outputs.items() if name != role)
        return outputs[role] + 0.0 * idle
