"""Other people's boxes: COCO results JSON, CSV and npy."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError, shown
from objcrop.formats.coco import corners_of_bbox
from objcrop.formats.coco_masks import box_of
from objcrop.formats.csv_rows import csv_rows
from objcrop.formats.image_names import AmbiguousName, ImageNames
from objcrop.formats.index_report import IndexReport
from objcrop.formats.json_file import parsed_json, read_json
from objcrop.formats.plain_values import BadValue, Id, id_table, number, plain_id
from objcrop.formats.text_file import read_text
from objcrop.proposals.carried_over import carried_over

_COLUMNS = ("key", "x0", "y0", "x1", "y1")


class _Boxes(NamedTuple):
    """Rows (M,), x0,y0,x1,y1 (M, 4), scores (M,) and what names each entry."""

    rows: list[int]
    corners: list[tuple[float, float, float, float]]
    scores: list[float]
    places: list[str]


def imported(
    catalog: Catalog, source: str | os.PathLike[str], annotations: str | None = None, strict: bool = False
) -> BoxTable:
    """Read boxes that another program made.

    Numbers may be text, corners may be swapped; names of images are understood as `ImageNames` says. Entries that
    cannot be used are left out and warned of, with their place and the reason.

    Args:
        catalog: the images.
        source: `.json`: COCO results, a list of {image_id, bbox: [x, y, width, height], score}, or one such a line; a
            mask (segmentation) may stand in for the bbox. `.csv`: a header with key, x0, y0, x1, y1 and, if wanted,
            score, between commas, semicolons or tabs; key as in the catalog; a line without corners is an image
            without boxes. `.npy`: float (M, 5) or (M, 6) of row, x0, y0, x1, y1, score; row is the catalog's. Corners
            are half-open pixels of the upright image. `.arrow` or `.parquet`: boxes of another catalog that has these
            images too, see `carried_over`.
        annotations: of a table, the catalog that it was made for. Of a JSON, COCO instances that say which file an
            image_id is; without it the id is the name of a file, or the number in it (000000000139.jpg is 139, and so
            is COCO_val2014_000000000139.jpg).
        strict: end at the first entry that cannot be used.

    Returns:
        The boxes, the best score first in each image.

    Raises:
        ObjcropError: the file cannot be read, an id or name may mean two images, no entry is left, or one cannot be
            used and `strict`; the entry is named.
        UsageError: another suffix.
    """
    path = Path(source)
    if path.suffix.lower() in (".arrow", ".parquet"):
        return carried_over(catalog, path, annotations)
    readers = {".json": _from_json, ".csv": _from_csv, ".npy": _from_npy}
    read = readers.get(path.suffix.lower())
    if read is None:
        kinds = ".json (COCO results), .csv, .npy or a table of boxes"
        raise UsageError(f"boxes to import must be {kinds}, but '{path}' is none of these.")
    if not path.is_file():
        raise ObjcropError(f"the boxes to import, {path}, are not there; check --source.")
    report = IndexReport(strict=strict)
    boxes = _usable(read(catalog, path, annotations, report), report)
    if not boxes.rows:
        first = "; {}: {}".format(*report.bad_entries[0]) if report.bad_entries else ""
        raise ObjcropError(f"{path} holds no box for this catalog{first}.")
    report.warn(path.name)
    row = np.array(boxes.rows, np.int64)
    # Finite in float32 too; what is far outside is clipped to the image as all boxes are.
    corners = np.clip(np.array(boxes.corners, np.float64), -1e30, 1e30).astype(np.float32)
    score = np.clip(np.array(boxes.scores, np.float64), -1e38, 1e38).astype(np.float32)
    order = np.lexsort((-score, row))
    return BoxTable.from_flat(catalog, row[order], corners[order], score[order], "import", {"source": path.name})


def _usable(boxes: _Boxes, report: IndexReport) -> _Boxes:
    """Return the boxes with finite corners and scores, their corners in order."""
    kept = _Boxes([], [], [], [])
    for row, (x0, y0, x1, y1), score, place in zip(*boxes, strict=True):
        if not all(map(math.isfinite, (x0, y0, x1, y1, score))):
            report.leave_out_entry(place, f"the box {shown([x0, y0, x1, y1])} or its score {score:g} is not finite")
            continue
        if x0 > x1 or y0 > y1:
            report.remark(place, "its corners are swapped")
        kept.rows.append(row)
        kept.corners.append((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
        kept.scores.append(score)
    return kept


def _from_json(catalog: Catalog, path: Path, annotations: str | None, report: IndexReport) -> _Boxes:
    row_of = _rows_by_image_id(catalog, annotations, report)
    known: dict[Any, int] = {}
    boxes = _Boxes([], [], [], [])
    for place, entry in _results(path, report):
        try:
            if not isinstance(entry, dict):
                raise BadValue(f"it is {shown(entry)}, not {{image_id, bbox, score}}")
            raw = entry.get("image_id")
            if isinstance(raw, (bool, dict, list, type(None))):
                raise BadValue(f"image_id is {shown(raw)}")
            if raw not in known:
                known[raw] = row_of(raw)
            corners = corners_of_bbox(entry.get("bbox")) or box_of(entry.get("segmentation"))
            if corners is None:
                raise BadValue(f"it lacks a bbox of four numbers: {shown(entry.get('bbox'))}")
            score = entry.get("score")
            score = 1.0 if score is None else number(score)
        except AmbiguousName as error:
            way = "write whole paths as its file_name" if annotations else "name the instances JSON with --annotations"
            raise ObjcropError(f"{place} of {path} is for image_id {shown(raw)}, but {error}; {way}.") from None
        except BadValue as error:
            report.leave_out_entry(f"{place} of {path.name}", str(error))
            continue
        boxes.rows.append(known[raw])
        boxes.corners.append(corners)
        boxes.scores.append(score)
        boxes.places.append(f"{place} of {path.name}")
    return boxes


def _results(path: Path, report: IndexReport) -> Iterator[tuple[str, Any]]:
    """Yield the place and content of each result, of a list or of one a line."""
    text = read_text(str(path), "boxes", "check --source")
    lines = text.strip().split("\n")
    if len(lines) > 1 and all(line.strip()[:1] in ("{", "") for line in lines):
        for i, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"line {i}", parsed_json(line, str(path))
                except ObjcropError:
                    report.leave_out_entry(f"line {i} of {path.name}", f"it is not JSON: {shown(line)}")
        return
    entries = parsed_json(text, str(path))
    if not isinstance(entries, list):
        raise ObjcropError(f"{path} is not COCO results: it must be a list of {{image_id, bbox, score}}.")
    for i, entry in enumerate(entries):
        yield f"entry {i}", entry


def _rows_by_image_id(catalog: Catalog, annotations: str | None, report: IndexReport) -> Callable[[Any], int]:
    """Return the function from an image_id to the catalog's row; it raises a `BadValue` for one that is not there."""
    names, row_of_key = _names_of(catalog)
    if annotations is not None:
        file_of, key_of = _files_by_id(annotations, report)
    else:
        by_number = defaultdict(list)
        for key in row_of_key:
            match = re.fullmatch(r"(?:COCO_[A-Za-z0-9]+_)?([0-9]{1,18})", PurePosixPath(key).stem)
            if match:
                by_number[int(match.group(1))].append(key)

    def row(image_id: Any) -> int:
        if annotations is not None:
            name = file_of.get(key_of(image_id))
            found = None if name is None else names.find(name)
        else:
            found = names.find(image_id) if isinstance(image_id, str) else None
            number_ = plain_id(image_id)
            if found is None and isinstance(number_, int):
                keys = by_number.get(number_, [])
                if len(keys) > 1:
                    raise AmbiguousName(f"that may be {shown(keys[0])} or {shown(keys[1])}")
                found = keys[0] if keys else None
        if found is None:
            way = "" if annotations is not None else "name the instances JSON with --annotations, or "
            raise BadValue(f"image_id {shown(image_id)} is not in the catalog; {way}index the same images")
        return row_of_key[found]

    return row


def _names_of(catalog: Catalog) -> tuple[ImageNames, dict[str, int]]:
    row_of_key = {key: row for row, key in enumerate(catalog.keys())}
    return ImageNames(row_of_key, str(catalog.root), anywhere=True), row_of_key


def _files_by_id(annotations: str, report: IndexReport) -> tuple[dict[Id, str], Callable[[Any], Id]]:
    content = read_json(os.fspath(annotations), "annotations", "check --annotations", once=("images",))
    images = content.get("images") if isinstance(content, dict) else None
    pairs = []
    for i, image in enumerate(images if isinstance(images, list) else []):
        try:
            if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
                raise BadValue(f"it is {shown(image)}, without a file_name")
            plain_id(image.get("id"))
            pairs.append((image["id"], image["file_name"]))
        except BadValue as error:
            report.leave_out_entry(f"{Path(annotations).name} images[{i}]", str(error))
    if not pairs:
        raise ObjcropError(f"{annotations} is not an instances JSON: it lacks images with id and file_name.")
    try:
        return id_table(pairs)
    except BadValue as error:
        raise ObjcropError(f"{annotations} gives two images the same id: {error}; every image needs its own.") from None


def _from_csv(catalog: Catalog, path: Path, annotations: str | None, report: IndexReport) -> _Boxes:
    names, row_of_key = _names_of(catalog)
    boxes = _Boxes([], [], [], [])
    numbers = (*_COLUMNS[1:], "score")
    _, lines = csv_rows(str(path), "boxes", report, needed=_COLUMNS, numbers=numbers, way_out="check --source")
    for line, cell in lines:
        edges = [cell[name] for name in _COLUMNS[1:]]
        if not any(edges):
            continue
        place = f"line {line} of {path.name}"
        try:
            found = names.find(cell["key"])
            if found is None:
                raise BadValue(f"{shown(cell['key'])} is not in the catalog; keys are paths relative to its root")
            x0, y0, x1, y1 = map(number, edges)
            score = number(cell["score"]) if cell.get("score") else 1.0
        except AmbiguousName as error:
            raise ObjcropError(f"{place}: {error}; write the whole path relative to the catalog's root.") from None
        except BadValue as error:
            report.leave_out_entry(place, str(error))
            continue
        boxes.rows.append(row_of_key[found])
        boxes.corners.append((x0, y0, x1, y1))
        boxes.scores.append(score)
        boxes.places.append(place)
    return boxes


def _from_npy(catalog: Catalog, path: Path, annotations: str | None, report: IndexReport) -> _Boxes:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header may promise more than there is
    except Exception as error:  # a damaged header raises what its parser meets
        raise ObjcropError(f"{path} is not a whole npy file ({' '.join(str(error).split())}).") from None
    if not isinstance(array, np.ndarray):
        raise ObjcropError(f"{path} is not an npy file of one array.")
    if array.ndim != 2 or array.shape[1] not in (5, 6) or array.dtype.kind not in "fiu":
        raise ObjcropError(
            f"{path} holds {array.dtype} {array.shape}; it must be numbers (M, 5 or 6): row, x0, y0, x1, y1, score."
        )
    table: npt.NDArray[np.float64] = np.array(array, np.float64)
    row = table[:, 0]
    there = (row >= 0) & (row < len(catalog)) & (row == np.rint(row))
    for i in np.flatnonzero(~there):
        reason = f"it is for row {row[i]:g}, but the catalog has {len(catalog)} rows"
        report.leave_out_entry(f"entry {i} of {path.name}", reason)
    kept = table[there]
    scores = kept[:, 5] if kept.shape[1] == 6 else np.ones(len(kept))
    places = [f"entry {i} of {path.name}" for i in np.flatnonzero(there)]
    corners = [(x0, y0, x1, y1) for x0, y0, x1, y1 in kept[:, 1:5].tolist()]
    return _Boxes(kept[:, 0].astype(np.int64).tolist(), corners, scores.tolist(), places)
