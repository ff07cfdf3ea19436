"""The options of CMC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD, augment_recipe
from objcrop.errors import UsageError, shown
from objcrop.option import option
from objcrop.option_value import whole, word
from objcrop.ssl.training.recipe import Embedding, Recipe, Temperature


@dataclass(frozen=True)
class CMCRecipe(Recipe, Embedding, Temperature):
    """The options of CMC, and what its code trains a ResNet-50 with."""

    in_parts: ClassVar[bool] = False
    own_defaults: ClassVar[Mapping[str, Any]] = {
        "arch": "lab/resnet50",
        "crops": "scene",
        "augment": "flip",
        "scale": (0.08, 1.0),
        "batch_size": 128,
        "epochs": 240,
        "base_lr": 0.06,
        "temperature": 0.07,
    }

    negatives: int = option(16384, whole(1, 2**18), "K, drawn for each sample")
    loss: str = option("nce", word("nce", "softmax"), "nce, or softmax: InfoNCE over the same samples")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.arch.startswith("lab/"):
            raise UsageError(
                f"arch is {shown(self.arch)}, but {self.method} sees lightness and colour: take lab/NAME of a ResNet."
            )
        views = self.policy.views
        for view, of_recipe in zip(views, augment_recipe(self.augment, len(views))):
            augment = view.augment or of_recipe
            if (augment.mean, augment.std) != (IMAGENET_MEAN, IMAGENET_STD):
                raise UsageError(
                    f"augment is {shown(self.augment)}, but {self.method} goes back to colours from views normalised "
                    "by ImageNet's mean and deviation: take flip."
                )
