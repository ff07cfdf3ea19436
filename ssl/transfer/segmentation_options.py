"""The options of segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from objcrop.option import option
from objcrop.option_value import flag, number, pair, whole, word
from objcrop.ssl.transfer.options import Transfer


@dataclass(frozen=True)
class SegmentationOptions(Transfer):
    """What is learnt of pixels."""

    group: ClassVar[str] = "segmentation"

    backend: str = option(
        "dali", word("dali", "torch"), "dali, on the CPU, or torch for PIL in worker processes", flag="loader"
    )
    head: str = option(
        "fcn",
        word("fcn", "fcn-moco", "pspnet", "psanet"),
        "fcn is torchvision's; fcn-moco has two dilated convolutions and maps of stride 16, not 8 (He et al. 2020)",
    )
    aux_weight: float = option(0.4, number(0, 10), "of a second head's loss, on the last map but one; 0 for none")
    crop: tuple[int, int] = option((512, 1024), pair(whole(16, 8192)), "height and width of the crops, pixels")
    scales: tuple[float, float] = option(
        (0.5, 2.0), pair(number(0, 16, above=True)), "smallest and largest scale of an image before it is cropped"
    )
    jitter: bool = option(False, flag, "jitter brightness, contrast, saturation and hue of half of the crops")
    background: bool = option(False, flag, "pixels of no mask are a class of their own; false leaves them out")
    test_by: str = option("whole", word("whole", "windows"), "whole images, or windows of the crop's size")
