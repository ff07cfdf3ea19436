"""Labels and boxes from a table's columns: numbers or names, lists of structs or structs of lists, corners or sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from objcrop.errors import ObjcropError, printable, shown
from objcrop.formats import FlatBoxes, FlatLabels
from objcrop.formats.image_columns import ImageColumns
from objcrop.formats.index_report import IndexReport
from objcrop.formats.plain_values import ONE_CLASS

TOLERANCE = 1.0  # pixels that a box may reach over its image's edge and still count as inside, for annotators' rounding


class Named(NamedTuple):
    """Classes of things of rows: row int64 (n,); number int64 (n,) in `names`, -1 for none."""

    row: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    names: list[str]


class Boxes(NamedTuple):
    """Boxes of rows as they are written: numbers float64 (M, 4); crowd, difficult bool (M,); classes, and whose."""

    numbers: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    difficult: npt.NDArray[np.bool_]
    classes: Named


def named_classes(row: npt.NDArray[np.int64], values: pa.Array, names: Sequence[str] | None) -> Named:
    """Return the classes that values name: by number where there are names, by themselves where there are none.

    Args:
        row: (n,) whose they are.
        values: (n,) integers or text; null, -1 and "" are none.
        names: of the numbers 0, 1, …; None where a number is its own name.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_integer(values.type):
        numbers = values.cast(pa.int64(), safe=False).fill_null(-1).to_numpy(zero_copy_only=False)
        if names is not None:
            return Named(row, np.where((numbers >= 0) & (numbers < len(names)), numbers, -1), list(names))
        known = np.unique(numbers[numbers != -1])
        return Named(
            row, np.where(numbers != -1, np.searchsorted(known, numbers), -1), [str(n) for n in known.tolist()]
        )
    known = pc.unique(values.filter(pc.not_equal(values, ""))).sort()
    number = pc.index_in(values, known).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Named(row, number, known.to_pylist())


def labels_of(table: pa.Table, columns: ImageColumns, place: Callable[[int], str], report: IndexReport) -> Named | None:
    """Return the classes of each row of a table, None where no column has any.

    Args:
        table: the columns.
        columns: which has what.
        place: what to call each row.
        report: gets numbers that are no class.
    """
    if columns.label is None:
        return None
    row, values = flat(one_array(table.column(columns.label)))
    named = named_classes(row, values, columns.label_names)
    return _known(named, values, place, report)


def boxes_of(table: pa.Table, columns: ImageColumns, place: Callable[[int], str], report: IndexReport) -> Boxes | None:
    """Return the boxes of each row of a table, None where no column has any; arguments as of `labels_of`."""
    if columns.boxes is None:
        return None
    fields = _fields(table, columns)
    row, boxes = fields[columns.box]
    length = pc.list_value_length(boxes).fill_null(-1).to_numpy(zero_copy_only=False)
    four = length == 4
    for i in np.flatnonzero(~four).tolist():
        what = "null" if length[i] < 0 else f"of {length[i]} numbers, not 4"
        report.leave_out_entry(place(row[i]), f"a box is {what}")
    numbers = pc.list_flatten(boxes.filter(pa.array(four))).cast(pa.float64(), safe=False)
    corners = numbers.fill_null(np.nan).to_numpy(zero_copy_only=False).reshape(-1, 4)

    def of_each(name: str | None) -> pa.Array | None:
        if name is None or name not in fields:
            return None
        other, values = fields[name]
        if not np.array_equal(other, row):
            n = int(max(row.max(initial=0), other.max(initial=0))) + 1
            unlike = np.bincount(row, minlength=n) != np.bincount(other, minlength=n)
            raise ObjcropError(
                f"{place(int(unlike.argmax()))} has not as many {name} as boxes; correct the column, or leave it out."
            )
        return values.filter(pa.array(four))

    category = of_each(columns.category)
    if category is None:
        classes = Named(row[four], np.zeros(int(four.sum()), np.int64), [ONE_CLASS])
        known = four[four]
    else:
        classes = named_classes(row[four], category, columns.category_names)
        known = classes.number >= 0
        for i in np.flatnonzero(~known).tolist():
            report.leave_out_entry(
                place(classes.row[i]), f"a box has the class {shown(category[i].as_py())}, which is none"
            )
    flags = [_flags(of_each(name)) for name in ("iscrowd", "is_crowd", "difficult", "is_difficult")]
    none = np.zeros(int(four.sum()), bool)
    crowd, difficult = (next((flag for flag in pair if flag is not None), none) for pair in (flags[:2], flags[2:]))
    kept = Named(classes.row[known], classes.number[known], classes.names)
    return Boxes(corners[known], crowd[known], difficult[known], kept)


def stated_sizes(table: pa.Table, columns: ImageColumns) -> npt.NDArray[np.int32]:
    """Return the width and height that a table states, int32 (N, 2), 0 where it states none."""
    if not columns.sizes:
        return np.zeros((table.num_rows, 2), np.int32)
    sides = [one_array(table.column(name)).cast(pa.float64(), safe=False).fill_null(0) for name in columns.sizes]
    sizes = np.stack([side.to_numpy(zero_copy_only=False) for side in sides], 1)
    return np.where((sizes > 0) & (sizes < 2**31), sizes, 0).astype(np.int32)


def corners_of(boxes: Boxes, sizes: npt.NDArray[np.int32], said: str | None, source: str) -> npt.NDArray[np.float64]:
    """Return boxes as corners, float64 (M, 4), whichever way they are written.

    COCO writes x, y, width, height, others x0, y0, x1, y1, and tables do not say which. So it is what fits: where one
    reading puts every box inside its image and the other does not, it is that one; else somebody must say.

    Args:
        boxes: M of them.
        sizes: (N, 2) width and height of the images, 0 where they are not known.
        said: "xywh" or "xyxy", None where nobody said.
        source: the set, for the error.

    Raises:
        ObjcropError: both readings fit or neither does, or the boxes are shares of the image.
    """
    numbers, size = boxes.numbers, sizes[boxes.classes.row]
    read = {"xywh": np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]], 1), "xyxy": numbers}
    if said is not None:
        return read[said]
    judged = np.isfinite(numbers).all(1) & (size > 0).all(1)
    if not judged.any():
        return numbers
    if numbers[judged].max() <= 1 and size[judged].min() > 1:
        raise ObjcropError(f"the boxes of {source} are shares of the image, none above 1; write them in pixels.")
    wrong = {name: int((~_inside(corners[judged], size[judged])).sum()) for name, corners in read.items()}
    right = [name for name, count in wrong.items() if not count]
    if len(right) == 1:
        return read[right[0]]
    fit = "fit both ways" if right else f"fit neither way ({wrong['xywh']} not as xywh, {wrong['xyxy']} not as xyxy)"
    raise ObjcropError(
        f"the {len(numbers)} boxes of {source} {fit}; say --box-format xywh (x, y, width, height) or --box-format xyxy "
        "(two corners)."
    )


def _inside(corners: npt.NDArray[np.float64], size: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    low, high = corners[:, :2], corners[:, 2:]
    return np.all((low >= -TOLERANCE) & (low < high) & (high <= size + TOLERANCE), 1)


def joined(
    labels: Named | None, boxes: Boxes | None, corners: npt.NDArray[np.float64] | None, place: Callable[[int], str]
) -> tuple[list[str], FlatLabels | None, FlatBoxes | None]:
    """Return class names, labels and boxes as `catalog_of` takes them; a name in both is one class."""
    names = list(boxes.classes.names) if boxes is not None else []
    if labels is not None:
        names += [name for name in labels.names if name not in set(names)]
    number = {name: i for i, name in enumerate(names)}
    flat_labels = flat_boxes = None
    if labels is not None:
        of = np.array([number[name] for name in labels.names], np.int64)
        there = labels.number >= 0
        flat_labels = FlatLabels(labels.row[there], of[labels.number[there]])
    if boxes is not None and corners is not None:
        row = boxes.classes.row
        flat_boxes = FlatBoxes(row, corners, boxes.classes.number, boxes.difficult, boxes.crowd, row, place)
    return [printable(name) for name in names], flat_labels, flat_boxes


def flat(column: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Return the rows (n,) and values (n,) of a column, those of lists one after the other."""
    if _is_list(column.type):
        return pc.list_parent_indices(column).to_numpy().astype(np.int64), pc.list_flatten(column)
    return np.arange(len(column)), column


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column's chunks as one array."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # several, when pyarrow finds them too large for one
        raise ObjcropError(f"a column of {column.type} has {column.nbytes} bytes, more than is read at once.")
    return array


def _fields(table: pa.Table, columns: ImageColumns) -> dict[str, tuple[npt.NDArray[np.int64], pa.Array]]:
    """Return each field of the boxes' column: whose row each entry is, and the entries."""
    if columns.boxes:
        whole = one_array(table.column(columns.boxes))
        if _is_list(whole.type):
            row, inner = flat(whole)
            return {field.name: (row, pc.struct_field(inner, field.name)) for field in _all_fields(inner.type)}
        arrays = {field.name: pc.struct_field(whole, field.name) for field in _all_fields(whole.type)}
    else:
        arrays = {name: one_array(table.column(name)) for name in (columns.box, columns.category) if name}
    box = arrays[columns.box]
    if not _is_list(box.type.value_type):  # one box a row
        there = np.flatnonzero(box.is_valid().to_numpy(zero_copy_only=False))
        one = {name: values for name, values in arrays.items() if name == columns.box or not _is_list(values.type)}
        return {name: (there, values.take(pa.array(there))) for name, values in one.items()}
    return {name: flat(values) for name, values in arrays.items() if _is_list(values.type)}


def _all_fields(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(i) for i in range(kind.num_fields)]


def _flags(values: pa.Array | None) -> npt.NDArray[np.bool_] | None:
    if values is None or not (pa.types.is_boolean(values.type) or pa.types.is_integer(values.type)):
        return None
    return values.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) != 0


def _known(named: Named, values: pa.Array, place: Callable[[int], str], report: IndexReport) -> Named:
    """Return the classes, numbers that are none listed."""
    if pa.types.is_integer(values.type):
        stated = values.cast(pa.int64(), safe=False).fill_null(-1).to_numpy(zero_copy_only=False)
        for i in np.flatnonzero((named.number < 0) & (stated != -1)).tolist():
            what = f"the label {stated[i]} is none of {len(named.names)} classes"
            report.leave_out_entry(place(named.row[i]), what)
    return named


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
