"""Cityscapes (Cordts et al. 2016): street scenes with finely labelled pixels, by the folders of its release.

leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png
gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png
"""

from __future__ import annotations

import os

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, one_of
from objcrop.formats import IndexReport, folder_at
from objcrop.formats.label_maps import catalog_of_label_maps
from objcrop.formats.source import Source
from objcrop.formats.visible_files import visible_files

# The 19 classes that are evaluated, in the order of their train ids, and their ids in labelIds files (labels.py of
# cityscapesscripts). The other ids, of 0 to 33, are left out of training and evaluation.
CITYSCAPES_CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
IDS = 34
_IMAGE, _MAP = "_leftImg8bit.png", "_gtFine_labelIds.png"


def read_cityscapes(source: Source) -> tuple[Catalog, IndexReport]:
    """Index Cityscapes with the label maps of gtFine, as `objcrop.formats.label_maps` keeps them.

    Args:
        source: its path is the folder of leftImg8bit and gtFine; split train, val or test, all when left out (the
            label maps of test are empty).

    Raises:
        UsageError: another split.
        ObjcropError: a folder is missing, no image is left, or something cannot be used and the source is strict.
    """
    folder = folder_at(source.path, "folder of Cityscapes")
    split = "" if source.split is None else one_of(source.split, ("train", "val", "test"), "--split")
    for name in ("leftImg8bit", "gtFine"):
        part = os.path.normpath(os.path.join(folder, name, split))
        if not os.path.isdir(part):
            raise ObjcropError(f"{part} is not there; give the folder of Cityscapes.")
    report = IndexReport(strict=source.strict)
    images = visible_files(os.path.join(folder, "leftImg8bit", split), folder, report, ending=_IMAGE.lower())
    maps = visible_files(os.path.join(folder, "gtFine", split), folder, report, ending=_MAP.lower())
    map_of = {key: f"gtFine{key[len('leftImg8bit') : -len(_IMAGE)]}{_MAP}" for key in images}
    for name in sorted(set(maps) - set(map_of.values())):
        report.miss(f"leftImg8bit{name[len('gtFine') : -len(_MAP)]}{_IMAGE}")
    class_of = dict.fromkeys(range(IDS)) | {number: i for i, number in enumerate(CITYSCAPES_CLASSES.values())}
    paths = {key: os.path.join(folder, path) for key, path in map_of.items()}
    return catalog_of_label_maps(source, folder, paths, list(CITYSCAPES_CLASSES), class_of, report), report
