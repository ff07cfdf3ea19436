"""CUB-200-2011 (Wah et al. 2011): birds by its own lists, each with the box of its bird."""

from __future__ import annotations

import os

from objcrop.catalog import Catalog
from objcrop.errors import one_of, shown
from objcrop.formats import IndexReport, folder_at
from objcrop.formats.class_labels import labelled_catalog
from objcrop.formats.plain_values import number
from objcrop.formats.source import Source
from objcrop.formats.text_file import read_text

_PARTS = {"train": "1", "test": "0"}


def read_cub200(source: Source) -> tuple[Catalog, IndexReport]:
    """Index CUB-200-2011 by images.txt, classes.txt, image_class_labels.txt, bounding_boxes.txt, train_test_split.txt.

    Boxes are taken as x, y, width, height from the pixel 0, 0 on.

    Args:
        source: its path is the folder of these files, `CUB_200_2011`; split train or test, both when left out;
            classes, per_class and seed as in `labelled_catalog`.

    Raises:
        UsageError: another split, or an option of the subset is out of range.
        ObjcropError: the folder or one of its files is missing, no image is left, or something cannot be used and the
            source is strict.
    """
    folder = folder_at(source.path, "folder of CUB-200-2011")
    if source.split is not None:
        one_of(source.split, _PARTS, "--split")
    report = IndexReport(strict=source.strict)
    images, names, class_ids, parts, boxes = (
        _values(folder, file, report)
        for file in ("images", "classes", "image_class_labels", "train_test_split", "bounding_boxes")
    )
    pairs, box_of = [], {}
    for image, name in images.items():
        class_id, part = class_ids.get(image, ""), parts.get(image)
        if class_id not in names or part not in _PARTS.values():
            where = f"image_class_labels.txt {shown(class_id)} and in train_test_split.txt {shown(part)}"
            report.leave_out_entry(f"images.txt {name}", f"it is in {where}")
        elif source.split is None or part == _PARTS[source.split]:
            key = f"images/{name}"
            pairs.append((key, names[class_id]))
            if image in boxes:
                try:
                    x, y, width, height = map(number, boxes[image].split())
                    box_of[key] = (x, y, x + width, y + height)
                except ValueError:
                    report.leave_out_entry(f"bounding_boxes.txt {image}", f"{shown(boxes[image])} is not four numbers")
    return labelled_catalog(source, folder, pairs, list(names.values()), report, box_of), report


def _values(folder: str, name: str, report: IndexReport) -> dict[str, str]:
    """Return what stands behind each id of a list."""
    text = read_text(os.path.join(folder, f"{name}.txt"), "list of CUB-200-2011")
    found: dict[str, str] = {}
    for at, line in enumerate(text.splitlines(), 1):
        words = line.split(maxsplit=1)
        if len(words) == 2 and words[0] not in found:
            found[words[0]] = words[1].strip()
        elif words:
            reason = "its id comes twice" if len(words) == 2 else f"{shown(line)} is no id with a value"
            report.leave_out_entry(f"{name}.txt line {at}", reason)
    return found
