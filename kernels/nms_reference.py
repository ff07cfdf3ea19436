"""Greedy non-maximum suppression of one image in plain loops: the naive NumPy twin of nms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _area(x0: int, y0: int, x1: int, y1: int) -> int:
    return max(x1 - x0, 0) * max(y1 - y0, 0)


def nms_topk_reference(
    scores: NDArray[np.float32], boxes: NDArray[np.int32], k: int, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sort by score, then keep every box that no kept one overlaps by more than the threshold, until there are k.

    Args:
        scores: float32 (n,); below 0 is no candidate.
        boxes: int32 (n, 4): x0, y0, x1, y1, half-open.
        k: boxes to keep.
        threshold: of intersection over union.

    Returns:
        keep: int64 (k,), -1 where no box is left.
        scores: float32 (k,), likewise.
    """
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if len(kept) == k or not scores[i] >= 0:
            break
        x0, y0, x1, y1 = boxes[i].tolist()
        for j in kept:
            u0, v0, u1, v1 = boxes[j].tolist()
            both = _area(max(x0, u0), max(y0, v0), min(x1, u1), min(y1, v1))
            if both > 0 and both > threshold * (_area(x0, y0, x1, y1) + _area(u0, v0, u1, v1) - both):
                break
        else:
            kept.append(i)
    keep, kept_scores = np.full(k, -1, np.int64), np.full(k, -1, np.float32)
    keep[: len(kept)], kept_scores[: len(kept)] = kept, scores[kept]
    return keep, kept_scores
