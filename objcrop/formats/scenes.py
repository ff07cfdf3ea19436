"""The drawn scenes of `objcrop.sample_scenes`: `images/` beside an `instances.json` in COCO's format."""

from __future__ import annotations

import os
from dataclasses import replace

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.formats import IndexReport, folder_at
from objcrop.formats.coco import read_coco
from objcrop.formats.source import Source


def read_scenes(source: Source) -> tuple[Catalog, IndexReport]:
    """Index a folder made by `draw_scenes`; all else is as in `read_coco`.

    Raises:
        ObjcropError: the folder is missing, or the drawing did not come to its end (`instances.json` is written last).
    """
    folder = folder_at(source.path, "folder of scenes")
    if source.annotations is None and not os.path.isfile(os.path.join(folder, "instances.json")):
        raise ObjcropError(f"{folder} has no instances.json, which is written last; draw the scenes again.")
    return read_coco(replace(source, path=folder))
