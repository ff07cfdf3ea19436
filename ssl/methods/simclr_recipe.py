"""The options of SimCLR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from objcrop.ssl.training.recipe import MLPHead, Recipe, Temperature


@dataclass(frozen=True)
class SimCLRRecipe(Recipe, MLPHead, Temperature):
    """The options of SimCLR, and what its paper trains with (section 2.2 and appendix A)."""

    in_parts: ClassVar[bool] = False
    own_defaults: ClassVar[Mapping[str, Any]] = {
        "augment": "simclr",
        "scale": (0.08, 1.0),
        "optimiser": "lars",
        "base_lr": 0.3,
        "weight_decay": 1e-6,
        "warmup_epochs": 10.0,
        "temperature": 0.1,
    }
