"""Any folder of images, at any depth, without classes or boxes."""

from __future__ import annotations

import os

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import IndexReport, StrPath, catalog_of, folder_at
from objcrop.formats.visible_files import visible_files


def read_folder(
    source: StrPath,
    *,
    annotations: StrPath | None = None,
    root: StrPath | None = None,
    limit: int | None = None,
    verify: bool = False,
    strict: bool = False,
) -> tuple[Catalog, IndexReport]:
    """Index every image under `source` that Pillow can open, whatever its name ends in.

    Hidden files and folders (names that begin with a dot) are passed over; what is no image, no regular file or a
    folder that cannot be read is listed as left out.

    Args:
        source: folder, searched at any depth; links to folders are followed.
        annotations: not used by this format, must be None.
        root: folder that keys are relative to and that holds `source`; `source` itself when left out.
        limit: take the first so many files, in the order of their keys.
        verify: decode every image.
        strict: end at the first file or folder that cannot be used, instead of leaving it out.

    Raises:
        UsageError: annotations were given, or `root` does not hold `source`.
        ObjcropError: the folder is missing or has no image, or something is left out and `strict`.
    """
    if annotations is not None:
        raise UsageError("The format 'folder' knows no annotations; leave out --annotations, or use coco or voc.")
    folder = folder_at(source, "image folder")
    base = folder if root is None else folder_at(root, "root folder")
    if os.path.commonpath((base, folder)) != base:
        raise UsageError(f"--root {base} does not hold the source {folder}; leave it out, or give a folder above.")
    report = IndexReport(strict=strict)
    keys = visible_files(folder, base, report)
    if not keys:
        raise ObjcropError(f"The folder {folder} has no image to index; check the path.")
    return catalog_of(base, keys[:limit], report, verify=verify), report
