"""Anchor scores as Coarse Is Better, section 3.3, says them: upsample the whole map, take the mean inside each box.

The naive NumPy twin of anchor_score; it shares no code with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def anchor_boxes_reference(
    map_size: tuple[int, int], image_size: tuple[int, int], shapes: Sequence[Sequence[float]] | NDArray[np.float32]
) -> NDArray[np.int32]:
    """Return every anchor of an image, in exact arithmetic.

    Args:
        map_size: height and width of the score map.
        image_size: width and height of the image in pixels.
        shapes: (K, 2): width and height in pixels.

    Returns:
        int32 (K × h × w, 4): x0, y0, x1, y1, edges rounded half up, half-open, clipped to the image.
    """

    def edge(cell: int, cells: int, pixels: int, offset: Fraction) -> int:
        centre = Fraction(2 * cell + 1, 2 * cells) * pixels
        return min(max(math.floor(centre + offset + Fraction(1, 2)), 0), pixels)

    (h, w), (width, height) = map_size, image_size
    boxes = []
    for side_x, side_y in shapes:
        half_x, half_y = Fraction(float(side_x)) / 2, Fraction(float(side_y)) / 2
        for i in range(h):
            for j in range(w):
                x0, x1 = edge(j, w, width, -half_x), edge(j, w, width, half_x)
                y0, y1 = edge(i, h, height, -half_y), edge(i, h, height, half_y)
                boxes.append((x0, y0, x1, y1))
    return np.array(boxes, np.int32).reshape(-1, 4)


def normalise_map_reference(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stretch one map (h, w) to 0..1; a constant map becomes zeros."""
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)


def upsample_reference(scores: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float64]:
    """Upsample one map (h, w) bilinearly to (height, width) of the image, half-pixel centres, borders repeated."""
    h, w = scores.shape
    width, height = image_size
    x = (np.arange(width) + 0.5) * w / width - 0.5
    y = (np.arange(height) + 0.5) * h / height - 0.5
    wide = np.stack([np.interp(x, np.arange(w), row) for row in scores])
    return np.stack([np.interp(y, np.arange(h), column) for column in wide.T], axis=1)


def score_anchors_reference(
    scores: NDArray[np.float32],
    image_size: tuple[int, int],
    shapes: Sequence[Sequence[float]] | NDArray[np.float32],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Score every anchor of one image.

    Args:
        scores: (h, w), normalised.
        image_size: width and height of the image in pixels.
        shapes: (K, 2): width and height in pixels.

    Returns:
        boxes: int32 (n, 4) as `anchor_boxes_reference`.
        scores: float32 (n,).
    """
    pixels = upsample_reference(scores, image_size)
    height, width = scores.shape
    boxes = anchor_boxes_reference((height, width), image_size, shapes)
    return boxes, np.array([pixels[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in boxes], np.float32)
