"""A folder of class folders, as torchvision's `ImageFolder` and ImageNet have it: ROOT/CLASS/…/image."""

from __future__ import annotations

import os

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, printable
from objcrop.formats import IndexReport, folder_at
from objcrop.formats.class_labels import labelled_catalog
from objcrop.formats.source import Source
from objcrop.formats.visible_files import visible_files, visible_objects
from objcrop.place import is_address
from objcrop.read_file import patiently

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def read_imagefolder(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the images of each class folder; the classes are the folders' names in order, as in torchvision.

    Images may lie at any depth of a class folder, and are known by what they hold, whatever their names end in. Hidden
    files and folders (names that begin with a dot) are passed over; files beside the class folders, class folders
    without a file and what is no image are listed as left out.

    Args:
        source: its path is the folder that holds the class folders (of ImageNet: `train` or `val`), or its address;
            classes, per_class and seed as in `labelled_catalog`.

    Raises:
        UsageError: an option of the subset is out of range.
        ObjcropError: the folder is missing, holds no class folder or only `train`, `val` and `test`, no image is left,
            or something is left out and the source is strict.
    """
    folder = folder_at(source.path, "folder of class folders")
    report = IndexReport(strict=source.strict)
    pairs = []
    for key in visible_objects(folder, "") if is_address(folder) else visible_files(folder, folder, report):
        name, inside, _ = key.partition("/")
        if inside:
            pairs.append((key, printable(name)))
        else:
            report.leave_out_file(key, "it lies in no class folder")
    classes = sorted({name for _, name in pairs})
    if not classes:
        raise ObjcropError(f"{folder} holds no class folder with images; check the path, or take --format folder.")
    if {name.lower() for name in classes} <= _SPLITS:
        each = ", then ".join(f"{folder}/{name}" for name in classes)
        raise ObjcropError(f"{folder} holds {' and '.join(classes)}, which are no classes; index {each}.")
    for name in [] if is_address(folder) else sorted(patiently(folder, lambda: os.listdir(folder))):
        if not name.startswith(".") and printable(name) not in classes and os.path.isdir(os.path.join(folder, name)):
            report.leave_out_file(name, "a class folder without files of its own")
    return labelled_catalog(source, folder, pairs, classes, report), report
