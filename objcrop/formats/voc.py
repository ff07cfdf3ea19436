"""PASCAL VOC: one XML an image (Everingham et al. 2010, VOC2007 development kit, section 6)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from xml.etree import ElementTree

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.formats import FlatBoxes, IndexReport, StrPath, catalog_of, folder_at, printable, tracked

# fmt: off
VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]
# fmt: on


class _Image(NamedTuple):
    key: str
    size: tuple[int, int]
    names: list[str]
    corners: list[tuple[float, float, float, float]]
    difficult: list[bool]


def read_voc(
    source: StrPath,
    *,
    annotations: StrPath | None = None,
    root: StrPath | None = None,
    limit: int | None = None,
    verify: bool = False,
) -> tuple[Catalog, IndexReport]:
    """Index a year of PASCAL VOC, or several.

    VOC's boxes are 1-based and hold their last pixel: they become xmin-1, ymin-1, xmax, ymax. The classes are VOC's
    twenty, or, where other names occur, those in alphabetical order.

    Args:
        source: a folder with `Annotations/` and `JPEGImages/`, or the VOCdevkit that holds such folders.
        annotations: a list of image names to take (such as ImageSets/Main/test.txt), or another folder of XML files.
        root: folder that holds the images in the same layout, `source` when left out.
        limit: take the first so many images, in the order of their keys.
        verify: decode every image.

    Raises:
        ObjcropError: a folder is missing, an XML file is broken (with line and column) or lacks something, an image is
            annotated twice, or no image is left.
    """
    folder = folder_at(source, "VOC folder")
    base = folder if root is None else folder_at(root, "root folder")
    years = [folder] if os.path.isdir(os.path.join(folder, "Annotations")) else _years(folder)
    wanted = None
    xml_folder = None
    if annotations is not None and os.path.isfile(annotations):
        wanted = _names(os.fspath(annotations))
    elif annotations is not None:
        xml_folder = folder_at(annotations, "annotation folder")
    report = IndexReport()

    files: list[tuple[str, str]] = []
    for year in years or [folder]:
        place = os.path.relpath(os.path.join(year, "JPEGImages"), folder).replace(os.sep, "/")
        xmls = xml_folder or os.path.join(year, "Annotations")
        if not os.path.isdir(xmls):
            raise ObjcropError(f"{folder} holds no Annotations folder, nor one a level below; check --format.")
        stems = sorted(name[:-4] for name in os.listdir(xmls) if name.endswith(".xml") and not name.startswith("."))
        files += [(place, os.path.join(xmls, f"{stem}.xml")) for stem in stems if wanted is None or stem in wanted]
        if wanted is None:
            _list_unannotated(os.path.join(base, place), place, set(stems), report)
    if wanted is not None:
        report.missing_annotated += sorted(wanted - {os.path.basename(file)[:-4] for _, file in files})
    if not files:
        raise ObjcropError(f"{folder} has no XML file to index; check the path or --annotations.")
    files = files[:limit]
    images = [_read_xml(file, place, base) for place, file in tracked(files, len(files), "reading annotations")]
    images.sort(key=lambda image: image.key)
    for image, following in pairwise(images):
        if image.key == following.key:
            raise ObjcropError(f"Two XML files of {folder} annotate '{image.key}'; every image must be there once.")

    found = {name for image in images for name in image.names}
    classes = VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found)
    boxes = FlatBoxes(
        image=[i for i, image in enumerate(images) for _ in image.names],
        corners=[corners for image in images for corners in image.corners],
        classes=[classes.index(name) for image in images for name in image.names],
        difficult=[flag for image in images for flag in image.difficult],
        crowd=[False for image in images for _ in image.names],
    )
    keys, sizes = [image.key for image in images], [image.size for image in images]
    return catalog_of(base, keys, report, verify=verify, classes=classes, boxes=boxes, stated_sizes=sizes), report


def _years(folder: str) -> list[str]:
    inner = (os.path.join(folder, name) for name in sorted(os.listdir(folder)))
    return [year for year in inner if os.path.isdir(os.path.join(year, "Annotations"))]


def _names(file: str) -> set[str]:
    """Return the image names of an ImageSets file; a second column (VOC's -1, 0, 1) is not used."""
    try:
        with open(file, encoding="utf-8") as stream:
            return {line.split()[0] for line in stream if line.strip()}
    except UnicodeDecodeError:
        raise ObjcropError(f"--annotations {file} is not a text file with an image name a line.") from None


def _list_unannotated(folder: str, place: str, stems: set[str], report: IndexReport) -> None:
    names: Sequence[str] = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()
    for name in names:
        if not name.startswith(".") and os.path.splitext(name)[0] not in stems:
            report.left_out.append((printable(f"{place}/{name}"), "no XML file of that name"))


def _read_xml(file: str, place: str, base: str) -> _Image:
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ObjcropError(f"{file} is broken XML at line {line}, column {column + 1}; fetch it again.") from None
    stem = os.path.splitext(os.path.basename(file))[0]
    name = (tree.findtext("filename") or "").strip()
    # Labelling tools write any path or none there; the XML's own name is what VOC goes by.
    if not name or not os.path.isfile(os.path.join(base, place, name)):
        name = f"{stem}.jpg"
    size = (_whole(tree.findtext("size/width")), _whole(tree.findtext("size/height")))
    image = _Image(f"{place}/{name}", size, [], [], [])
    for i, thing in enumerate(tree.findall("object")):
        label = (thing.findtext("name") or "").strip()
        edges = [thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(edge) for edge in edges if edge is not None)
        except ValueError:
            raise ObjcropError(f"{file}: object {i + 1} has no bndbox of four numbers; correct it.") from None
        if not label:
            raise ObjcropError(f"{file}: object {i + 1} has no name; correct it.")
        image.names.append(label)
        image.corners.append((x0 - 1, y0 - 1, x1, y1))
        image.difficult.append((thing.findtext("difficult") or "0").strip() == "1")
    return image


def _whole(text: str | None) -> int:
    try:
        return int(float(text or 0))
    except ValueError:
        return 0
