"""A catalog from lists of Python: files, their classes, their boxes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from objcrop.catalog import Catalog
from objcrop.errors import UsageError, printable, shown
from objcrop.formats import IndexReport, folder_at
from objcrop.formats.image_list import Row, catalog_of_rows
from objcrop.formats.image_names import key_finder
from objcrop.formats.plain_values import BadValue
from objcrop.formats.source import Source, StrPath


def catalog_from_files(
    paths: Sequence[StrPath],
    labels: Sequence[str | Sequence[str] | None] | None,
    boxes: Sequence[npt.ArrayLike] | None,
    root: StrPath | None,
) -> Catalog:
    """Be `Catalog.from_files`, which says what comes in and out."""
    for what, given in (("labels", labels), ("boxes", boxes)):
        if given is not None and len(given) != len(paths):
            raise UsageError(f"from_files got {len(paths)} paths but {len(given)} {what}; give one for each path.")
    files = [os.path.abspath(path) if root is None else os.fspath(path) for path in paths]
    if root is None:
        root = os.path.commonpath([os.path.dirname(file) for file in files] or [os.getcwd()])
    base = folder_at(root, "root")
    key_of = key_finder(files, base)
    rows: list[Row] = []
    seen: set[str] = set()
    for i, file in enumerate(files):
        try:
            key = key_of(file)
        except BadValue as error:
            raise UsageError(f"paths[{i}] cannot be used with the root {base}: {error}.") from None
        if key in seen:
            raise UsageError(f"paths[{i}], {printable(file)}, is there twice; give its boxes and labels in one place.")
        seen.add(key)
        names: list[str | None] = [*_names(labels[i], i)] if labels is not None else []
        corners = _corners(boxes[i], i) if boxes is not None else []
        if not corners:
            rows += [Row(i, key, name, None) for name in names or (None,)]
        elif len(names) in (0, 1, len(corners)):
            of_boxes = names if len(names) == len(corners) else (names or [None]) * len(corners)
            rows += [Row(i, key, name, box) for name, box in zip(of_boxes, corners, strict=True)]
        else:
            counts = f"{len(corners)} boxes and {len(names)} labels"
            raise UsageError(f"{printable(file)} has {counts}; give it one label, or one a box.")
    report = IndexReport()
    catalog = catalog_of_rows(base, rows, lambda i: f"paths[{i}]", report, Source(base))
    report.warn("from_files")
    return catalog


def _names(given: str | Sequence[str] | None, i: int) -> list[str]:
    if given is None:
        return []
    names = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise UsageError(f"labels[{i}] is {shown(given)}, but it must be a class name, several, or None.")
    return names


def _corners(given: npt.ArrayLike, i: int) -> list[tuple[float, ...]]:
    try:
        return [tuple(box) for box in np.asarray(given, np.float64).reshape(-1, 4).tolist()]
    except (TypeError, ValueError):
        raise UsageError(f"boxes[{i}] is {shown(given)}, but it must be numbers (k, 4): x0, y0, x1, y1.") from None
