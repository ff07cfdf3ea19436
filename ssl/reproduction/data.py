"""The catalogs of a table: which it needs, whether those that are given will do, and what they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from objcrop.catalog import Catalog, catalog_at
from objcrop.errors import UsageError, one_of, way_out
from objcrop.ssl.recipe_rows import needed
from objcrop.ssl.reproduction.table import PROBE, Table, published, transfers_of
from objcrop.ssl.training.recipe import needs_of
from objcrop.ssl.transfer.transfer import fitting


class Given(NamedTuple):
    """A catalog's file, how many images it has, and a digest of what it holds.

    Of one that was not given the file is its name, and the others are None.
    """

    file: str
    images: int | None
    content: str | None


def names_of_data(table: Table) -> list[str]:
    """Return the names of the data that the rows of a table are pretrained on, learn from and are tested on."""
    trained = [needs_of(row.recipe)["data"] for row in table.rows if row.trained and "data" in needs_of(row.recipe)]
    transfers = [each for row in table.rows for each in transfers_of(row)]
    return list(dict.fromkeys([*trained, *(each.train for each in transfers), *(each.test for each in transfers)]))


def names_of_one_class(table: Table) -> set[str]:
    """Return the names of the data whose images must have one class each: those that top-1 is measured on."""
    rows = [row for row in table.rows if "top-1" in published(row)]
    return {name for row in rows for each in transfers_of(row) for name in (each.train, each.test)}


def given_data(table: Table, files: Mapping[str, str]) -> tuple[dict[str, Given], list[str]]:
    """Return the data that a table needs by name, and a sentence for each that is missing or will not do.

    Args:
        table: it.
        files: catalogs by name.

    Raises:
        UsageError: data that the table does not need.
        ObjcropError: a catalog that cannot be read.
    """
    names = names_of_data(table)
    for name in files:
        one_of(name, names, "data")
    catalogs = {name: catalog_at(files[name]) for name in names if name in files}
    wrong, found = [], {}
    for name in names:
        says, command = needed("data")[name]
        if name in catalogs:
            found[name] = Given(files[name], len(catalogs[name]), content_of(catalogs[name]))
            lacking = _lacks(catalogs[name], name, table)
            wrong += [f"{name}, {files[name]}, has not {what}; make it by `{command}`." for what in lacking]
        else:
            found[name] = Given(name.upper(), None, None)
            way = way_out(f"give --data {name}=CATALOG", f"give data['{name}']")
            wrong.append(f"{table.name} needs {name} ({says}): {way}, made by `{command}`.")
    for train, test in dict.fromkeys((each.train, each.test) for row in table.rows for each in transfers_of(row)):
        try:
            if train in catalogs and test in catalogs:
                fitting(catalogs[train], catalogs[test])
        except UsageError as error:
            wrong.append(str(error))
    return found, wrong


def content_of(catalog: Catalog) -> str:
    """Return a digest of a catalog's images, classes and annotations, wherever its files lie, 16 hex digits."""
    digest = hashlib.sha256(json.dumps([catalog.fingerprint, catalog.classes]).encode())
    held = catalog.table.select(["labels", "boxes", "box_classes", "difficult", "crowd", "masks"])
    for batch in held.to_batches(max_chunksize=65536):
        digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def _lacks(catalog: Catalog, name: str, table: Table) -> list[str]:
    """Return what a catalog must have for the tasks that it is data of, and has not."""
    tasks = {each.task for row in table.rows for each in transfers_of(row) if name in (each.train, each.test)}
    count = np.bincount(catalog.flat_labels()[0], minlength=len(catalog))
    boxes = int(catalog.box_offsets[-1])
    without_mask = catalog.table["masks"].combine_chunks().flatten().null_count
    has = {
        "the labels that classifiers learn": not tasks & {PROBE, "classification"} or bool(count.any()),
        "the one class an image that top-1 is of": name not in names_of_one_class(table) or bool((count == 1).all()),
        "the boxes that detectors learn": "detection" not in tasks or boxes > 0,
        "the masks that segmentation learns": "segmentation" not in tasks or without_mask < boxes,
    }
    return [what for what, there in has.items() if not there]
