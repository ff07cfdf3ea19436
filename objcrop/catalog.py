"""The catalog: one row an image, an Arrow table that pandas, DuckDB and Polars open too.

Columns: `key` (POSIX path relative to the root, rows are sorted by it), `width` and `height` (upright pixels),
`orientation` (EXIF 1..8), `labels` (class ids, sorted, unique), `boxes` (x0,y0,x1,y1, half-open, absolute pixels of the
upright image), and for each box `box_classes`, `difficult`, `crowd` and `masks` (COCO RLE as JSON, or null).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from objcrop.arrow_file import damaged, first_disorder, read_table, sound_texts, write_table
from objcrop.catalog_checks import inside, is_rle, known_classes, refuse_outside, refuse_twice
from objcrop.errors import ObjcropError, UsageError, way_out

VERSION = 1
REMAKE = "objcrop index"
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
    ]
)


class Annotations(NamedTuple):
    """Ground truth of one image, or of many one after the other.

    boxes float32 (k, 4) x0,y0,x1,y1 upright pixels; classes int32 (k,); difficult bool (k,); crowd bool (k,).
    """

    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int32]
    difficult: npt.NDArray[np.bool_]
    crowd: npt.NDArray[np.bool_]


class Catalog:
    """Images in key order with sizes, orientations, labels and ground truth; opened lazily from a memory map.

    Attributes:
        table: the Arrow table (columns above).
        root: folder that the keys are relative to.
        classes: class names; the position is the class id.
        fingerprint: 16 hex digits over keys, sizes and orientations. Boxes made for a catalog carry it.
    """

    def __init__(self, table: pa.Table, root: str | os.PathLike[str], classes: Sequence[str], fingerprint: str):
        self.table = table
        self.root = Path(os.path.abspath(root))
        self.classes = list(classes)
        self.fingerprint = fingerprint
        self._file: str | None = None

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"Catalog({len(self)} images, {len(self.classes)} classes, root={str(self.root)!r}, {self.fingerprint})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader's worker maps the file again instead of receiving the rows through a pipe.
        if self._file is not None:
            return Catalog.load, (self._file, str(self.root))
        return Catalog, (self.table, str(self.root), self.classes, self.fingerprint)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Upright width and height of every image, int32 (N, 2)."""
        sizes = np.stack((self._column("width").to_numpy(), self._column("height").to_numpy()), 1)
        if len(sizes) and sizes.min() < 1:
            row = int((sizes < 1).any(1).argmax())
            raise self._damaged(f"row {row} has the size {sizes[row].tolist()}")
        return sizes

    @cached_property
    def orientations(self) -> npt.NDArray[np.int8]:
        """EXIF orientation 1..8 of every image, int8 (N,)."""
        orientations = self._column("orientation").to_numpy()
        wrong = (orientations < 1) | (orientations > 8)
        if wrong.any():
            row = int(wrong.argmax())
            raise self._damaged(f"row {row} has the orientation {orientations[row]}, which is not 1 to 8")
        return orientations

    @cached_property
    def box_offsets(self) -> npt.NDArray[np.int64]:
        """Where each image's boxes begin in `all_annotations()`, int64 (N + 1,)."""
        offsets = self._lists["boxes"].offsets.to_numpy().astype(np.int64)
        names = ("boxes", "box_classes", "difficult", "crowd", "masks")
        row = first_disorder(offsets, min(len(self._lists[name].values) for name in names))
        if row is not None:
            raise self._damaged(f"the boxes of row {row} do not lie in the file")
        return offsets

    def key(self, row: int) -> str:
        """Return the key of the image in `row`: its path relative to the root."""
        return self.keys(range(int(row), int(row) + 1))[0]

    def keys(self, rows: range | None = None) -> list[str]:
        """Return the keys of some neighbouring rows, of all where none are named."""
        some = range(len(self)) if rows is None else rows
        try:
            return sound_texts(self._key_column, some.start, some.stop).to_pylist()
        except ValueError as error:
            which = f"row {some.start}" if len(some) == 1 else "a row"
            raise self._damaged(f"the key of {which} is no text ({str(error).splitlines()[0]})") from None

    def path(self, row: int) -> str:
        """Return the absolute path of the image in `row`."""
        return f"{self.root}/{self.key(row)}"

    def label_matrix(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the multi-hot labels, float32 (n, number of classes), of `rows`, integers (n,)."""
        at = np.asarray(rows, np.int64).reshape(-1)
        offsets, values = self._lists["labels"].offsets.to_numpy(), self._lists["labels"].values.to_numpy()
        first, end = offsets[at].astype(np.int64), offsets[at + 1].astype(np.int64)
        wrong = (first < 0) | (end < first) | (end > len(values))
        if wrong.any():
            raise self._damaged(f"the labels of row {at[wrong.argmax()]} do not lie in the file")
        count = end - first
        # Positions first, first+1, ... of every row, one after the other.
        begin = np.cumsum(count) - count
        position = np.arange(count.sum()) + np.repeat(first - begin, count)
        ids = self._known(values[position])
        matrix = np.zeros((len(at), len(self.classes)), np.float32)
        matrix[np.repeat(np.arange(len(at)), count), ids] = 1.0
        return matrix

    def annotations(self, row: int) -> Annotations:
        """Return the ground truth of the image in `row`; k may be 0."""
        return self._annotations(int(row), int(row) + 1)

    def all_annotations(self) -> Annotations:
        """Return the ground truth of all images, in row order; `box_offsets` says whose is whose."""
        return self._annotations(0, len(self))

    def masks(self, row: int) -> list[dict[str, Any] | None]:
        """Return, for each box of `row`, its mask as COCO RLE ({"size": [h, w], "counts": str}, upright) or None."""
        texts = self._sound_masks(int(self.box_offsets[row]), int(self.box_offsets[row + 1])).to_pylist()
        try:
            masks = [None if text is None else json.loads(text) for text in texts]
        except (ValueError, RecursionError):
            raise self._damaged(f"a mask of row {row} is no JSON") from None
        if not all(mask is None or is_rle(mask) for mask in masks):
            raise self._damaged(f"a mask of row {row} is no COCO RLE")
        return masks

    @staticmethod
    def build(
        root: str | os.PathLike[str],
        keys: Sequence[str],
        sizes: npt.ArrayLike,
        orientations: npt.ArrayLike | None = None,
        *,
        classes: Sequence[str] = (),
        boxes: npt.ArrayLike | None = None,
        box_rows: npt.ArrayLike | None = None,
        box_classes: npt.ArrayLike | None = None,
        difficult: npt.ArrayLike | None = None,
        crowd: npt.ArrayLike | None = None,
        masks: Sequence[str | None] | pa.Array | None = None,
        label_rows: npt.ArrayLike | None = None,
        label_classes: npt.ArrayLike | None = None,
    ) -> Catalog:
        """Make a catalog from flat arrays; rows may come in any order, and are sorted by key.

        Args:
            root: folder that the keys are relative to.
            keys: (N,) POSIX paths relative to `root`, each once.
            sizes: (N, 2) upright width and height in pixels.
            orientations: (N,) EXIF orientation 1..8; all 1 when left out.
            classes: class names.
            boxes: (M, 4) x0,y0,x1,y1, half-open pixels inside the upright image, of all images.
            box_rows: (M,) which entry of `keys` each box belongs to.
            box_classes: (M,) class ids.
            difficult: (M,) bool; all False when left out.
            crowd: (M,) bool; all False when left out.
            masks: (M,) COCO RLE as JSON, or None.
            label_rows: (L,) with `label_classes`: image-level labels. Left out, an image's labels are the classes of
                its boxes, difficult and crowd ones included.
            label_classes: (L,) class ids.

        Raises:
            ObjcropError: a key comes twice, a size is not positive, a class id is unknown, a box is outside its image.
        """
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
        in_row, label = np.divmod(np.unique(pairs), max(len(classes), 1))

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
        table = pa.Table.from_arrays(columns, schema=SCHEMA)
        return Catalog(table, root, classes, _fingerprint(key_array, upright, orientation))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `.arrow` (uncompressed, to be memory-mapped) or `.parquet` (compact), whole or not at all."""
        facts = {"root": self.root.as_posix(), "classes": self.classes, "fingerprint": self.fingerprint}
        write_table(self.table, "catalog", VERSION, facts, path)

    @staticmethod
    def load(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Catalog:
        """Open a catalog written by `save`; `.arrow` is mapped, not read.

        Args:
            path: `.arrow` or `.parquet` file.
            root: folder that now holds the images, when they have moved since the catalog was made.

        Raises:
            ObjcropError: the file is missing, damaged or no catalog, or its images are not under the root.
        """
        of = {"root": str, "classes": list, "fingerprint": str}
        table, facts = read_table(path, "catalog", VERSION, of, SCHEMA, REMAKE, nullable=("masks",))
        if not all(isinstance(name, str) for name in facts["classes"]):
            raise damaged(os.fspath(path), "a class in its metadata is no text", REMAKE)
        catalog = Catalog(table, root or facts["root"], facts["classes"], facts["fingerprint"])
        catalog._file = os.path.abspath(path)
        if not catalog.root.is_dir():
            raise ObjcropError(f"The image folder {catalog.root} of {path} is not there; {_moved()}.")
        some = {0, len(catalog) // 2, len(catalog) - 1} if len(catalog) else set()
        if some and not any(os.path.exists(catalog.path(row)) for row in some):
            raise ObjcropError(f"{path} expects {catalog.path(0)}, which is not there; {_moved()}.")
        return catalog

    def _sound_masks(self, begin: int, end: int) -> pa.StringArray:
        """Return the masks of the boxes `begin` up to `end`, as text."""
        try:
            return sound_texts(self._lists["masks"].values, begin, end)
        except ValueError as error:
            raise self._damaged(f"a mask is no text ({str(error).splitlines()[0]})") from None

    @cached_property
    def _label_offsets(self) -> npt.NDArray[np.int32]:
        offsets = self._lists["labels"].offsets.to_numpy()
        row = first_disorder(offsets, len(self._lists["labels"].values))
        if row is not None:
            raise self._damaged(f"the labels of row {row} do not lie in the file")
        return offsets

    def _known(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return these labels, which must be classes."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self.classes):
            known = f"but there are {len(self.classes)} classes"
            raise self._damaged(f"labels run from {ids.min()} to {ids.max()}, {known}")
        return ids

    @cached_property
    def _key_column(self) -> pa.Array:
        return self._column("key")

    @cached_property
    def _lists(self) -> dict[str, pa.ListArray]:
        return {field.name: self._column(field.name) for field in SCHEMA if pa.types.is_list(field.type)}

    def _column(self, name: str) -> pa.Array:
        column = self.table.column(name)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def _annotations(self, first: int, last: int) -> Annotations:
        """Return the ground truth of rows `first` up to `last`, checked: they may come from a damaged file."""
        offsets = self.box_offsets
        begin, end = int(offsets[first]), int(offsets[last])

        def part(name: str) -> pa.Array:
            return self._lists[name].values.slice(begin, end - begin)

        found = Annotations(
            part("boxes").flatten().to_numpy().reshape(-1, 4),
            part("box_classes").to_numpy(),
            part("difficult").to_numpy(zero_copy_only=False),
            part("crowd").to_numpy(zero_copy_only=False),
        )
        within = inside(found.boxes, np.repeat(self.sizes[first:last], np.diff(offsets[first : last + 1]), axis=0))
        known = (found.classes >= 0) & (found.classes < len(self.classes))
        if not (within & known).all():
            at = int((within & known).argmin())
            row = int(np.searchsorted(offsets, begin + at, side="right")) - 1
            box = f"the box {found.boxes[at].tolist()} of class {found.classes[at]}"
            raise self._damaged(f"row {row} of size {self.sizes[row].tolist()} has {box}")
        return found

    def _damaged(self, what: str) -> ObjcropError:
        return damaged(self._file or f"the catalog of {self.root}", what, REMAKE)


def catalog_at(catalog: Catalog | str | os.PathLike[str]) -> Catalog:
    """Return a catalog that was given as such, or as the file that `objcrop index` wrote."""
    return catalog if isinstance(catalog, Catalog) else Catalog.load(catalog)


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
    try:
        root = os.path.commonpath([str(catalog.root) for catalog in catalogs])
    except ValueError:
        raise ObjcropError("The catalogs' image folders are on different drives and cannot be joined.") from None
    classes = list(dict.fromkeys(name for catalog in catalogs for name in catalog.classes))
    keys, parts = [], []
    first_row = 0
    for catalog in catalogs:
        catalog.keys()  # all are text
        prefix = Path(os.path.relpath(catalog.root, root)).as_posix()
        column = catalog._key_column
        keys.append(column if prefix == "." else pc.binary_join_element_wise(prefix, column, "/"))
        ids = np.array([classes.index(name) for name in catalog.classes], np.int64)
        row = np.arange(first_row, first_row + len(catalog))
        offsets, labels = catalog.box_offsets, catalog._lists["labels"]
        label_offsets = catalog._label_offsets
        truth = catalog.all_annotations()
        masks = catalog._sound_masks(int(offsets[0]), int(offsets[-1]))
        label = catalog._known(labels.values.to_numpy()[label_offsets[0] : label_offsets[-1]])
        label_rows = np.repeat(row, np.diff(label_offsets))
        box_rows = np.repeat(row, np.diff(offsets))
        box_ids = ids[truth.classes]
        parts.append((truth.boxes, box_rows, box_ids, truth.difficult, truth.crowd, masks, label_rows, ids[label]))
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
    )


def _moved() -> str:
    return way_out("say with --root where the images are now", "move it back, or index the images where they are now")


def _int64(values: npt.ArrayLike | None, length: int) -> npt.NDArray[np.int64]:
    flat = np.zeros(0, np.int64) if values is None else np.asarray(values, np.int64).reshape(-1)
    if len(flat) != length:
        raise UsageError(f"Catalog.build got {length} boxes or labels but {len(flat)} rows or classes for them.")
    return flat


def _offsets(rows: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int32]:
    return np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n)))).astype(np.int32)


def _fingerprint(keys: pa.Array, sizes: npt.NDArray[np.int32], orientations: npt.NDArray[np.int8]) -> str:
    digest = hashlib.sha256()
    digest.update(pc.binary_length(keys).to_numpy().astype("<i4").tobytes())
    if len(keys):
        _, offsets, text = keys.buffers()
        first, last = np.frombuffer(offsets, np.int32)[[keys.offset, keys.offset + len(keys)]]
        digest.update(memoryview(text)[first:last])
    digest.update(np.ascontiguousarray(sizes, "<i4").tobytes())
    digest.update(np.ascontiguousarray(orientations, "i1").tobytes())
    return digest.hexdigest()[:16]
