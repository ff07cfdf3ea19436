"""The momentum encoder: a copy of the encoder that follows it as an exponential moving average (He et al. 2020)."""

from __future__ import annotations

import copy

import torch
from torch import nn


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """Return a copy that takes no gradient."""
    twin = copy.deepcopy(encoder)
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


@torch.no_grad()
def follow(twin: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """Move every parameter of the twin: twin = momentum × twin + (1 - momentum) × encoder. Buffers stay its own."""
    theirs: list[torch.Tensor] = list(encoder.parameters())
    ours: list[torch.Tensor] = list(twin.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - momentum)
