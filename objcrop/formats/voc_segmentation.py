"""PASCAL VOC's segmentation (Everingham et al. 2010, VOC2012 development kit, section 5): a class a pixel."""

from __future__ import annotations

import os

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.formats import IndexReport, folder_at
from objcrop.formats.image_names import key_below
from objcrop.formats.label_maps import catalog_of_label_maps
from objcrop.formats.plain_values import BadValue
from objcrop.formats.source import Source
from objcrop.formats.text_file import lines_of
from objcrop.formats.visible_files import visible_files
from objcrop.formats.voc import VOC_CLASSES

VOID = 255  # the border of objects, and what is too hard


def read_voc_segmentation(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the images of a year of PASCAL VOC whose pixels are labelled, as `objcrop.formats.label_maps` keeps them.

    The first class is "background"; VOC's twenty follow.

    Args:
        source: its path is a year's folder with JPEGImages and SegmentationClass, such as VOCdevkit/VOC2012; split a
            list of ImageSets/Segmentation (train, val, trainval, or one of your own such as trainaug), all label maps
            when left out; annotations another folder of label maps, such as SBD's SegmentationClassAug.

    Raises:
        ObjcropError: a folder or list is missing, no image is left, or something cannot be used and the source is
            strict.
    """
    folder = folder_at(source.path, "VOC folder")
    maps = folder_at(source.annotations or os.path.join(folder, "SegmentationClass"), "folder of label maps")
    if not os.path.isdir(os.path.join(folder, "JPEGImages")):
        raise ObjcropError(f"{folder} holds no JPEGImages; give a year's folder, such as VOCdevkit/VOC2012.")
    report = IndexReport(strict=source.strict)
    if source.split is None:
        names = [path[: -len(".png")] for path in visible_files(maps, maps, report, ending=".png")]
    else:
        listed = os.path.join(folder, "ImageSets", "Segmentation", f"{source.split}.txt")
        names = [line.split()[0] for line in lines_of(listed, "list of images")]
    map_of = {}
    for name in names:
        try:
            map_of[key_below(f"JPEGImages/{name}.jpg")] = os.path.join(maps, f"{name}.png")
        except BadValue as error:
            report.leave_out_entry(name, str(error))
    classes = ["background", *VOC_CLASSES]
    class_of = dict(enumerate(range(len(classes)))) | {VOID: None}
    return catalog_of_label_maps(source, folder, map_of, classes, class_of, report), report
