"""The box table: where the objects are, in catalog row order, from one proposal method.

Columns `boxes: list<fixed_size_list<float32, 4>>` (x0, y0, x1, y1, half-open, absolute pixels of the upright image) and
`scores: list<float32>`. The metadata names method, parameters and the catalog's fingerprint; boxes that were made for
another catalog are refused. An `.arrow` file is mapped, so ten million rows open at once and cost no memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from objcrop.arrow_file import damaged, first_disorder, read_table, write_table
from objcrop.errors import ObjcropError, UsageError

VERSION = 1
REMAKE = "objcrop propose"
SCHEMA = pa.schema([("boxes", pa.list_(pa.list_(pa.float32(), 4))), ("scores", pa.list_(pa.float32()))])


class Images(Protocol):
    """What boxes need to know of a catalog."""

    fingerprint: str

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Upright width and height, int32 (N, 2)."""
        ...

    def sizes_of(self, rows: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Upright width and height of some, int32 (n, 2)."""
        ...


class BoxTable:
    """Boxes and scores of every image of one catalog.

    Attributes:
        method: the proposal method that made them.
        parameters: its options.
        catalog_fingerprint: of the catalog they were made for.
        fingerprint: 16 hex digits over boxes and scores.
        clipped: boxes clipped to their image when the table was made here; 0 for a loaded one.
        dropped: boxes dropped for having no area, or not finite corners; 0 for a loaded one.
    """

    def __init__(self, table: pa.Table, facts: Mapping[str, Any]) -> None:
        self.table = table
        self.method: str = facts["method"]
        self.parameters: dict[str, Any] = dict(facts["parameters"])
        self.catalog_fingerprint: str = facts["catalog"]
        self.fingerprint: str = facts["fingerprint"]
        self.clipped = self.dropped = 0
        self._file: str | None = None
        self._images: Images | None = None  # set for a loaded table, whose boxes are checked as they are used

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"BoxTable({len(self.values)} boxes on {len(self)} images, {self.method}, {self.fingerprint})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader's worker maps the file again instead of receiving the boxes through a pipe.
        if self._file is not None:
            return BoxTable.load, (self._file, self._images)
        return BoxTable, (self.table, self._facts())

    def __getitem__(self, row: int) -> npt.NDArray[np.float32]:
        """Return the boxes of one image, float32 (k, 4)."""
        begin, end = (int(at[0]) for at in self._lists_of(np.array([row])))
        return self._sound(self.values[begin:end], np.full(end - begin, row))

    @cached_property
    def offsets(self) -> npt.NDArray[np.int32]:
        """Where each image's boxes begin in `values`, (N + 1,); a view of the file."""
        row = first_disorder(self._offsets, len(self.values))
        if row is not None:
            raise self._damaged(f"the boxes of row {row} do not lie in the file")
        return self._offsets

    @cached_property
    def values(self) -> npt.NDArray[np.float32]:
        """All boxes one after the other, float32 (M, 4); a view of the file."""
        return self._boxes.values.values.to_numpy().reshape(-1, 4)

    @cached_property
    def scores(self) -> npt.NDArray[np.float32]:
        """A score a box, float32 (M,), the higher the better; a view of the file."""
        scores = _only_chunk(self.table, "scores").values.to_numpy()
        if len(scores) < len(self.values):
            raise self._damaged(f"there are {len(self.values)} boxes, but {len(scores)} scores")
        return scores[: len(self.values)]

    def counts(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return how many boxes each of these images has, int64 of the shape of `rows`."""
        begin, end = self._lists_of(np.asarray(rows, np.int64))
        return end - begin

    def gather(self, rows: npt.ArrayLike, which: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return box number `which` of each of these images, float32 (n, 4); both are integers (n,)."""
        at = np.asarray(rows, np.int64)
        begin, _ = self._lists_of(at)
        return self._sound(self.values[begin + np.asarray(which, np.int64)], at)

    @cached_property
    def _offsets(self) -> npt.NDArray[np.int32]:
        return self._boxes.offsets.to_numpy()

    def _lists_of(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return where the boxes of these images begin and end in `values`, of the shape of `rows`."""
        begin, end = self._offsets[rows].astype(np.int64), self._offsets[rows + 1].astype(np.int64)
        wrong = (begin < 0) | (end < begin) | (end > len(self.values))
        if wrong.any():
            raise self._damaged(f"the boxes of row {int(rows[wrong][0])} do not lie in the file")
        return begin, end

    def _sound(self, boxes: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return these boxes of these images, which must be boxes: they may come from a damaged file."""
        if self._file is None:
            return boxes
        good = (boxes[:, :2] >= 0).all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1) & np.isfinite(boxes[:, 2:]).all(1)
        if self._images is not None:
            good &= (boxes[:, 2:] <= self._images.sizes_of(rows)).all(1)
        if not good.all():
            at = int(good.argmin())
            raise self._damaged(f"row {int(rows[at])} has the box {boxes[at].tolist()}")
        return boxes

    def _damaged(self, what: str) -> ObjcropError:
        return damaged(self._file or "the box table", what, REMAKE)

    @classmethod
    def from_arrays(
        cls,
        catalog: Images,
        boxes: Sequence[npt.ArrayLike],
        scores: Sequence[npt.ArrayLike] | None = None,
        *,
        method: str = "import",
        parameters: Mapping[str, Any] | None = None,
    ) -> BoxTable:
        """Make a table from one array an image.

        Boxes are clipped to their image; those that are not finite or have no area left are dropped; both are counted.

        Args:
            catalog: the images, N rows.
            boxes: N arrays (k, 4) of x0, y0, x1, y1 in upright pixels, the best first where the order means anything.
            scores: N arrays (k,), or None for all 1.
            method: the proposal method.
            parameters: its options, plain numbers and strings.

        Raises:
            UsageError: the number of arrays is not the catalog's, or an array has another shape; the row is named.
        """
        n = len(catalog.sizes)
        if len(boxes) != n or (scores is not None and len(scores) != n):
            given = len(boxes) if len(boxes) != n else len(scores or ())
            raise UsageError(f"boxes or scores came for {given} images, but the catalog has {n}: one array an image.")
        corners = [np.asarray(b, np.float32) for b in boxes]
        for row, b in enumerate(corners):
            if b.size and (b.ndim != 2 or b.shape[1] != 4):
                raise UsageError(f"the boxes of row {row} have shape {b.shape}; they must be (k, 4): x0, y0, x1, y1.")
        counts = np.array([b.size // 4 for b in corners], np.int64)
        flat = np.concatenate([b.reshape(-1, 4) for b in corners]) if n else np.zeros((0, 4), np.float32)
        flat_scores = np.ones(len(flat), np.float32)
        if scores is not None:
            lengths = np.array([np.size(s) for s in scores], np.int64)
            if (lengths != counts).any():
                row = int(np.argmax(lengths != counts))
                raise UsageError(f"row {row} has {counts[row]} boxes but {lengths[row]} scores; give one a box.")
            if len(flat):
                flat_scores = np.concatenate([np.asarray(s, np.float32).reshape(-1) for s in scores])
        return cls.from_flat(catalog, np.repeat(np.arange(n), counts), flat, flat_scores, method, parameters or {})

    @classmethod
    def from_flat(
        cls,
        catalog: Images,
        rows: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        method: str,
        parameters: Mapping[str, Any],
    ) -> BoxTable:
        """Make a table from flat arrays.

        Args:
            catalog: the images, N rows.
            rows: (M,) which image each box belongs to, in ascending order.
            boxes: float32 (M, 4).
            scores: float32 (M,).
            method: the proposal method.
            parameters: its options.
        """
        limit = np.tile(catalog.sizes[rows], (1, 2)).astype(np.float32)
        finite = np.isfinite(boxes).all(axis=1) & ~np.isnan(scores)
        inside = np.clip(np.where(finite[:, None], boxes, 0), 0, limit)
        good = finite & (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
        clipped = int((good & (inside != boxes).any(axis=1)).sum())
        rows, inside, scores = rows[good], inside[good], scores[good].astype(np.float32)

        offsets = np.zeros(len(catalog.sizes) + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=len(catalog.sizes)), out=offsets[1:])
        if offsets[-1] >= 2**31:
            raise UsageError(f"{offsets[-1]} boxes are more than a table can hold (2**31 - 1): keep fewer an image.")
        starts = pa.array(offsets.astype(np.int32))
        corners = pa.FixedSizeListArray.from_arrays(pa.array(inside.reshape(-1)), 4)
        columns = [pa.ListArray.from_arrays(starts, corners), pa.ListArray.from_arrays(starts, pa.array(scores))]
        facts = {
            "method": method,
            "parameters": dict(parameters),
            "catalog": catalog.fingerprint,
            "fingerprint": _fingerprint(offsets, inside, scores),
        }
        made = cls(pa.Table.from_arrays(columns, schema=SCHEMA), facts)
        made.clipped, made.dropped = clipped, int((~good).sum())
        return made

    def lines(self) -> list[str]:
        """Return what was clipped and dropped, as lines for the screen."""
        lines = []
        if self.clipped:
            lines.append(f"{self.clipped} boxes clipped to their image")
        if self.dropped:
            lines.append(f"{self.dropped} boxes dropped (no area inside the image, or not finite)")
        without = int((np.diff(self.offsets) == 0).sum())
        if without:
            lines.append(f"{without} images have no box; their whole frame stands in")
        return lines

    def _facts(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "parameters": self.parameters,
            "catalog": self.catalog_fingerprint,
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def _boxes(self) -> pa.ListArray:
        return _only_chunk(self.table, "boxes")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `.arrow` (uncompressed, to be memory-mapped) or `.parquet` (compact), whole or not at all."""
        write_table(self.table, "boxes", VERSION, self._facts(), path)

    @staticmethod
    def load(path: str | os.PathLike[str], catalog: Images | None = None) -> BoxTable:
        """Open a table written by `save`; `.arrow` is mapped, not read.

        Args:
            path: `.arrow` or `.parquet` file.
            catalog: refuse boxes that were made for another one.

        Raises:
            ObjcropError: the file is missing, damaged, of another kind, or made for another catalog.
        """
        of = {"method": str, "parameters": dict, "catalog": str, "fingerprint": str}
        boxes = BoxTable(*read_table(path, "boxes", VERSION, of, SCHEMA, REMAKE))
        boxes._file, boxes._images = os.path.abspath(path), catalog
        if catalog is not None and boxes.catalog_fingerprint != catalog.fingerprint:
            raise ObjcropError(
                f"{path} was made for the catalog {boxes.catalog_fingerprint}, not for this one "
                f"({catalog.fingerprint}): make boxes for it with `objcrop propose --method {boxes.method}`."
            )
        return boxes


def boxes_at(boxes: BoxTable | str | os.PathLike[str], catalog: Images) -> BoxTable:
    """Return boxes that were given as such, or as the file that `objcrop propose` wrote.

    Raises:
        UsageError: a table that was made for another catalog.
        ObjcropError: a file that cannot be used, see `BoxTable.load`.
    """
    if not isinstance(boxes, BoxTable):
        return BoxTable.load(boxes, catalog)
    if boxes.catalog_fingerprint != catalog.fingerprint:
        raise UsageError("the boxes were made for another catalog; make them for this one with `objcrop propose`.")
    return boxes


def _only_chunk(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _fingerprint(offsets: npt.NDArray, boxes: npt.NDArray, scores: npt.NDArray) -> str:
    digest = hashlib.sha256()
    for array in (offsets, boxes, scores):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
