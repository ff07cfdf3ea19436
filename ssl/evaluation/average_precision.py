"""Average precision of multi-label scores, in the forms that the papers' numbers are given in.

- `average_precision`: after Veit et al. 2017, equation 4: the mean, over the positives of a class, of the precision at
  each positive's rank. OAC's mAP (its section 3.1).
- `average_precision_11_point`: of the VOC2007 challenge (Everingham et al. 2010, section 4.2): the mean, over recalls
  0, 0.1, …, 1, of the highest precision at that recall or beyond; an image in which every object of a class is marked
  difficult neither helps nor harms that class.

- `batchwise_map`: the first, of every 256 images for itself, averaged: what OAC's released code prints (main_lincls.py)
  and not the mAP of the set. A class seldom seen counts in those batches alone that show it, where few images stand
  above its own, so this reads some 10 points higher. Compare it with that code's numbers only.

All look at the order of the scores alone, never at their size. Images of equal score have one rank, that of the last
of them: where they stand in the catalog makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from objcrop.catalog import Catalog

IGNORED = -1
Whole = npt.NDArray[np.int64]


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
        scores: float (N, C); what is not a number comes last.
        labels: (N, C), 1 or 0; -1 is left out.
    """
    return _over_classes(_average, scores, labels)


def average_precision_11_point(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, list[float]]:
    """Return the same two by the 11-point rule; arguments as of `average_precision`."""
    return _over_classes(_eleven_points, scores, labels)


def batchwise_map(scores: torch.Tensor, labels: torch.Tensor, batch: int = 256) -> float:
    """Return the mean over batches, in the order of the rows, of `average_precision` over the classes of each.

    Every batch counts as many times as it has images, the short last one less. One that shows no class at all is left
    out; the released code makes NaN of the whole.

    Args:
        scores: float (N, C).
        labels: (N, C), 1 or 0.
        batch: images; a batch size of the released code, which the figure depends on.
    """
    parts = list(zip(scores.split(batch), labels.split(batch), strict=True))
    means = np.array([average_precision(*part)[0] for part in parts])
    images = np.array([len(part) for part, _ in parts])
    some = ~np.isnan(means)
    return float(np.average(means[some], weights=images[some])) if some.any() else float("nan")


def _over_classes(
    rule: Callable[[Whole, Whole], float], scores: torch.Tensor, labels: torch.Tensor
) -> tuple[float, list[float]]:
    per_class = []
    for score, label in zip(scores.double().T.numpy(), labels.T.numpy(), strict=True):
        judged = label != IGNORED
        found, looked_at = _found(score[judged], label[judged] == 1)
        per_class.append(rule(found, looked_at) if len(found) and found[-1] else float("nan"))
    return float(np.nanmean(per_class)) if not np.all(np.isnan(per_class)) else float("nan"), per_class


def _found(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> tuple[Whole, Whole]:
    """Return how many positives are found among the images down to each distinct score, and how many images those are.

    Args:
        scores: (n,).
        positive: (n,).

    Returns:
        int64 (distinct scores,) each, the best score first.
    """
    scores = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(scores[order][1:] != scores[order][:-1], True)) if len(order) else order
    return np.cumsum(positive[order], dtype=np.int64)[last], last + 1


def _average(found: Whole, looked_at: Whole) -> float:
    return float((np.diff(found, prepend=0) * (found / looked_at)).sum() / found[-1])


def _eleven_points(found: Whole, looked_at: Whole) -> float:
    return eleven_points(found, looked_at, int(found[-1]))


def eleven_points(found: Whole, looked_at: Whole, positives: int) -> float:
    """Return the mean, over recalls 0, 0.1, …, 1, of the highest precision at that recall or beyond; 0 beyond all.

    Args:
        found: (n,) positives found so far, never falling.
        looked_at: (n,) of so many; 0 where nothing counts yet.
        positives: how many there are.
    """
    precision = np.append(found / np.maximum(looked_at, 1), 0.0)
    # Recall r is reached once r × positives are found; in whole numbers, so that 0.1 × 10 is 1.
    needed = [-(-tenth * positives // 10) for tenth in range(11)]
    return float(np.mean([precision[np.searchsorted(found, n) :].max() for n in needed]))
