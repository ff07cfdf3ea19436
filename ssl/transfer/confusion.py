"""The confusion matrix, of images and of pixels, and what semantic segmentation is judged by: mIoU, mAcc, aAcc.

Source: Long et al. 2015, section 5 ("mean IU", "mean accuracy", "pixel accuracy"); over the whole set, not by image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from objcrop.ssl.transfer.segmenter import IGNORED


def confusion_of(truth: torch.Tensor, found: torch.Tensor, classes: int) -> torch.Tensor:
    """Return how often each class (rows) was taken for each (columns), int64 (C, C), of class ids (N,)."""
    return torch.bincount(truth.long() * classes + found.long(), minlength=classes**2).view(classes, classes)


def confusion(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return how many pixels of each class (row) were taken for each (column), int64 (classes, classes).

    Matrices of batches and of ranks add up.

    Args:
        predicted: integers, class ids.
        labels: of the same shape, class ids or `IGNORED`.
        classes: how many.
    """
    known = labels != IGNORED
    return confusion_of(labels[known], predicted[known], classes)


def segmentation_scores(matrix: npt.ArrayLike, classes: Sequence[str]) -> dict[str, Any]:
    """Return the scores of a confusion matrix, shares from 0 to 1.

    A class that is neither labelled nor predicted counts in no mean, one that is not labelled in no mean accuracy.

    Args:
        matrix: (C, C), rows labelled, columns predicted.
        classes: C names.

    Returns:
        miou, mean_accuracy (of the classes), accuracy (of the pixels), and per_class, the IoU; None where undefined.
    """
    counts = np.asarray(matrix, np.float64)
    hits, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore"):
        iou, of_labelled = hits / (labelled + predicted - hits), hits / labelled
    total = float(counts.sum())
    return {
        "miou": _mean(iou),
        "mean_accuracy": _mean(of_labelled),
        "accuracy": float(hits.sum()) / total if total else None,
        "per_class": {name: None if math.isnan(one) else one for name, one in zip(classes, iou.tolist(), strict=True)},
    }


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
