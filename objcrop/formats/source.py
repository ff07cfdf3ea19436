"""What `objcrop index` is told about a source, whatever its format."""

from __future__ import annotations

import os
from dataclasses import dataclass

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Source:
    """Where the images and their annotations lie, and what to make of them.

    Attributes:
        path: folder of images, or what the format says (a COCO JSON, a VOCdevkit).
        argument: what stands behind the colon of the format's name, "" where it has none.
        annotations: annotation file, where it is not in its usual place.
        root: image folder, where it is not in its usual place; the catalog's keys are relative to it.
        split: the part of a data set, such as train or test.
        classes: take so many classes only.
        per_class: take so many images of each class only.
        seed: of the classes and images that are taken; 0 when left out.
        image_labels: file of labels of whole images.
        image_column: the column of the images, where there are several.
        label_column: the column of the images' classes, where it has no usual name.
        box_format: how boxes are written, "xywh" or "xyxy", where it cannot be told.
        keys: what names an image, its "path" in the table, or the "row".
        unpack: folder for uncompressed copies of the files, in which the images then lie.
        limit: take the first so many images, in the order of their keys.
        verify: decode every image, and leave out what does not decode.
        strict: end at the first file, entry or mask that cannot be used, instead of leaving it out.
    """

    path: StrPath
    argument: str = ""
    annotations: StrPath | None = None
    root: StrPath | None = None
    split: str | None = None
    classes: int | None = None
    per_class: int | None = None
    seed: int | None = None
    image_labels: StrPath | None = None
    image_column: str | None = None
    label_column: str | None = None
    box_format: str | None = None
    keys: str | None = None
    unpack: StrPath | None = None
    limit: int | None = None
    verify: bool = False
    strict: bool = False
