"""The drawn scenes of `objcrop.sample_scenes`: `images/` beside an `instances.json` in COCO's format."""

from __future__ import annotations

import os

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.formats import IndexReport, StrPath, folder_at
from objcrop.formats.coco import read_coco


def read_scenes(
    source: StrPath,
    *,
    annotations: StrPath | None = None,
    root: StrPath | None = None,
    limit: int | None = None,
    verify: bool = False,
    strict: bool = False,
) -> tuple[Catalog, IndexReport]:
    """Index a folder made by `draw_scenes`; the options are those of `read_coco`.

    Raises:
        ObjcropError: the folder is missing, or the drawing did not come to its end (`instances.json` is written last).
    """
    folder = folder_at(source, "folder of scenes")
    if annotations is None and not os.path.isfile(os.path.join(folder, "instances.json")):
        raise ObjcropError(f"{folder} has no instances.json, which is written last; draw the scenes again.")
    return read_coco(folder, annotations=annotations, root=root, limit=limit, verify=verify, strict=strict)
