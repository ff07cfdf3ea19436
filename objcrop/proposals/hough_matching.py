"""Probabilistic Hough matching (Cho, Kwak, Schmid and Ponce 2015, section 3): which boxes of two images agree.

A match of two boxes is likely where they look alike and where other matches say the same of where one image lies in
the other. Each match votes for such a place and size, with its likeness; it is worth its likeness times the votes.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from objcrop.extras import from_extra

Boxes = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32]
Parents = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]  # where each box's begin (p + 1,); which they are

PLACES = 2000  # bins of a plane twice as wide and high as the image
SIZES = 20  # bins of how many times larger, from 1/16 to 16, on a logarithmic scale
ASPECT = 2.0  # boxes whose aspects differ by more do not match
SMOOTHING = np.array([0.0644, 0.2447, 0.3818, 0.2447, 0.0644])  # of the bins along each axis
INSIDE = 0.8  # share of a box that lies in its parent


def confidence(likeness: Matrix, boxes: tuple[Boxes, Boxes], sizes: npt.NDArray[Any]) -> Matrix:
    """Return how likely each match of two images' boxes is, the sum of seeing one in the other and the reverse.

    Args:
        likeness: float32 (p, q) of the boxes' looks; those of 0 or less are no match.
        boxes: float32 (p, 4) and (q, 4), x0, y0, x1, y1 in pixels of their image.
        sizes: width and height of both images, (2, 2).

    Returns:
        float32 (p, q), 0 or more, divided by p · q so that images with many boxes do not count more.
    """
    alike = np.maximum(likeness, 0)
    there = _one_way(alike, boxes[0], boxes[1], sizes[0], sizes[1])
    back = _one_way(np.ascontiguousarray(alike.T), boxes[1], boxes[0], sizes[1], sizes[0])
    return (there + back.T) / np.float32(max(alike.size, 1))


def _one_way(alike: Matrix, boxes: Boxes, others: Boxes, size: npt.NDArray[Any], other: npt.NDArray[Any]) -> Matrix:
    cv2 = from_extra("cv2")

    cell = float(max(np.sqrt(4 * other[0] * other[1] / PLACES), 5))
    shape = (int(np.ceil(2 * other[1] / cell)), int(np.ceil(2 * other[0] / cell)), SIZES)
    votes, bins = _vote(alike, boxes, others, size / 2.0, other / 2.0, cell, *shape)
    # In float64, whose last digits float32 then drops: they depend on the processor and the number of threads.
    plane = votes.reshape(shape).astype(np.float64)
    plane = cv2.sepFilter2D(plane, -1, SMOOTHING, SMOOTHING, borderType=cv2.BORDER_CONSTANT)
    band = sum(weight * np.eye(SIZES, k=step) for step, weight in zip(range(-2, 3), SMOOTHING))
    smooth = np.append((plane.reshape(-1, SIZES) @ band).reshape(-1), 0).astype(np.float32)
    return alike * smooth[bins]


@numba.njit(nogil=True)
def _vote(alike, boxes, others, centre, margin, cell, rows, columns, sizes):  # type: ignore[no-untyped-def]
    """Return the votes of each bin (rows · columns · sizes,) and each match's bin (p, q), the last + 1 for none.

    The place that a match votes for is where the centre of the first image lies if its box becomes the other. Of the
    matches of one box in the same bin the best alone votes: proposals come in bunches.
    """
    none = rows * columns * sizes
    votes = np.zeros(none, np.float32)
    best = np.zeros(none + 1, np.float32)
    bins = np.full(alike.shape, none, np.int32)
    for k in range(len(boxes)):
        width, height = boxes[k, 2] - boxes[k, 0], boxes[k, 3] - boxes[k, 1]
        # The centre, in widths and heights from the box's corner.
        right, down = (centre[0] - boxes[k, 0]) / width, (centre[1] - boxes[k, 1]) / height
        for o in range(len(others)):
            wide, high = others[o, 2] - others[o, 0], others[o, 3] - others[o, 1]
            stretch = wide * height / (high * width)
            if alike[k, o] <= 0 or not 1 / ASPECT < stretch < ASPECT:
                continue
            x = int(np.floor((others[o, 0] + right * wide + margin[0]) / cell))
            y = int(np.floor((others[o, 1] + down * high + margin[1]) / cell))
            s = int(np.floor((np.log2(wide * high / (width * height)) + 4) * sizes / 8))
            if 0 <= x < columns and 0 <= y < rows and 0 <= s < sizes:
                at = (y * columns + x) * sizes + s
                bins[k, o] = at
                if alike[k, o] > best[at]:
                    votes[at] += alike[k, o] - best[at]
                    best[at] = alike[k, o]
        for o in range(len(others)):
            best[bins[k, o]] = 0
    return votes, bins


def parents(boxes: Boxes, smaller: float) -> npt.NDArray[np.bool_]:
    """Return which boxes hold which: (p, p), true where the row's box lies in the column's.

    Args:
        boxes: float32 (p, 4).
        smaller: the area of the box over that of its parent must be below this.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    low, high = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    common = np.maximum(high - low, 0).prod(2)
    return (area[:, None] < smaller * area) & (common > INSIDE * area[:, None])


def listed(of: npt.NDArray[np.bool_]) -> Parents:
    """Return the parents (p, p) as lists one after the other."""
    return np.append(0, of.sum(1).cumsum()).astype(np.int32), of.nonzero()[1].astype(np.int32)


@numba.njit(nogil=True)
def standout(matrix, first, second):  # type: ignore[no-untyped-def]
    """Return how far a match stands out from the matches around it (Cho et al., section 4; Vo et al., section 4).

    What a part and its surroundings have in common, the whole has too; what the background has, parts of it have not.

    Args:
        matrix: float32 (p, q) confidences.
        first: `listed` parents of the p boxes.
        second: of the q boxes.

    Returns:
        float32 (p, q): the confidence minus the highest of any match of parents of both, 0 where that is higher.
    """
    p, q = matrix.shape
    along = np.zeros((p, q), np.float32)  # the highest over the first box's parents
    for k in range(p):
        for at in range(first[0][k], first[0][k + 1]):
            along[k] = np.maximum(along[k], matrix[first[1][at]])
    columns = along.T.copy()
    highest = np.zeros((q, p), np.float32)  # and over the second's
    for k in range(q):
        for at in range(second[0][k], second[0][k + 1]):
            highest[k] = np.maximum(highest[k], columns[second[1][at]])
    return np.maximum(matrix - highest.T, 0)
