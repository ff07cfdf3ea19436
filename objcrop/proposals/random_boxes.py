"""Random boxes: the control that any proposal method has to beat (CIB Table 11, s4)."""

from __future__ import annotations

import numpy as np

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.philox import blocks
from objcrop.errors import UsageError
from objcrop.option_value import seed_of

SCALE = (0.05, 0.6)  # share of the image's area
RATIO = (0.5, 2.0)  # width over height


def random_boxes(catalog: Catalog, count: int = 10, seed: int = 0) -> BoxTable:
    """Return `count` boxes an image, a pure function of (seed, row, number).

    Area is uniform in 5 to 60 % of the image, the aspect log-uniform in 1:2 to 2:1, the place uniform; a box longer
    than the image is cut to it.

    Args:
        catalog: the images.
        count: boxes an image.
        seed: of the draw.
    """
    if count < 1:
        raise UsageError(f"--count is {count}, but random needs at least one box an image.")
    return by_chance(catalog, count, seed, SCALE)


def by_chance(catalog: Catalog, count: int, seed: int, scale: tuple[float, float]) -> BoxTable:
    """Return `count` boxes an image whose area is uniform in `scale`, shares of the image's; see `random_boxes`."""
    seed = seed_of(seed)
    rows = np.repeat(np.arange(len(catalog)), count)
    number = np.tile(np.arange(count), len(catalog))
    u = blocks(seed, 0, rows, number, "random_box")
    sizes = catalog.sizes[rows].astype(np.float64)
    area = sizes.prod(axis=1) * (scale[0] + u[:, 0] * (scale[1] - scale[0]))
    ratio = np.exp(np.log(RATIO[0]) + u[:, 1] * np.log(RATIO[1] / RATIO[0]))
    side = np.minimum(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=1), sizes)
    low = u[:, 2:] * (sizes - side)
    boxes = np.concatenate([low, low + side], axis=1).astype(np.float32)
    return BoxTable.from_flat(
        catalog, rows, boxes, np.ones(len(rows), np.float32), "random", {"count": count, "seed": seed}
    )
