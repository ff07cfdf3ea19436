"""The images of a catalog that have several classes, and the classes that have many images."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from objcrop.catalog import Catalog, catalog_at
from objcrop.errors import ObjcropError, UsageError

_OF_BOXES = ("boxes", "box_classes", "difficult", "crowd", "masks")


def subset(
    catalog: Catalog | str | os.PathLike[str],
    *,
    min_classes: int = 1,
    min_images: int = 1,
    classes_of: Catalog | str | os.PathLike[str] | None = None,
) -> Catalog:
    """Return the part of a catalog in which every image has so many classes, and every class so many images.

    Whatever falls short is taken out, and what is left is counted again, until both hold: the result is the largest
    part of which they do. A class that is taken out is no class of the result, and its labels and boxes go with it.
    Keys, sizes and all else stay; the fingerprint is another, so boxes are to be made for the subset, or imported from
    those of the whole (`propose` with import).

    OAC 2 draws its subset of OpenImages so, with 2 and 900, and has 212,753 images and 208 classes. The rule alone does
    not settle these numbers: the paper says neither of which images of OpenImages they are a sample, nor whether it
    counted again once classes had gone. Its appendix A speaks against that: 196,862 images have 2 to 7 classes, and a
    class has 3,762.13 images on average, 782,523 labels in all, which leaves the other 15,891 images 5 each, where all
    that have 2 classes would have 8 or more. The images themselves are in the dictionaries it released (oac-dicts).

    Args:
        catalog: with labels, those of boxes or of whole images.
        min_classes: how many different classes an image has at least.
        min_images: how many images a class has at least.
        classes_of: a catalog whose classes, by name, are the only ones to be counted, such as that of the subset that
            was trained on, for a test set of the same classes.

    Raises:
        UsageError: a number is below 1, or the catalog has no labels.
        ObjcropError: no image is left.
    """
    catalog = catalog_at(catalog)
    for name, least in (("min_classes", min_classes), ("min_images", min_images)):
        if least < 1:
            raise UsageError(f"{name} is {least}, but it must be at least 1.")
    catalog.all_annotations()  # their classes are known
    rows, ids = catalog.flat_labels()
    if not len(ids):
        raise UsageError("the catalog has no labels to choose by; index it from annotations or class folders.")
    with_class = np.ones(len(catalog.classes), bool)
    if classes_of is not None:
        with_class = np.isin(catalog.classes, catalog_at(classes_of).classes)
    counted = with_class[ids]
    while True:
        images = np.bincount(rows[counted], minlength=len(catalog)) >= min_classes
        left = counted & images[rows]
        with_class = np.bincount(ids[left], minlength=len(catalog.classes)) >= min_images
        left &= with_class[ids]
        if left.sum() == counted.sum():
            break
        counted = left
    if not images.any():
        raise ObjcropError(
            f"No image of the {len(catalog)} has {min_classes} classes that have {min_images} images each; "
            "lower min_classes or min_images."
        )
    return _with_only(catalog.take(np.flatnonzero(images)), with_class)


def _with_only(catalog: Catalog, stays: npt.NDArray[np.bool_]) -> Catalog:
    """Return a catalog with some of its classes, bool (number of classes,), and no labels and boxes of the others."""
    number = np.cumsum(stays, dtype=np.int32) - 1
    table = catalog.table
    kept = {name: stays[table[name].combine_chunks().values.to_numpy()] for name in ("labels", "box_classes")}
    for name in ("labels", *_OF_BOXES):
        lists = table[name].combine_chunks()
        which = kept["labels" if name == "labels" else "box_classes"]
        values = lists.values.filter(pa.array(which))
        if name in ("labels", "box_classes"):
            values = pa.array(number[values.to_numpy()])
        before = np.concatenate(([0], np.cumsum(which)))  # kept ones in front of each
        column = pa.ListArray.from_arrays(pa.array(before[lists.offsets.to_numpy()].astype(np.int32)), values)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    classes = [name for name, stay in zip(catalog.classes, stays) if stay]
    return catalog.with_table(table, catalog.fingerprint, classes)
