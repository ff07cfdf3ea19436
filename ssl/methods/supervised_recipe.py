"""The options of training on labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from objcrop.ssl.training.recipe import Recipe


@dataclass(frozen=True)
class SupervisedRecipe(Recipe):
    """One crop an image and its mirror image, as networks are trained on labels (He et al. 2016, torchvision)."""

    learns_labels: ClassVar[bool] = True
    own_defaults: ClassVar[Mapping[str, Any]] = {
        "crops": "scene",
        "augment": "flip",
        "scale": (0.08, 1.0),
        "optimiser": "adam",
        "base_lr": 1e-3,
        "weight_decay": 0.0,
    }
