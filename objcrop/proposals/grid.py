"""Boxes that know nothing of the image: a regular grid (CIB Fig. 1c, Grid-Crop) and the whole frame (Image-Crop)."""

from __future__ import annotations

import numpy as np

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog

# Two rows; three equal columns in the upper, two in the lower (CIB 3.2). Shares of the image: x0, y0, x1, y1.
CELLS = np.array([(0, 0, 1 / 3, 0.5), (1 / 3, 0, 2 / 3, 0.5), (2 / 3, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)])
WHOLE = np.array([(0, 0, 1, 1)])


def grid(catalog: Catalog) -> BoxTable:
    """Return five boxes an image that tile it; edges fall on whole pixels."""
    return _cells(catalog, CELLS, "grid")


def image(catalog: Catalog) -> BoxTable:
    """Return one box an image: its frame."""
    return _cells(catalog, WHOLE, "image")


def _cells(catalog: Catalog, cells: np.ndarray, method: str) -> BoxTable:
    sides = np.tile(catalog.sizes, (1, 2))[:, None]
    boxes = np.rint(cells * sides).astype(np.float32).reshape(-1, 4)
    rows = np.repeat(np.arange(len(catalog)), len(cells))
    return BoxTable.from_flat(catalog, rows, boxes, np.ones(len(rows), np.float32), method, {})
