"""Any folder of images, at any depth, without classes or boxes."""

from __future__ import annotations

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.formats import IndexReport, catalog_of, folder_at, inside_of
from objcrop.formats.source import Source
from objcrop.formats.visible_files import visible_files, visible_objects
from objcrop.place import is_address


def read_folder(source: Source) -> tuple[Catalog, IndexReport]:
    """Index every image under the source that Pillow can open, whatever its name ends in.

    Hidden files and folders (names that begin with a dot) are passed over; what is no image, no regular file or a
    folder that cannot be read is listed as left out.

    Args:
        source: its path is a folder, searched at any depth, links to folders are followed, or the address of one
            (`s3://bucket/photos`); root is a folder that keys are relative to and that holds the path, or that itself
            when left out.

    Raises:
        UsageError: the root does not hold the path.
        ObjcropError: the folder is missing or has no image, or something is left out and the source is strict.
    """
    folder = folder_at(source.path, "image folder")
    base = folder if source.root is None else folder_at(source.root, "root folder")
    report = IndexReport(strict=source.strict)
    inside = inside_of(base, folder)
    keys = visible_objects(folder, inside) if is_address(folder) else visible_files(folder, base, report)
    if not keys:
        raise ObjcropError(f"The folder {folder} has no image to index; check the path.")
    return catalog_of(base, keys[: source.limit], report, verify=source.verify), report
