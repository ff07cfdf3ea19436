"""Boxes that were made for one catalog, for those of its images that are in another: of a whole set for its subset."""

from __future__ import annotations

import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog, catalog_at
from objcrop.errors import ObjcropError, UsageError


def carried_over(catalog: Catalog, source: str | os.PathLike[str], other: str | os.PathLike[str] | None) -> BoxTable:
    """Return a table's boxes for another catalog, of the same method and parameters.

    Images are the same where keys and sizes are. Those that the table's catalog lacks get no boxes, and are warned of.

    Args:
        catalog: the images that boxes are wanted for.
        source: table of boxes.
        other: the catalog that they were made for.

    Raises:
        UsageError: no other catalog is given.
        ObjcropError: the boxes were not made for it, it has none of the images, or one of another size.
    """
    if other is None:
        raise UsageError(f"{source} has boxes by rows of a catalog; name the one it was made for with --annotations.")
    whole = catalog_at(other)
    boxes = BoxTable.load(source, whole)
    of_key = pc.index_in(pa.array(catalog.keys()), value_set=pa.array(whole.keys()))
    row = of_key.fill_null(-1).to_numpy()
    there = np.flatnonzero(row >= 0)
    if not len(there):
        raise ObjcropError(f"{other} has none of the images, {catalog.key(0)} for one; keys are relative to the root.")
    unlike = there[(catalog.sizes[there] != whole.sizes[row[there]]).any(1)]
    if len(unlike):
        key, old, new = catalog.key(unlike[0]), whole.sizes[row[unlike[0]]], catalog.sizes[unlike[0]]
        raise ObjcropError(f"{key} is {old[0]}x{old[1]} in {other} and {new[0]}x{new[1]} here; make boxes anew.")
    if len(there) < len(catalog):
        said = "%s: %d images of this catalog are not in %s, and have no boxes"
        logging.getLogger("objcrop").warning(said, os.path.basename(source), len(catalog) - len(there), other)
    first, count = boxes.offsets[row[there]].astype(np.int64), boxes.counts(row[there])
    # Positions first, first+1, … of every image, one after the other.
    which = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    rows, corners, scores = np.repeat(there, count), boxes.values[which], boxes.scores[which]
    return BoxTable.from_flat(catalog, rows, corners, scores, boxes.method, boxes.parameters)
