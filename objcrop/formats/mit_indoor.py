"""MIT Indoor (Quattoni and Torralba 2009): scenes of 67 classes, by its two lists."""

from __future__ import annotations

import os

from objcrop.catalog import Catalog
from objcrop.errors import one_of
from objcrop.formats import IndexReport, folder_at
from objcrop.formats.class_labels import labelled_catalog
from objcrop.formats.source import Source
from objcrop.formats.text_file import lines_of

_LISTS = {"train": "TrainImages.txt", "test": "TestImages.txt"}


def read_mit_indoor(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the images that TrainImages.txt and TestImages.txt name (CLASS/NAME.jpg), 80 and 20 a class.

    The classes are those of both lists, in order. `Images` holds more than the lists name: `--format imagefolder` on it
    has them all.

    Args:
        source: its path is the folder that holds both lists and `Images`; split train or test, both when left out;
            classes, per_class and seed as in `labelled_catalog`.

    Raises:
        UsageError: another split, or an option of the subset is out of range.
        ObjcropError: the folder or a list is missing, no image is left, or something cannot be used and the source is
            strict.
    """
    folder = folder_at(source.path, "folder of MIT Indoor")
    if source.split is not None:
        one_of(source.split, _LISTS, "--split")
    report = IndexReport(strict=source.strict)
    pairs, classes = [], set()
    for split, name in _LISTS.items():
        for line in lines_of(os.path.join(folder, name), "list of MIT Indoor"):
            label, inside, _ = line.partition("/")
            if not inside:
                report.leave_out_entry(f"{name} {line}", "it is no CLASS/NAME.jpg")
                continue
            classes.add(label)
            if source.split in (None, split):
                pairs.append((f"Images/{line}", label))
    return labelled_catalog(source, folder, pairs, sorted(classes), report), report
