"""The options of detection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from objcrop.option import option
from objcrop.option_value import flag, number, pair, whole, word
from objcrop.ssl.transfer.options import Transfer

MODELS = ("faster-rcnn-fpn", "mask-rcnn-fpn", "faster-rcnn-c4", "mask-rcnn-c4", "vitdet-mask", "vitdet-cascade")


SIDE = whole(32, 8192)


def _has_pyramid(at: DetectionOptions) -> str | None:
    return f"model '{at.model}' has no pyramid" if at.model.endswith("-c4") else None


def _by_sides(at: DetectionOptions) -> str | None:
    return None if at.scales is None else "images are resized by scales"


@dataclass(frozen=True)
class DetectionOptions(Transfer):
    """What is learnt of objects."""

    group: ClassVar[str] = "detection"

    backend: str = option("dali", word("dali"), "dali, on the CPU", flag="loader")
    batch_size: int = option(16, whole(1, 2**24), "the global batch, over all processes")
    model: str = option(
        "faster-rcnn-fpn",
        word(*MODELS),
        "faster-… finds boxes, mask-… masks too, on a feature pyramid (fpn) or with a ResNet's last stage as box head "
        "(c4); vitdet-… is Mask or Cascade R-CNN on a plain Vision Transformer, with masks",
    )
    sides: tuple[int, int] = option(
        (480, 800),
        pair(SIDE),
        "smallest and largest shorter side of an image to learn from, pixels, 32 apart",
        idle=_by_sides,
    )
    scales: tuple[float, float] | None = option(
        None,
        pair(number(0, 16, above=True)),
        "large-scale jitter in place of sides: smallest and largest scale of an image that fits into a square of "
        "longest, of which a random part of that size is shown; default: none",
    )
    test_side: int = option(800, SIDE, "shorter side of an image to be tested on, pixels")
    longest: int = option(1333, SIDE, "the most that a longer side may be, pixels")
    anchor: int = option(32, whole(1, 8192), "side of the smallest square anchor, pixels; the next are twice as large")
    regions: int = option(512, whole(1, 2**16), "proposals learnt from in each image")
    width: int = option(
        256,
        whole(8, 2**12),
        "channels of the pyramid and of the mask head; the box head has 4 × as many",
        idle=_has_pyramid,
    )
    negatives: bool = option(
        True, flag, "learn from images without objects too; false leaves them out, as Detectron2 does"
    )
