"""The options of BYOL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from objcrop.ssl.training.recipe import JointEmbedding, Recipe


@dataclass(frozen=True)
class BYOLRecipe(Recipe, JointEmbedding):
    """The options of BYOL, and what its paper trains with (appendix A and table 6)."""

    own_defaults: ClassVar[Mapping[str, Any]] = {
        "augment": "byol",
        "scale": (0.08, 1.0),
        "optimiser": "lars",
        "base_lr": 0.2,
        "weight_decay": 1.5e-6,
        "warmup_epochs": 10.0,
        "dim": 256,
        "ema": 0.996,
    }
