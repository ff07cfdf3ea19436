"""A list of images, their classes and boxes: a CSV or Parquet file with a row for each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, shown
from objcrop.formats import FlatBoxes, FlatLabels, IndexReport, catalog_of, folder_at
from objcrop.formats.csv_rows import csv_rows
from objcrop.formats.image_names import key_finder
from objcrop.formats.plain_values import ONE_CLASS, BadValue, class_name, number
from objcrop.formats.source import Source

_CORNERS = ("x0", "y0", "x1", "y1")
_COLUMNS = ("path", "label", *_CORNERS)


class Row(NamedTuple):
    """An image, one of its classes (label), or one of its boxes (corners) with its class; place is where it stands."""

    place: int
    key: str
    label: str | None
    corners: tuple[float, ...] | None


def read_image_list(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the images that a list names.

    Its columns, in any order and case:

        path              of an image; names are understood as `ImageNames` says
        label             class of the image, or of the box; may be empty or left out
        x0, y0, x1, y1    box, half-open pixels of the upright image; may be empty or left out

    An image with several classes or boxes has a row for each. The classes are the labels in order; where no box has a
    label, all are of the class "object". Corners may be swapped.

    Args:
        source: its path is the list: Parquet if its name ends in .parquet, else CSV between commas, semicolons or tabs
            with the columns' names in its first line; root is the folder that paths are relative to, the list's own
            when left out.

    Raises:
        ObjcropError: the list cannot be read or lacks a column, no image is left, or a row cannot be used and the
            source is strict.
    """
    file = os.path.abspath(source.path)
    base = folder_at(source.root or os.path.dirname(file), "image folder")
    report = IndexReport(strict=source.strict)
    is_parquet = file.lower().endswith(".parquet")
    columns, entries = _parquet_rows(file) if is_parquet else csv_rows(file, "list", report, numbers=_CORNERS)
    _refuse_other_columns(columns, file)
    unused = [name for name in columns if name not in _COLUMNS]
    if unused:
        report.remark(os.path.basename(file), f"not used are the columns {', '.join(unused)}")

    def place_of(at: int) -> str:
        return f"{'row' if is_parquet else 'line'} {at} of {os.path.basename(file)}"

    named, rows = [], []
    for at, entry in entries:
        try:
            if not isinstance(entry["path"], str):
                raise BadValue(f"the path is {shown(entry['path'])}")
            named.append(Row(at, entry["path"], _label(entry.get("label")), _corners(entry)))
        except BadValue as error:
            report.leave_out_entry(place_of(at), str(error))
    key_of = key_finder({row.key for row in named}, base)
    for row in named:
        try:
            rows.append(row._replace(key=key_of(row.key)))
        except BadValue as error:
            report.leave_out_entry(place_of(row.place), str(error))
    return catalog_of_rows(base, rows, place_of, report, source), report


def catalog_of_rows(
    base: str, rows: list[Row], place_of: Callable[[int], str], report: IndexReport, source: Source
) -> Catalog:
    """Read the headers of the images that the rows name, and add their classes and boxes.

    Args:
        base: image folder.
        rows: what is known of which image.
        place_of: names a row's place.
        report: gets what cannot be used.
        source: its limit and verify are used.
    """
    no_box_has_a_label = not any(row.label for row in rows if row.corners)
    if no_box_has_a_label and any(row.corners for row in rows):
        report.remark(base, f"no box has a label; all are of the class {shown(ONE_CLASS)}")
    known: set[tuple[str, str | None]] = set()
    labels: list[Row] = []
    boxes: list[Row] = []
    for row in rows:
        if row.corners is None:
            if (row.key, row.label) in known:
                report.leave_out_entry(place_of(row.place), f"another says the same of {shown(row.key)}")
            elif row.label is not None:
                labels.append(row)
            known.add((row.key, row.label))
        elif row.label is not None or no_box_has_a_label:
            (x0, x1), (y0, y1) = sorted(row.corners[::2]), sorted(row.corners[1::2])
            if row.corners != (x0, y0, x1, y1) and not math.isnan(sum(row.corners)):
                report.remark(place_of(row.place), "its corners are swapped")
                row = row._replace(corners=(x0, y0, x1, y1))
            boxes.append(row._replace(label=row.label or ONE_CLASS))
        else:
            report.leave_out_entry(place_of(row.place), "the box has no label, although others have one")
    keys = sorted({row.key for row in rows})[: source.limit]
    position = {key: i for i, key in enumerate(keys)}
    classes = sorted({str(row.label) for row in (*labels, *boxes)})
    class_of: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    labels, boxes = ([row for row in some if row.key in position] for some in (labels, boxes))
    no = np.zeros(len(boxes), bool)
    flat = FlatBoxes(
        [position[row.key] for row in boxes],
        [row.corners for row in boxes],
        [class_of[row.label] for row in boxes],
        no,
        no,
        [row.place for row in boxes],
        place_of,
        upright=True,
    )
    of_images = FlatLabels([position[row.key] for row in labels], [class_of[row.label] for row in labels])
    return catalog_of(base, keys, report, verify=source.verify, classes=classes, boxes=flat, labels=of_images)


def _refuse_other_columns(columns: list[str], file: str) -> None:
    has = f"it has {shown(columns)}" if columns else "it is empty"
    lacking = [name for name in _CORNERS if name not in columns]
    if "path" not in columns:
        raise ObjcropError(
            f"{file} lacks the column path, {has}; a list has path and, if wanted, label, x0, y0, x1, y1."
        )
    if 0 < len(lacking) < len(_CORNERS):
        raise ObjcropError(f"{file} lacks the column {', '.join(lacking)}, {has}; a box is x0, y0, x1, y1.")
    for name in _COLUMNS:
        if columns.count(name) > 1:
            raise ObjcropError(f"{file} has the column {name} twice; take one out.")


def _parquet_rows(file: str) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """Return the names of the columns, in lower case, and of each row its number and its values by these names."""
    import pyarrow.parquet as pq

    if not os.path.isfile(file):
        raise ObjcropError(f"The list {file} is not there; check the path.")
    try:
        stored = pq.read_schema(file).names
        wanted = [name for name in stored if name.lower() in _COLUMNS]
        table = pq.read_table(file, columns=wanted)
        table.validate(full=True)
    except Exception as error:  # a damaged file can raise anything in pyarrow
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise ObjcropError(f"{file} is no whole Parquet file ({cause}); write it again.") from None
    names = [name.lower() for name in table.column_names]

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        at = 0
        for batch in table.to_batches(1 << 16):
            for values in zip(*(column.to_pylist() for column in batch.columns)):
                yield at, dict(zip(names, values))
                at += 1

    return [name.lower() for name in stored], rows()


def _label(value: Any) -> str | None:
    """Return a class name; None for none."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    return class_name(value)


def _corners(entry: dict[str, Any]) -> tuple[float, ...] | None:
    """Return x0,y0,x1,y1 of a row; None where it has no box."""
    values = [entry.get(name) for name in _CORNERS]
    corners = tuple(number(None if value == "" else value) for value in values)
    return None if all(map(math.isnan, corners)) else corners
