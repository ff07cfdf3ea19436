"""The formats that sources are read of, by name, and what each takes."""

from __future__ import annotations

# Each format's options beside limit, verify and strict, which all take; `Source` has them, and NAME, any word, as its
# `argument`. The reader of "a-b" is `read_a_b` in formats/a_b.py.
FORMATS: dict[str, tuple[str, ...]] = {
    "folder": ("root",),
    "imagefolder": ("per_class", "classes", "seed"),
    "list": ("root",),
    "torchvision:NAME": ("split", "per_class", "classes", "seed"),
    "cub200": ("split", "per_class", "classes", "seed"),
    "mit-indoor": ("split", "per_class", "classes", "seed"),
    "coco": ("annotations", "root"),
    "voc": ("annotations", "root"),
    "voc-segmentation": ("split", "annotations"),
    "cityscapes": ("split",),
    "scenes": ("annotations", "root"),
    "webdataset": ("root",),
    "webdataset:NAME": ("root",),
    "zips": ("root",),
    "zips:NAME": ("root",),
    "openimages": ("annotations", "root", "image_labels"),
    "oac-dicts": ("annotations", "root"),
    "arrow": ("split", "image_column", "label_column", "box_format", "keys"),
    "parquet": ("split", "image_column", "label_column", "box_format", "keys", "unpack"),
}
