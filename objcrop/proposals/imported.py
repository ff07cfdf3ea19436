"""Other people's boxes: COCO results JSON, CSV and npy."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError

Flat = tuple[list[int], list[list[float]], list[float]]  # rows, corners, scores


def imported(catalog: Catalog, source: str | os.PathLike[str], annotations: str | None = None) -> BoxTable:
    """Read boxes that another program made.

    Args:
        catalog: the images.
        source: `.json`: COCO results, a list of {image_id, bbox: [x, y, width, height], score}. `.csv`: a header with
            key, x0, y0, x1, y1 and, if wanted, score; key as in the catalog. `.npy`: float (M, 5) or (M, 6) of row,
            x0, y0, x1, y1, score; row is the catalog's. Corners are half-open pixels of the upright image.
        annotations: COCO instances JSON that says which file an image_id is; without it the id is looked for in the
            file names (000000000139.jpg is 139).

    Returns:
        The boxes, the best score first in each image.

    Raises:
        ObjcropError: the file cannot be read, names an image that the catalog lacks, or holds no box; the entry is
            named.
        UsageError: another suffix.
    """
    path = Path(source)
    readers = {".json": _from_json, ".csv": _from_csv, ".npy": _from_npy}
    if path.suffix not in readers:
        raise UsageError(f"boxes to import must be .json (COCO results), .csv or .npy, but '{path}' is none of these.")
    if not path.is_file():
        raise ObjcropError(f"the boxes to import, {path}, are not there; check --source.")
    rows, corners, scores = readers[path.suffix](catalog, path, annotations)
    if not rows:
        raise ObjcropError(f"{path} holds no box.")
    row = np.array(rows, np.int64)
    score = np.array(scores, np.float32)
    order = np.lexsort((-np.nan_to_num(score), row))
    return BoxTable.from_flat(
        catalog, row[order], np.array(corners, np.float32)[order], score[order], "import", {"source": path.name}
    )


def _from_json(catalog: Catalog, path: Path, annotations: str | None) -> Flat:
    entries = _parse(path)
    if not isinstance(entries, list):
        raise ObjcropError(f"{path} is not COCO results: it must be a list of {{image_id, bbox, score}}.")
    row_of = _rows_by_image_id(catalog, annotations)
    rows, corners, scores = [], [], []
    for number, entry in enumerate(entries):
        try:
            image_id = int(entry["image_id"])
            x, y, width, height = (float(v) for v in entry["bbox"])
            score = float(entry.get("score", 1.0))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ObjcropError(f"entry {number} of {path} lacks image_id or a bbox of four numbers.") from None
        if image_id not in row_of:
            raise ObjcropError(
                f"entry {number} of {path} is for image_id {image_id}, which the catalog lacks; name the instances "
                "JSON with --annotations, or index the same images."
            )
        rows.append(row_of[image_id])
        corners.append([x, y, x + width, y + height])
        scores.append(score)
    return rows, corners, scores


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ObjcropError(f"{path} is not JSON ({error}).") from None


def _rows_by_image_id(catalog: Catalog, annotations: str | None) -> dict[int, int]:
    keys = catalog.keys()
    if annotations is None:
        stems = ((PurePosixPath(key).stem, row) for row, key in enumerate(keys))
        return {int(stem): row for stem, row in stems if stem.isdigit()}
    by_name: dict[str, int] = {}
    for row, key in enumerate(keys):
        by_name[key] = by_name[PurePosixPath(key).name] = row
    images = _parse(Path(annotations))
    try:
        return {int(i["id"]): by_name[i["file_name"]] for i in images["images"] if i["file_name"] in by_name}
    except (KeyError, TypeError, ValueError):
        raise ObjcropError(f"{annotations} is not an instances JSON: it lacks images with id and file_name.") from None


def _from_csv(catalog: Catalog, path: Path, annotations: str | None) -> Flat:
    row_of = {key: row for row, key in enumerate(catalog.keys())}
    rows, corners, scores = [], [], []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lacking = {"key", "x0", "y0", "x1", "y1"} - set(reader.fieldnames or ())
            if lacking:
                raise ObjcropError(f"{path} lacks the column {', '.join(sorted(lacking))} in its first line.")
            for entry in reader:
                if entry["key"] not in row_of:
                    raise ObjcropError(
                        f"line {reader.line_num} of {path} is for '{entry['key']}', which the catalog lacks; keys are "
                        "paths relative to the catalog's root."
                    )
                rows.append(row_of[entry["key"]])
                try:
                    corners.append([float(entry[c]) for c in ("x0", "y0", "x1", "y1")])
                    scores.append(float(entry.get("score") or 1.0))
                except (TypeError, ValueError):
                    raise ObjcropError(f"line {reader.line_num} of {path} holds something that is no number.") from None
    except UnicodeDecodeError:
        raise ObjcropError(f"{path} is not a UTF-8 text file.") from None
    return rows, corners, scores


def _from_npy(catalog: Catalog, path: Path, annotations: str | None) -> Flat:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ObjcropError(f"{path} is not a whole npy file ({error}).") from None
    if array.ndim != 2 or array.shape[1] not in (5, 6) or array.dtype.kind not in "fiu":
        raise ObjcropError(
            f"{path} holds {array.dtype} {array.shape}; it must be numbers (M, 5 or 6): row, x0, y0, x1, y1, score."
        )
    row = array[:, 0]
    wrong = ~((row >= 0) & (row < len(catalog)) & (row == np.rint(row)))
    if wrong.any():
        at = int(wrong.argmax())
        raise ObjcropError(f"entry {at} of {path} is for row {row[at]:g}, but the catalog has {len(catalog)} rows.")
    scores = array[:, 5] if array.shape[1] == 6 else np.ones(len(array))
    return row.astype(np.int64).tolist(), array[:, 1:5].tolist(), scores.tolist()
