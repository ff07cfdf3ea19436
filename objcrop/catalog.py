"""The catalog: one row an image, an Arrow table that pandas, DuckDB and Polars open too.

Columns: `key` (POSIX path relative to the root, rows are sorted by it), `width` and `height` (upright pixels),
`orientation` (EXIF 1..8), `labels` (class ids, sorted, unique), `boxes` (x0,y0,x1,y1, half-open, absolute pixels of the
upright image), and for each box `box_classes`, `difficult`, `crowd` and `masks` (COCO RLE as JSON, or null).

Where an image is no file of its own, `source` is the number of the tar, zip, Arrow or Parquet file that holds it (the
list of them is in the metadata), `offset` and `length` say which of its bytes it is; else all three are null. Sizes,
keys and orientations make the fingerprint, sources do not: boxes made from a folder serve for a tar of it too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from objcrop.arrow_file import damaged, first_disorder, read_table, sound_texts, sound_texts_at, write_table
from objcrop.catalog_checks import inside, is_rle
from objcrop.catalog_table import SCHEMA, VERSION, FlatAnnotations, Ranges, fingerprint_of, table_of
from objcrop.disk_cache import DiskCache
from objcrop.errors import ObjcropError, way_out
from objcrop.image_bytes import ImageBytes
from objcrop.place import Place, SourceFile, is_address, root_of, source_of, under

REMAKE = "objcrop index"


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
        root: folder that keys and sources are relative to, an absolute path or an address (`s3://bucket/photos`).
        classes: class names; the position is the class id.
        fingerprint: 16 hex digits over keys, sizes and orientations. Boxes made for a catalog carry it.
        sources: the files that hold many images each; empty where every image is a file.
        disk_cache: where encoded images are kept on their way; None for nowhere.
    """

    def __init__(
        self,
        table: pa.Table,
        root: str | os.PathLike[str],
        classes: Sequence[str],
        fingerprint: str,
        sources: Sequence[SourceFile] = (),
    ):
        self.table = table
        self.root = root_of(root)
        self.classes = list(classes)
        self.fingerprint = fingerprint
        self.sources = list(sources)
        self.disk_cache: DiskCache | None = None
        self._file: str | None = None

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"Catalog({len(self)} images, {len(self.classes)} classes, root={self.root!r}, {self.fingerprint})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader's worker maps the file again instead of receiving the rows through a pipe.
        if self._file is not None:
            return Catalog.load, (self._file, self.root), {"disk_cache": self.disk_cache}
        whole = (self.table, self.root, self.classes, self.fingerprint, self.sources)
        return Catalog, whole, {"disk_cache": self.disk_cache}

    @cached_property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Upright width and height of every image, int32 (N, 2); a copy, see `sizes_of`."""
        return self._sound_sizes(np.arange(len(self)))

    def sizes_of(self, rows: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Return the upright width and height of some images, int32 (n, 2), of `rows`, integers (n,).

        Only these are read from a mapped file: what is asked for batch by batch takes no memory.
        """
        return self._sound_sizes(np.asarray(rows, np.int64))

    @cached_property
    def orientations(self) -> npt.NDArray[np.int8]:
        """EXIF orientation 1..8 of every image, int8 (N,)."""
        return self._sound_orientations(np.arange(len(self)))

    def orientation(self, row: int) -> int:
        """Return the EXIF orientation 1..8 of the image in `row`."""
        return int(self.orientations_of([row])[0])

    def orientations_of(self, rows: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """Return the EXIF orientation 1..8 of some images, int8 (n,), of `rows`, integers (n,); see `sizes_of`."""
        return self._sound_orientations(np.asarray(rows, np.int64))

    @cached_property
    def box_offsets(self) -> npt.NDArray[np.int64]:
        """Where each image's boxes begin in `all_annotations()`, int64 (N + 1,)."""
        return self._box_bounds(0, len(self)).astype(np.int64)

    def key(self, row: int) -> str:
        """Return the key of the image in `row`: its path relative to the root."""
        return self.keys(range(int(row), int(row) + 1))[0]

    def keys(self, rows: Sequence[int] | None = None) -> list[str]:
        """Return the keys of some rows, of all where none are named."""
        some = range(len(self)) if rows is None else rows
        try:
            if isinstance(some, range):
                return sound_texts(self._column("key"), some.start, some.stop).to_pylist()
            return sound_texts_at(self._column("key"), some)
        except ValueError as error:
            which = f"row {some[0]}" if len(some) == 1 else "a row"
            raise self._damaged(f"the key of {which} is no text ({str(error).splitlines()[0]})") from None

    @cached_property
    def image_bytes(self) -> ImageBytes:
        """Reads the encoded bytes of rows."""
        return ImageBytes(self)

    def cached_on_disk(self, folder: str | os.PathLike[str], gigabytes: float) -> Catalog:
        """Return this catalog, its images kept in a folder once they are read: for what lies far away."""
        cached = self.with_table(self.table, self.fingerprint)
        cached._file, cached.disk_cache = self._file, DiskCache(folder, gigabytes)
        return cached

    def path(self, row: int) -> str:
        """Return the path or address of the image in `row`; of one inside another file, that one's and the key."""
        return str(self.place(row))

    def place(self, row: int) -> Place:
        """Return where the bytes of the image in `row` lie."""
        key, row = self.key(row), int(row)
        if self.all_are_files:
            return Place(under(self.root, key), key)
        number, offset, length = (self._column(name)[row].as_py() for name in ("source", "offset", "length"))
        if number is None:
            return Place(under(self.root, key), key)
        if not 0 <= number < len(self.sources) or offset is None or length is None or offset < 0 or length < -1:
            raise self._damaged(f"row {row} lies at {offset}, {length} of source {number}")
        source = self.sources[number]
        if length + offset > source.size or (length < 0) != bool(source.column):
            raise self._damaged(f"row {row} lies at {offset}, {length} of {source.name}")
        return Place(under(self.root, source.name), key, source, offset, length)

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

    def flat_labels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Return the labels of all images as rows and class ids, integers (L,) each, in row order."""
        offsets = self._label_offsets
        rows = np.repeat(np.arange(len(self)), np.diff(offsets))
        return rows, self._known(self._lists["labels"].values.to_numpy()[offsets[0] : offsets[-1]])

    def annotations(self, row: int) -> Annotations:
        """Return the ground truth of the image in `row`; k may be 0."""
        return self._annotations(int(row), int(row) + 1)

    def all_annotations(self) -> Annotations:
        """Return the ground truth of all images, in row order; `box_offsets` says whose is whose."""
        return self._annotations(0, len(self))

    def masks(self, row: int) -> list[dict[str, Any] | None]:
        """Return, for each box of `row`, its mask as COCO RLE ({"size": [h, w], "counts": str}, upright) or None."""
        begin, end = self._box_bounds(row, row + 1).tolist()
        texts = self._sound_masks(begin, end).to_pylist()
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
        ranges: Ranges | None = None,
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
            ranges: where the images lie that are not files of their own; None where all are.

        Raises:
            ObjcropError: a key comes twice, a size is not positive, a class id is unknown, a box is outside its image.
        """
        annotations = FlatAnnotations(boxes, box_rows, box_classes, difficult, crowd, masks, label_rows, label_classes)
        table, fingerprint = table_of(keys, sizes, orientations, classes, annotations, ranges)
        return Catalog(table, root, classes, fingerprint, () if ranges is None else ranges.sources)

    @staticmethod
    def from_files(
        paths: Sequence[str | os.PathLike[str]],
        labels: Sequence[str | Sequence[str] | None] | None = None,
        boxes: Sequence[npt.ArrayLike] | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> Catalog:
        """Make a catalog from lists of files, their classes and boxes; the files' headers are read.

        Files and boxes that cannot be used are left out and warned of, with the reason.

        Args:
            paths: (N,) image files, each once; relative to the root, or to the working folder without one.
            labels: (N,) class name of each, or several, or None for none; one that has boxes has one label for all, or
                one for each. Boxes are of the class "object" where none has a label.
            boxes: (N,) of (k, 4) x0,y0,x1,y1, half-open pixels of the upright image; k may be 0.
            root: folder, or its address, that the catalog's keys are relative to; the deepest that holds all files when
                left out.

        Raises:
            UsageError: the lists do not fit together, a file comes twice or does not lie below the root.
            ObjcropError: the root is not there, or no image is left.
        """
        from objcrop.formats.from_files import catalog_from_files

        return catalog_from_files(paths, labels, boxes, root)

    def take(self, rows: npt.ArrayLike) -> Catalog:
        """Return the catalog of some rows, integers (n,) each once, with all that is known of them."""
        try:  # of offsets that lie elsewhere, taking reads anywhere
            self.table.validate(full=True)
        except pa.ArrowInvalid as error:
            raise self._damaged(" ".join(str(error).split())) from None
        some = self.table.take(pa.array(np.sort(np.asarray(rows, np.int64)))).combine_chunks()
        sizes = np.stack([some[name].to_numpy() for name in ("width", "height")], 1)
        keys = some["key"].chunk(0) if len(some) else pa.array([], pa.string())
        fingerprint = fingerprint_of(keys, sizes, some["orientation"].to_numpy())
        return self.with_table(some, fingerprint)

    def with_table(self, table: pa.Table, fingerprint: str, classes: Sequence[str] | None = None) -> Catalog:
        """Return a catalog of other rows or annotations of the same images, which lie where they lie."""
        made = Catalog(table, self.root, self.classes if classes is None else classes, fingerprint, self.sources)
        made.disk_cache = self.disk_cache
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `.arrow` (uncompressed, to be memory-mapped) or `.parquet` (compact), whole or not at all."""
        facts: dict[str, Any] = {"root": self.root, "classes": self.classes, "fingerprint": self.fingerprint}
        facts["sources"] = [source._asdict() for source in self.sources]
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
        of = {"root": str, "classes": list, "fingerprint": str, "sources": list}
        table, facts = read_table(
            path, "catalog", VERSION, of, SCHEMA, REMAKE, nullable=("masks", "source", "offset", "length")
        )
        if not all(isinstance(name, str) for name in facts["classes"]):
            raise damaged(os.fspath(path), "a class in its metadata is no text", REMAKE)
        sources = [source for facts_of in facts["sources"] if (source := source_of(facts_of)) is not None]
        if len(sources) < len(facts["sources"]):
            raise damaged(os.fspath(path), "a source in its metadata is none", REMAKE)
        catalog = Catalog(table, root or facts["root"], facts["classes"], facts["fingerprint"], sources)
        catalog._file = os.path.abspath(path)
        if is_address(catalog.root):
            return catalog
        if not os.path.isdir(catalog.root):
            raise ObjcropError(f"The image folder {catalog.root} of {path} is not there; {_moved()}.")
        some = {0, len(catalog) // 2, len(catalog) - 1} if len(catalog) else set()
        places = [catalog.place(row).path for row in sorted(some)]
        if some and not any(is_address(place) or os.path.exists(place) for place in places):
            raise ObjcropError(f"{path} expects {places[0]}, which is not there; {_moved()}.")
        return catalog

    def _sound_sizes(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        sizes = np.stack([side[rows] for side in self._sides], -1)
        wrong = (sizes < 1).any(-1)
        if wrong.any():
            raise self._damaged(f"row {rows[wrong.argmax()]} has the size {sizes[wrong.argmax()].tolist()}")
        return sizes

    def _sound_orientations(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
        orientations = self._turns[rows]
        wrong = (orientations < 1) | (orientations > 8)
        if wrong.any():
            found = orientations[wrong.argmax()]
            raise self._damaged(f"row {rows[wrong.argmax()]} has the orientation {found}, which is not 1 to 8")
        return orientations

    @cached_property
    def all_are_files(self) -> bool:
        """Whether each image is a file of its own."""
        return self._column("source").null_count == len(self)

    @cached_property
    def _sides(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        return self._column("width").to_numpy(), self._column("height").to_numpy()

    @cached_property
    def _turns(self) -> npt.NDArray[np.int8]:
        return self._column("orientation").to_numpy()

    def _sound_masks(self, begin: int, end: int) -> pa.StringArray:
        """Return the masks of the boxes `begin` up to `end`, as text."""
        try:
            return sound_texts(self._lists["masks"].values, begin, end)
        except ValueError as error:
            raise self._damaged(f"a mask is no text ({str(error).splitlines()[0]})") from None

    def _box_bounds(self, first: int, last: int) -> npt.NDArray[np.int32]:
        """Return where the boxes of rows `first` up to `last` begin and end, which must be in the file."""
        bounds = self._lists["boxes"].offsets.to_numpy()[first : last + 1]
        names = ("boxes", "box_classes", "difficult", "crowd", "masks")
        row = first_disorder(bounds, min(len(self._lists[name].values) for name in names))
        if row is not None:
            raise self._damaged(f"the boxes of row {first + row} do not lie in the file")
        return bounds

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
            raise self._damaged(
                f"labels run from {ids.min()} to {ids.max()}, but there are {len(self.classes)} of them"
            )
        return ids

    @cached_property
    def _lists(self) -> dict[str, pa.ListArray]:
        return {field.name: self._column(field.name) for field in SCHEMA if pa.types.is_list(field.type)}

    def _column(self, name: str) -> pa.Array:
        column = self.table.column(name)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def _annotations(self, first: int, last: int) -> Annotations:
        """Return the ground truth of rows `first` up to `last`, checked: they may come from a damaged file."""
        offsets = self._box_bounds(first, last)
        begin, end = int(offsets[0]), int(offsets[-1])

        def part(name: str) -> pa.Array:
            return self._lists[name].values.slice(begin, end - begin)

        found = Annotations(
            part("boxes").flatten().to_numpy().reshape(-1, 4),
            part("box_classes").to_numpy(),
            part("difficult").to_numpy(zero_copy_only=False),
            part("crowd").to_numpy(zero_copy_only=False),
        )
        within = inside(found.boxes, np.repeat(self.sizes_of(np.arange(first, last)), np.diff(offsets), axis=0))
        known = (found.classes >= 0) & (found.classes < len(self.classes))
        if not (within & known).all():
            at = int((within & known).argmin())
            row = first + int(np.searchsorted(offsets, begin + at, side="right")) - 1
            box = f"the box {found.boxes[at].tolist()} of class {found.classes[at]}"
            raise self._damaged(f"row {row} of size {self.sizes_of([row])[0].tolist()} has {box}")
        return found

    def _damaged(self, what: str) -> ObjcropError:
        return damaged(self._file or f"the catalog of {self.root}", what, REMAKE)


def catalog_at(catalog: Catalog | str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Catalog:
    """Return a catalog that was given as such, as the file that `objcrop index` wrote, or as a folder of photos.

    A folder (or its address) is indexed in memory as `objcrop index` does it; what is left out is warned of.
    """
    if isinstance(catalog, Catalog):
        return catalog
    if not is_address(catalog) and not os.path.isdir(catalog):
        return Catalog.load(catalog, root)
    from objcrop.formats import index

    indexed, report = index(catalog, root=root)
    report.warn(os.fspath(catalog))
    return indexed


def _moved() -> str:
    return way_out("say with --root where the images are now", "move it back, or index the images where they are now")
