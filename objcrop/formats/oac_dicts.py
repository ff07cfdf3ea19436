"""The dictionaries that OAC's authors released: which images of OpenImages they took, with labels and boxes.

github.com/shlokk/object-cropping-ssl, pickled by `numpy.save`. `images_selected_new.npy` has the MIDs of each image id,
`images_selected_test_40k.npy` those of the test set, `images_selected_with_all_features.npy` under "data" the rows of
OpenImages' CSV of boxes for each. They are read by `plain_pickle`, which runs nothing.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, shown
from objcrop.formats import FlatBoxes, FlatLabels, IndexReport, folder_at
from objcrop.formats.openimages import ImagesById, catalog_by_ids
from objcrop.formats.plain_pickle import read_plain_npy
from objcrop.formats.plain_values import BadValue, number, yes_or_no
from objcrop.formats.source import Source
from objcrop.place import is_address
from objcrop.progress import tracked

LABELS, BOXES = "images_selected_new.npy", "images_selected_with_all_features.npy"
WHAT = "dictionary of OAC"


def read_oac_dicts(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the images that a released dictionary names: OAC's subset of OpenImages, or its test set.

    A dictionary of MIDs gives labels, one of boxes gives boxes and their classes as labels. In a folder with both of
    the training set, images and classes are those of the labels, as in the released code; boxes of others are not
    taken, and counted in a remark. (The code draws crops from them too; OAC's appendix A has them in .2 % of images.)
    Frame, rotations and names of classes are as `read_openimages` has them, from files beside the dictionaries.

    Args:
        source: its path is a dictionary, or the folder of `images_selected_new.npy` and
            `images_selected_with_all_features.npy`, or, where annotations is either, the folder of images; root is the
            folder of images, left out the path if that is a folder or else the dictionary's.

    Raises:
        ObjcropError: a file or folder is missing, a dictionary holds more than data or is none of these, an image is
            there twice, no image is left, or something cannot be used and the source is strict.
    """
    is_folder = is_address(source.path) or os.path.isdir(source.path)
    file = os.fspath(source.annotations or source.path)
    files = _dictionaries(file)
    base = folder_at(source.root or (source.path if is_folder else os.path.dirname(file) or "."), "image folder")
    report = IndexReport(strict=source.strict)
    ids: dict[str, int] = {}
    mids: dict[str, int] = {}
    labels = boxes = None
    for file in files:
        content = read_plain_npy(file, WHAT)
        if not isinstance(content, dict) or not content:
            raise ObjcropError(f"{file} holds {shown(content)}, not what is known of each image; is it a {WHAT}?")
        first = next((entries[0] for _, entries in _entries(content, file) if entries), None)
        if isinstance(first, str):
            labels = _labels(content, file, ids, mids, report)
        else:
            boxes = _boxes(content, file, ids, mids, report, known_only=labels is not None)
    return catalog_by_ids(source, files[0], ImagesById(base, report), ids, mids, boxes, labels, report), report


def _dictionaries(path: str) -> list[str]:
    """Return the files that a path means: itself, or those of the training set in a folder, the one of labels first."""
    if not os.path.isdir(path):
        return [path]
    files = [os.path.join(path, name) for name in (LABELS, BOXES) if os.path.exists(os.path.join(path, name))]
    if not files:
        raise ObjcropError(f"{path} holds neither {LABELS} nor {BOXES}; name a dictionary with --annotations.")
    return files


def _entries(content: dict[str, Any], file: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield each image's id and the MIDs or rows that are said of it."""
    left = os.path.getsize(file)
    for name, value in content.items():
        entries = value.get("data") if isinstance(value, dict) else value
        if not isinstance(entries, (list, tuple)):
            raise ObjcropError(f"{file} says {shown(value)} of {shown(name)}, not a list; is it a {WHAT}?")
        left -= len(entries)  # a pickle may say one long list of many images
        if left < 0:
            raise ObjcropError(f"{file} says more of its images than it has bytes; is it a {WHAT}?")
        yield name, list(entries)


def _labels(
    content: dict[str, Any], file: str, ids: dict[str, int], mids: dict[str, int], report: IndexReport
) -> FlatLabels:
    """Return the labels, with the numbers of their images in `ids` and classes in `mids`, which learn new ones."""
    images, labels = [], []
    for name, entries in _entries(content, file):
        image = ids.setdefault(name, len(ids))
        for i, mid in enumerate(entries):
            if isinstance(mid, str) and mid.strip():
                images.append(image)
                labels.append(mids.setdefault(mid.strip(), len(mids)))
            else:
                report.leave_out_entry(f"{os.path.basename(file)} {name} entry {i}", f"the class is {shown(mid)}")
    return FlatLabels(np.array(images, np.int64), np.array(labels, np.int64))


def _boxes(
    content: dict[str, Any], file: str, ids: dict[str, int], mids: dict[str, int], report: IndexReport, known_only: bool
) -> FlatBoxes:
    """Return the boxes, likewise; where `known_only`, those of images in `ids` and classes in `mids`."""
    short = os.path.basename(file)
    places, corners, labels, groups = [], array("f"), [], []
    others = 0
    for name, rows in tracked(_entries(content, file), len(content), f"reading {short}"):
        if known_only and name not in ids:
            others += len(rows)
            continue
        image = ids.setdefault(name, len(ids))
        for i, row in enumerate(rows):
            try:
                if not isinstance(row, (list, tuple)) or len(row) < 8:
                    raise BadValue(f"it is {shown(row)}, not a row of OpenImages' boxes")
                mid = row[2]
                if not isinstance(mid, str) or not mid.strip():
                    raise BadValue(f"LabelName is {shown(mid)}")
                if known_only and mid.strip() not in mids:
                    others += 1
                    continue
                x0, x1, y0, y1 = map(number, row[4:8])
                group = row[10] if len(row) > 10 else None
                groups.append(group not in (-1, "-1") and yes_or_no(group))
            except BadValue as error:
                report.leave_out_entry(f"{short} {name} entry {i}", str(error))
                continue
            corners.extend((x0, y0, x1, y1))
            labels.append(mids.setdefault(mid.strip(), len(mids)))
            places.append((image, i))
    if others:
        report.remark(short, f"{others} boxes are of images or classes without labels, and are not taken")
    names = list(ids)
    place = np.array(places, np.int32).reshape(-1, 2)
    return FlatBoxes(
        place[:, 0].astype(np.int64),
        np.array(corners, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.zeros(len(place), bool),
        np.array(groups, bool),
        place,
        lambda at: f"{short} {names[at[0]]} entry {at[1]}",
        shares=True,
    )
