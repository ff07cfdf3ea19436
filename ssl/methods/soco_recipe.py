"""The options of SoCo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from objcrop.option import option
from objcrop.option_value import number, whole
from objcrop.ssl.training.recipe import MLPHead, MomentumEncoder, Recipe


@dataclass(frozen=True)
class SoCoRecipe(Recipe, MLPHead, MomentumEncoder):
    """The options of SoCo, and what hologerry/SoCo trains it with (tools/SoCo_FPN_100ep.sh)."""

    in_parts: ClassVar[bool] = False  # a step's boxes are looked up together
    own_defaults: ClassVar[Mapping[str, Any]] = {
        "crops": "soco",
        "scale": (0.5, 1.0),
        "optimiser": "lars",
        "base_lr": 1.0,
        "weight_decay": 1e-5,
        "warmup_epochs": 10.0,
        "warmup_lr": 0.01,
        "epochs": 100,
        "dim": 256,
        "ema": 0.99,
    }

    shared_boxes: int = option(4, whole(1, 1024), "boxes of an image that two views are compared by")
    box_jitter: float = option(0.1, number(0, 0.5), "largest move and change of a box in the first view, share of it")
    cutout: float = option(0.5, number(0, 1), "how often a square is cut out of a box in the other views")
    pyramid_width: int = option(256, whole(1, 65536), "channels of the feature pyramid and of the regions' head")
    region_width: int = option(1024, whole(1, 65536), "width of what the regions' head hands to the projection")
