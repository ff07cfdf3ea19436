"""Several catalogs as one."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from objcrop.catalog import Catalog
from objcrop.catalog_table import Ranges
from objcrop.errors import ObjcropError, UsageError
from objcrop.place import SourceFile, is_address, under


def join_catalogs(catalogs: Sequence[Catalog]) -> Catalog:
    """Put several catalogs together under the deepest folder that holds all their roots.

    Keys are re-based to that folder. Classes are merged by name: the first catalog's in their order, then what each
    next one adds.

    Raises:
        UsageError: no catalog given.
        ObjcropError: two catalogs hold the same image, or their roots have no folder in common.
    """
    if not catalogs:
        raise UsageError("join_catalogs needs at least one catalog, and got none.")
    root = _common_root([catalog.root for catalog in catalogs])
    classes = list(dict.fromkeys(name for catalog in catalogs for name in catalog.classes))
    keys, parts, ranges = [], [], []
    sources: list[SourceFile] = []
    first_row = 0
    for catalog in catalogs:
        catalog.keys()  # all are text
        prefix = catalog.root[len(root) :].strip("/")
        column = catalog._column("key")
        keys.append(pc.binary_join_element_wise(prefix, column, "/") if prefix else column)
        rebased = [s._replace(name=under(prefix, s.name) if prefix else s.name) for s in catalog.sources]
        source, offset, length = (catalog._column(name).fill_null(-1) for name in ("source", "offset", "length"))
        number = source.to_numpy().astype(np.int64)
        ranges.append((np.where(number < 0, -1, number + len(sources)), offset, length))
        sources += rebased
        ids = np.array([classes.index(name) for name in catalog.classes], np.int64)
        row = np.arange(first_row, first_row + len(catalog))
        offsets = catalog.box_offsets
        truth = catalog.all_annotations()
        masks = catalog._sound_masks(int(offsets[0]), int(offsets[-1]))
        label_rows, label = catalog.flat_labels()
        box_rows = np.repeat(row, np.diff(offsets))
        box_ids = ids[truth.classes]
        parts.append(
            (truth.boxes, box_rows, box_ids, truth.difficult, truth.crowd, masks, first_row + label_rows, ids[label])
        )
        first_row += len(catalog)
    boxes, rows_of_boxes, classes_of_boxes, difficult, crowd, all_masks, rows_of_labels, labels_joined = zip(*parts)
    return Catalog.build(
        root,
        pa.concat_arrays(keys),
        np.concatenate([catalog.sizes for catalog in catalogs]),
        np.concatenate([catalog.orientations for catalog in catalogs]),
        classes=classes,
        boxes=np.concatenate(boxes),
        box_rows=np.concatenate(rows_of_boxes),
        box_classes=np.concatenate(classes_of_boxes),
        difficult=np.concatenate(difficult),
        crowd=np.concatenate(crowd),
        masks=pa.concat_arrays(all_masks),
        label_rows=np.concatenate(rows_of_labels),
        label_classes=np.concatenate(labels_joined),
        ranges=Ranges(sources, *(np.concatenate(column) for column in zip(*ranges))) if sources else None,
    )


def _common_root(roots: Sequence[str]) -> str:
    """Return the deepest folder, or the longest address, that all roots are under."""
    schemes, paths = zip(*(root.split("://", 1) if is_address(root) else ("", root) for root in roots))
    common = os.path.commonpath(paths) if len(set(schemes)) == 1 else ""
    if not common:
        raise ObjcropError(f"The images of {roots[0]} and {roots[-1]} have no folder or bucket in common to be joined.")
    return f"{schemes[0]}://{common}" if schemes[0] else common
