"""Catalogs of one data set with one list of classes, though some of its lists lack some of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from objcrop.catalog import Catalog
from objcrop.errors import UsageError


def same_classes(one: Catalog, other: Catalog) -> tuple[Catalog, Catalog]:
    """Return the catalogs with the same classes, joined by name: those of `one`, then what `other` adds.

    Raises:
        UsageError: no class is in both.
    """
    if one.classes == other.classes:
        return one, other
    if not set(one.classes) & set(other.classes):
        raise UsageError(
            f"the two catalogs have different classes, none of them in both ({_some(one)}; {_some(other)}); index both "
            "from annotations of one set."
        )
    classes = list(dict.fromkeys(one.classes + other.classes))
    return _with_classes(one, classes), _with_classes(other, classes)


def _with_classes(catalog: Catalog, classes: list[str]) -> Catalog:
    if not catalog.classes:
        return catalog
    ids = np.array([classes.index(name) for name in catalog.classes], np.int32)
    table = catalog.table
    for name in ("labels", "box_classes"):
        lists = table[name].combine_chunks()
        offsets = lists.offsets.to_numpy()
        begin, end = int(offsets[0]), int(offsets[-1])
        values: npt.NDArray[np.int32] = ids[lists.values.to_numpy()[begin:end]]
        if name == "labels":  # sorted within each image
            rows = np.repeat(np.arange(len(catalog)), np.diff(offsets))
            values = values[np.lexsort((values, rows))]
        column = pa.ListArray.from_arrays(pa.array(offsets - begin), pa.array(values))
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return catalog.with_table(table, catalog.fingerprint, classes)


def _some(catalog: Catalog) -> str:
    names = ", ".join(catalog.classes[:3]) or "none"
    return f"{names}, …" if len(catalog.classes) > 3 else names
