"""Multi-crop: local views beside the two large ones (Caron et al. 2020, SwAV, section 3.3).

Local views of one size and role go through a network in one batch, as in SwAV; BatchNorm's statistics are over them
all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from objcrop.ssl.methods.method import Encoder
from objcrop.ssl.networks.shuffle_bn import VirtualDevices

LARGE = 2  # views before the local ones


def local_groups(views: Sequence[torch.Tensor], roles: Sequence[str]) -> list[tuple[list[torch.Tensor], str]]:
    """Return the local views, those of one size and role together, and the role of each group.

    Args:
        views: (N, 3, S, S) each, the large ones first.
        roles: of the views.
    """
    groups: dict[tuple[int, str], list[torch.Tensor]] = {}
    for view, role in zip(views[LARGE:], roles[LARGE:]):
        groups.setdefault((view.shape[-1], role), []).append(view)
    return [(group, role) for (_, role), group in groups.items()]


def embed_together(
    devices: VirtualDevices, encoder: Encoder, views: Sequence[torch.Tensor], role: str
) -> tuple[torch.Tensor, ...]:
    """Return the unnormalised embeddings (N, dim) of views of one size and role, which go through in one batch."""
    return devices.together(encoder.heads, devices.together(encoder.backbone, views), role)
