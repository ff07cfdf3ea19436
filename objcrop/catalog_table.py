"""From flat arrays to the rows of a catalog: sorted by key, checked, annotations as lists."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from objcrop.catalog_checks import known_classes, refuse_outside, refuse_twice
from objcrop.errors import ObjcropError, UsageError
from objcrop.place import SourceFile

VERSION = 2
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orientation", pa.int8()),
        ("labels", pa.list_(pa.int32())),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("box_classes", pa.list_(pa.int32())),
        ("difficult", pa.list_(pa.bool_())),
        ("crowd", pa.list_(pa.bool_())),
        ("masks", pa.list_(pa.string())),
        ("source", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


class Ranges(NamedTuple):
    """Where N images lie that are not files of their own.

    sources: the files that hold them; source int (N,): which of these, -1 where the image is a file; offset, length int
    (N,): bytes in it, in Parquet the row and -1.
    """

    sources: Sequence[SourceFile]
    source: npt.ArrayLike
    offset: npt.ArrayLike
    length: npt.ArrayLike


class FlatAnnotations(NamedTuple):
    """What `Catalog.build` is given of boxes and labels."""

    boxes: npt.ArrayLike | None = None
    box_rows: npt.ArrayLike | None = None
    box_classes: npt.ArrayLike | None = None
    difficult: npt.ArrayLike | None = None
    crowd: npt.ArrayLike | None = None
    masks: Sequence[str | None] | pa.Array | None = None
    label_rows: npt.ArrayLike | None = None
    label_classes: npt.ArrayLike | None = None


def table_of(
    keys: Sequence[str],
    sizes: npt.ArrayLike,
    orientations: npt.ArrayLike | None,
    classes: Sequence[str],
    annotations: FlatAnnotations,
    ranges: Ranges | None,
) -> tuple[pa.Table, str]:
    """Return a catalog's table and its fingerprint; arguments and errors as of `Catalog.build`."""
    boxes, box_rows, box_classes, difficult, crowd, masks, label_rows, label_classes = annotations
    key_array = pa.array(keys, pa.string())
    n = len(key_array)
    order = pc.sort_indices(key_array).to_numpy()
    key_array = key_array.take(pa.array(order))
    if isinstance(key_array, pa.ChunkedArray):
        key_array = key_array.combine_chunks()
    refuse_twice(key_array)
    new_row = np.empty(n, np.int64)
    new_row[order] = np.arange(n)

    upright = np.asarray(sizes, np.int32).reshape(n, 2)[order]
    if n and upright.min() < 1:
        bad = int((upright < 1).any(1).argmax())
        raise ObjcropError(f"{key_array[bad]} has size {upright[bad].tolist()}; leave out images without pixels.")
    orientation = np.ones(n, np.int8) if orientations is None else np.asarray(orientations, np.int8)[order]

    corners = np.zeros((0, 4), np.float32) if boxes is None else np.asarray(boxes, np.float32).reshape(-1, 4)
    m = len(corners)
    rows = new_row[_int64(box_rows, m)]
    by_row = np.argsort(rows, kind="stable")
    rows, corners = rows[by_row], corners[by_row]
    refuse_outside(key_array, rows, corners, upright)
    ids = known_classes(_int64(box_classes, m)[by_row], classes)
    offsets = _offsets(rows, n)

    if label_rows is None or label_classes is None:
        pairs = rows * len(classes) + ids
    else:
        pairs = _int64(label_classes, np.size(label_classes))
        pairs = new_row[_int64(label_rows, len(pairs))] * len(classes) + known_classes(pairs, classes)
    pairs = np.sort(pairs)  # np.unique hashes, which takes 20 times as long for OpenImages' 14 million boxes
    in_row, label = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], max(len(classes), 1))

    mask_array = pa.nulls(m, pa.string()) if masks is None else pa.array(masks, pa.string())
    flat = {
        "labels": pa.array(label.astype(np.int32)),
        "boxes": pa.FixedSizeListArray.from_arrays(pa.array(corners.reshape(-1)), 4),
        "box_classes": pa.array(ids.astype(np.int32)),
        "difficult": pa.array(np.zeros(m, bool) if difficult is None else np.asarray(difficult, bool)[by_row]),
        "crowd": pa.array(np.zeros(m, bool) if crowd is None else np.asarray(crowd, bool)[by_row]),
        "masks": mask_array.take(pa.array(by_row)),
    }
    columns = [key_array, pa.array(upright[:, 0]), pa.array(upright[:, 1]), pa.array(orientation)]
    for name, values in flat.items():
        starts = _offsets(in_row, n) if name == "labels" else offsets
        columns.append(pa.ListArray.from_arrays(pa.array(starts), values))
    columns += _range_columns(ranges, order)
    table = pa.Table.from_arrays(columns, schema=SCHEMA)
    return table, fingerprint_of(key_array, upright, orientation)


def _range_columns(ranges: Ranges | None, order: npt.NDArray[np.int64]) -> list[pa.Array]:
    """Return source, offset and length of images in this order; null where an image is a file of its own."""
    kinds = [SCHEMA.field(name).type for name in ("source", "offset", "length")]
    if ranges is None:
        return [pa.nulls(len(order), kind) for kind in kinds]
    columns = [np.asarray(column, np.int64)[order] for column in ranges[1:]]
    return [pa.array(column, kind, mask=columns[0] < 0) for column, kind in zip(columns, kinds)]


def _int64(values: npt.ArrayLike | None, length: int) -> npt.NDArray[np.int64]:
    flat = np.zeros(0, np.int64) if values is None else np.asarray(values, np.int64).reshape(-1)
    if len(flat) != length:
        raise UsageError(f"Catalog.build got {length} boxes or labels but {len(flat)} rows or classes for them.")
    return flat


def _offsets(rows: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int32]:
    return np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n)))).astype(np.int32)


def fingerprint_of(keys: pa.Array, sizes: npt.NDArray[np.int32], orientations: npt.NDArray[np.int8]) -> str:
    """Return 16 hex digits over keys, upright sizes and orientations."""
    digest = hashlib.sha256()
    digest.update(pc.binary_length(keys).to_numpy().astype("<i4").tobytes())
    if len(keys):
        _, offsets, text = keys.buffers()
        first, last = np.frombuffer(offsets, np.int32)[[keys.offset, keys.offset + len(keys)]]
        digest.update(memoryview(text)[first:last])
    digest.update(np.ascontiguousarray(sizes, "<i4").tobytes())
    digest.update(np.ascontiguousarray(orientations, "i1").tobytes())
    return digest.hexdigest()[:16]
