"""From the columns of Arrow or Parquet files to a catalog: keys, labels, boxes, and where each image lies."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from objcrop.catalog import Catalog
from objcrop.catalog_table import Ranges
from objcrop.errors import ObjcropError, one_of, printable
from objcrop.exif import Header
from objcrop.formats import catalog_of, places_of
from objcrop.formats.column_annotations import boxes_of, corners_of, joined, labels_of, stated_sizes
from objcrop.formats.headers import read_headers
from objcrop.formats.image_columns import ImageColumns
from objcrop.formats.index_report import IndexReport
from objcrop.formats.source import Source
from objcrop.place import SourceFile, is_address


class ColumnFile(NamedTuple):
    """What one file of n rows holds.

    source: the file; path: of each row the `path` beside the bytes, null where there is none; offset, length int64
    (n,): where each image lies in the file as `Place` has it, offset -1 where there are no bytes; annotations: the
    columns of labels and boxes.
    """

    source: SourceFile
    path: pa.Array | pa.ChunkedArray
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    annotations: pa.Table


def refuse_unknown_words(source: Source) -> None:
    """Raise a `UsageError` where keys or box_format is none of its words: before anything is read."""
    one_of(source.keys or "path", ("path", "row"), "keys")
    one_of(source.box_format or "xywh", ("xywh", "xyxy"), "box_format")


def catalog_of_columns(
    source: Source,
    root: str,
    files: Sequence[ColumnFile],
    columns: ImageColumns,
    report: IndexReport,
) -> Catalog:
    """Make the catalog of files' rows.

    The key of an image is its `path`, where the row has one and `keys` is not "row"; else the file's name without its
    ending, and the row.

    Args:
        source: what `index` was told.
        root: the folder that the files' names are relative to.
        files: one or more.
        columns: what was taken from them.
        report: filled in as rows are met.

    Raises:
        ObjcropError: two images have one key, files do not fit together, boxes fit two readings, or no image is left.
    """
    ends = np.cumsum([len(file.offset) for file in files])

    def place(row: int) -> str:
        file = int(np.searchsorted(ends, row, side="right"))
        return f"{files[file].source.name}, row {row - int(ends[file]) + len(files[file].offset)}"

    number = np.repeat(np.arange(len(files)), [len(file.offset) for file in files])
    offset = np.concatenate([file.offset for file in files])
    length = np.concatenate([file.length for file in files])
    keys, rows = _keys(source, root, files, offset, length, place, report)
    at = np.array(rows, np.int64)
    if source.limit is not None:
        chosen = np.sort(np.argsort(np.array(keys, object))[: source.limit])  # rows in order: files are read forwards
        at, keys = at[chosen], [keys[i] for i in chosen.tolist()]
    ranges = Ranges([file.source for file in files], np.where(offset < 0, -1, number)[at], offset[at], length[at])

    table = _annotations(files).take(pa.array(at))

    def of_taken(i: int) -> str:
        return place(int(at[i]))

    labels, boxes = labels_of(table, columns, of_taken, report), boxes_of(table, columns, of_taken, report)
    found = read_headers(places_of(root, keys, ranges), source.verify)
    corners, sizes = None, stated_sizes(table, columns)
    if boxes is not None:
        stored = [(header.width, header.height) if isinstance(header, Header) else (0, 0) for header in found]
        frames = np.where((sizes > 0).all(1, keepdims=True), sizes, np.array(stored, np.int32).reshape(-1, 2))
        corners = corners_of(boxes, frames, source.box_format, printable(os.fspath(source.path)))
    classes, flat_labels, flat_boxes = joined(labels, boxes, corners, of_taken)
    return catalog_of(
        root,
        keys,
        report,
        verify=source.verify,
        classes=classes,
        boxes=flat_boxes,
        labels=flat_labels,
        stated_sizes=sizes,
        ranges=ranges,
        headers=found,
    )


def _keys(
    source: Source,
    root: str,
    files: Sequence[ColumnFile],
    offset: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    place: Callable[[int], str],
    report: IndexReport,
) -> tuple[list[str], list[int]]:
    """Return the keys of the rows that have an image, and which rows these are; the others are listed."""
    keys: list[str] = []
    rows: list[int] = []
    row = -1
    for file in files:
        stem, digits = posixpath.splitext(file.source.name)[0], len(str(len(file.path) - 1))
        for i, path in enumerate(file.path.to_pylist()):
            row += 1
            if offset[row] >= 0 and length[row] != 0:
                named = _key_in_file(path) if path and source.keys != "row" else None
                keys.append(named or f"{stem}/{i:0{digits}d}")
            elif offset[row] >= 0:
                report.leave_out_file(place(row), "the image has no bytes")
                continue
            elif path:
                keys.append(_key_beside(path, root))
            else:
                report.leave_out_file(place(row), "there is no image, neither bytes nor a path")
                continue
            rows.append(row)
    first: dict[str, int] = {}
    if len(set(keys)) < len(keys):
        for key, row in zip(keys, rows):
            if key in first:
                way = "correct one" if source.keys == "row" else "take the rows' numbers for names with --keys row"
                raise ObjcropError(f"{place(first[key])} and {place(row)} are both '{printable(key)}'; {way}.")
            first[key] = row
    return keys, rows


def _key_in_file(path: str) -> str | None:
    """Return a path beside bytes as a key, None where it says nothing."""
    key = posixpath.normpath(path.replace("\\", "/")).lstrip("/")
    while key.startswith("../"):
        key = key[3:]
    return None if key in ("", ".", "..") else key


def _key_beside(path: str, root: str) -> str:
    """Return the path of a file of its own as a key: relative to the root, or whole where it lies elsewhere."""
    if is_address(path):
        return path
    whole = posixpath.normpath(posixpath.join(root, path))
    return whole[len(root) + 1 :] if whole.startswith(f"{root}/") else whole


def _annotations(files: Sequence[ColumnFile]) -> pa.Table:
    tables = [file.annotations for file in files]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        other = next(file for file in files if file.annotations.schema != tables[0].schema)
        raise ObjcropError(
            f"{files[0].source.name} and {other.source.name} have columns of other types; index each by itself."
        ) from None
