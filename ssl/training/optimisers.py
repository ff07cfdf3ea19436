"""Optimisers by name."""

from __future__ import annotations

from typing import Any

import torch

from objcrop.ssl.training.larc import LARC
from objcrop.ssl.training.lars import LARS
from objcrop.ssl.training.options import Training


def optimiser_of(recipe: Training, groups: list[dict[str, Any]], rate: float, *, fused: bool) -> torch.optim.Optimizer:
    """Return the optimiser that a recipe asks for.

    Args:
        recipe: optimiser, momentum, betas, weight_decay.
        groups: of parameters, as torch's optimisers take them.
        rate: the learning rate to begin with.
        fused: one kernel for all tensors, on a GPU.
    """
    decay: dict[str, Any] = {"weight_decay": recipe.weight_decay}
    match recipe.optimiser:
        case "lars":
            return LARS(groups, rate, recipe.momentum, **decay)
        case "larc":
            return LARC(groups, rate, recipe.momentum, **decay)
        case "adam":
            return torch.optim.Adam(groups, rate, betas=recipe.betas, fused=fused, **decay)
        case "adamw":
            return torch.optim.AdamW(groups, rate, betas=recipe.betas, fused=fused, **decay)
        case _:
            return torch.optim.SGD(groups, rate, momentum=recipe.momentum, fused=fused, **decay)
