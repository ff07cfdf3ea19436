"""Which proposals SoCo keeps (Wei et al. 2021, section 3.1; hologerry/SoCo, selective_search/filters.py)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 32.0  # pixels of the original image, at least
ASPECT = 3.0  # of the longer side to the shorter, at most
ROOT_SHARE = (0.3, 0.8)  # √(box's area / image's area)


def kept_by_soco(boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.bool_]:
    """Return which boxes of an image are kept: neither small, thin nor of an odd share of the image.

    Of an image that would be left without any those are kept that are neither small nor thin, else those not small.

    Args:
        boxes: float32 (K, 4) x0, y0, x1, y1, pixels of the image.
        width: of the image.
        height: of the image.

    Returns:
        bool (K,).
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    large = (sides[:, 0] >= SIDE) & (sides[:, 1] >= SIDE)
    plump = large & (sides.max(1, initial=0) <= ASPECT * sides.min(1, initial=np.inf))
    share = np.sqrt(sides.prod(1) / (width * height))
    fits = plump & (share >= ROOT_SHARE[0]) & (share <= ROOT_SHARE[1])
    if fits.any():
        return fits
    return plump if plump.any() else large
