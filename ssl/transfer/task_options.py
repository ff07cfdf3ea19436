"""The options of each task by its name, for who looks them up: reading these imports no PyTorch."""

from __future__ import annotations

from objcrop.ssl.transfer.classification_options import ClassificationOptions
from objcrop.ssl.transfer.detection_options import DetectionOptions
from objcrop.ssl.transfer.options import Transfer
from objcrop.ssl.transfer.segmentation_options import SegmentationOptions

TASK_OPTIONS: dict[str, type[Transfer]] = {
    "classification": ClassificationOptions,
    "detection": DetectionOptions,
    "segmentation": SegmentationOptions,
}
