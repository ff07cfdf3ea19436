"""The options of classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from objcrop.option import option
from objcrop.option_value import flag, number, pair, whole
from objcrop.ssl.transfer.options import Transfer


@dataclass(frozen=True)
class ClassificationOptions(Transfer):
    """What is learnt of labels."""

    group: ClassVar[str] = "classification"

    size: int | None = option(None, whole(8, 8192), "side of the views, pixels; default: the checkpoint's")
    scale: tuple[float, float] = option(
        (0.08, 1.0), pair(number(0, 1, above=True)), "smallest and largest crop as shares of the image"
    )
    freeze: bool = option(False, flag, "leave the backbone as it is, its BatchNorm too, and learn the classifier alone")
    single_label: bool | None = option(
        None, flag, "each image has one class; default: where that is so of all images to learn from"
    )
