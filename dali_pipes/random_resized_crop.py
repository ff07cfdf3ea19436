"""The random-resized crop: region to window.

torchvision's sampler, drawn inside a region: up to ten tries of (area, aspect), then the centred fallback whose
aspect is clamped. Source: Szegedy et al., "Going Deeper with Convolutions", and torchvision's
`RandomResizedCrop.get_params`; OAC and CIB draw it inside a box.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from objcrop.dali_pipes.philox import blocks

# Ten tries, drawn in two rounds: most windows fit at the first, the few others take the rest in one go.
TRIES = 10
ROUNDS = (np.arange(1), np.arange(1, TRIES))
RATIO = (3 / 4, 4 / 3)


def random_resized_crop(
    regions: NDArray[np.int32],
    scale: NDArray[np.float64],
    samples: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    views: NDArray[np.int64] | None = None,
    aspect: NDArray[np.float64] | None = None,
    redraw: int = 0,
) -> NDArray[np.int32]:
    """Draw one window inside every region.

    Args:
        regions: int32 (N, V, 4) x0, y0, x1, y1, half-open pixels of the upright image, none empty.
        scale: float64 (V, 2) smallest and largest share of the region's area, per view.
        samples: int64 (N,) which sample each row is: a coordinate of the draw.
        seed: the run's seed.
        epoch: the epoch.
        views: int64 (V,) which view of its sample each column is, another coordinate; 0, 1, … by default.
        aspect: float64 (V, 2) smallest and largest width / height, per view; 3/4 to 4/3 by default.
        redraw: how often this window was drawn already; another number draws anew.

    Returns:
        int32 (N, V, 4): integer windows inside their regions, at least one pixel on each axis.
    """
    n, v = regions.shape[:2]
    flat = regions.reshape(-1, 4)
    width, height = (flat[:, 2] - flat[:, 0]).astype(np.int64), (flat[:, 3] - flat[:, 1]).astype(np.int64)
    sample, view = np.repeat(samples, v), np.tile(np.arange(v) if views is None else views, n)
    low, high = np.tile(scale[:, 0], n), np.tile(scale[:, 1], n)
    narrow: NDArray[np.float64] | float = RATIO[0]
    wide: NDArray[np.float64] | float = RATIO[1]
    if aspect is not None:
        narrow, wide = np.tile(aspect[:, 0], n), np.tile(aspect[:, 1], n)
    w, h = _centred_fallback(width, height, narrow, wide)
    x, y = (width - w) // 2, (height - h) // 2
    pending = np.arange(n * v)
    for attempts in ROUNDS:
        tries = attempts + redraw * TRIES
        u = blocks(seed, epoch, sample[pending, None], view[pending, None], "crop", tries)  # P, attempts, 4
        room_w, room_h = width[pending, None], height[pending, None]
        area = room_w * room_h * (low[pending, None] + u[..., 0] * (high - low)[pending, None])
        least, most = (np.log(end) if aspect is None else np.log(end)[pending, None] for end in (narrow, wide))
        shape = np.exp(least + u[..., 1] * (most - least))
        try_w = np.rint(np.sqrt(area * shape)).astype(np.int64)
        try_h = np.rint(np.sqrt(area / shape)).astype(np.int64)
        fits = (try_w > 0) & (try_h > 0) & (try_w <= room_w) & (try_h <= room_h)
        found = np.flatnonzero(fits.any(axis=1))
        first = fits[found].argmax(axis=1)
        hit = pending[found]
        w[hit], h[hit] = try_w[found, first], try_h[found, first]
        x[hit] = (u[found, first, 2] * (width[hit] - w[hit] + 1)).astype(np.int64)
        y[hit] = (u[found, first, 3] * (height[hit] - h[hit] + 1)).astype(np.int64)
        pending = np.delete(pending, found)
        if not pending.size:
            break

    left, top = flat[:, 0] + x, flat[:, 1] + y
    return np.stack([left, top, left + w, top + h], axis=-1).astype(np.int32).reshape(n, v, 4)


def _centred_fallback(
    width: NDArray[np.int64],
    height: NDArray[np.int64],
    narrow: NDArray[np.float64] | float,
    wide: NDArray[np.float64] | float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return width and height of the window used when no try fits: the whole region, its aspect clamped."""
    ratio = width / height
    w = np.where(ratio > wide, np.rint(height * wide), width)
    h = np.where(ratio < narrow, np.rint(width / narrow), height)
    return np.maximum(w, 1).astype(np.int64), np.maximum(h, 1).astype(np.int64)
