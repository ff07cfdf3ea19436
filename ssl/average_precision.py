"""Average precision of multi-label scores, in the two forms that the papers' numbers are given in.

- `average_precision`: after Veit et al. 2017, equation 4: the mean, over the positives of a class, of the precision at
  each positive's rank. OAC's mAP (its section 3.1).
- `average_precision_11_point`: of the VOC2007 challenge (Everingham et al. 2010, section 4.2): the mean, over recalls
  0, 0.1, …, 1, of the highest precision at that recall or beyond; an image in which every object of a class is marked
  difficult neither helps nor harms that class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from objcrop.catalog import Catalog

IGNORED = -1


def judged_labels(catalog: Catalog, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """Return 1 where an image has a class, 0 where not, -1 where only difficult objects show it; int8 (n, C)."""
    labels = catalog.label_matrix(rows).astype(np.int8)
    truth = catalog.all_annotations()
    if not truth.difficult.any():
        return labels
    row_of_box = np.repeat(np.arange(len(catalog)), np.diff(catalog.box_offsets))
    hard, easy = (np.zeros((len(catalog), len(catalog.classes)), bool) for _ in range(2))
    hard[row_of_box[truth.difficult], truth.classes[truth.difficult]] = True
    easy[row_of_box[~truth.difficult], truth.classes[~truth.difficult]] = True
    labels[(hard & ~easy)[rows]] = IGNORED
    return labels


def average_precision(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, list[float]]:
    """Return the mean over the classes that occur, and each class's average precision (NaN where none occurs).

    Args:
        scores: float (N, C).
        labels: (N, C), 1 or 0; -1 is left out.
    """
    from torchmetrics.functional.classification import binary_average_precision

    present = (labels == 1).any(0)
    per_class = torch.full((labels.shape[1],), torch.nan)
    for c in present.nonzero().flatten().tolist():
        per_class[c] = float(binary_average_precision(scores[:, c], labels[:, c].int(), ignore_index=IGNORED))
    return float(per_class[present].mean()), per_class.tolist()


def average_precision_11_point(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, list[float]]:
    """Return the same two by the 11-point rule; arguments as of `average_precision`."""
    per_class = [_eleven_points(*each) for each in zip(scores.T.numpy(), labels.T.numpy())]
    return float(np.nanmean(per_class)) if not np.all(np.isnan(per_class)) else float("nan"), per_class


def _eleven_points(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> float:
    judged = labels != IGNORED
    hit = labels[judged][np.argsort(-scores[judged], kind="stable")] == 1
    if not hit.any():
        return float("nan")
    found = np.cumsum(hit)
    precision = found / np.arange(1, len(hit) + 1)
    # Recall r is reached once r × positives are found; in whole numbers, so that 0.1 × 10 is 1.
    needed = [-(-tenth * found[-1] // 10) for tenth in range(11)]
    return float(np.mean([precision[np.searchsorted(found, n) :].max() if n else precision.max() for n in needed]))
