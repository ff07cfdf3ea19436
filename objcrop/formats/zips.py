"""Zips of images that are stored as they are (`zip -0`): each is a range of the zip, labels lie beside as in tars."""

from __future__ import annotations

from objcrop.catalog import Catalog
from objcrop.errors import UsageError
from objcrop.formats import IndexReport
from objcrop.formats.source import Source
from objcrop.formats.webdataset import read_packs
from objcrop.formats.zip_members import zip_members
from objcrop.place import is_address, root_of


def read_zips(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the images in zips; members that are compressed or encrypted are listed as left out.

    Args:
        source: its path is a zip or a folder of zips; argument, root, labels and errors are those of `read_webdataset`.

    Raises:
        UsageError: the path is an address.
        ObjcropError: there is no zip or no image in them, one is damaged, or as of `read_webdataset`.
    """
    if is_address(root_of(source.path)):
        raise UsageError(f"{source.path} is far away, and zips are read from a disk; copy it here, or make it a tar.")
    return read_packs(source, ".zip", zip_members)
