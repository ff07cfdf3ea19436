"""PASCAL VOC: one XML an image (Everingham et al. 2010, VOC2007 development kit, section 6)."""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from contextlib import suppress
from typing import NamedTuple

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, printable, shown
from objcrop.formats import FlatBoxes, IndexReport, catalog_of, folder_at
from objcrop.formats.image_names import AmbiguousName, ImageNames, is_image_name
from objcrop.formats.plain_values import ONE_CLASS, BadValue
from objcrop.formats.source import Source
from objcrop.formats.text_file import lines_of
from objcrop.formats.visible_files import visible_files
from objcrop.formats.voc_xml import VocXml, names_in, read_voc_xml
from objcrop.progress import tracked
from objcrop.read_file import patiently

# fmt: off
VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]
# fmt: on


class _File(NamedTuple):
    """An XML file: the year's image folder (a key), its path, and its path in the annotation folder without ending."""

    place: str
    path: str
    stem: str


class _Image(NamedTuple):
    key: str
    file: _File
    own_name: bool
    xml: VocXml


def read_voc(source: Source) -> tuple[Catalog, IndexReport]:
    """Index a year of PASCAL VOC, or several.

    An XML file belongs to the image of its own name, whatever that one's ending, in the same subfolder or else in the
    only one that has it; where there is none, to the image that its <filename> names. VOC's boxes are 1-based and hold
    their last pixel: they become xmin-1, ymin-1, xmax, ymax. The classes are VOC's twenty, or, where other names occur
    in any of the files, those in alphabetical order; objects that all lack a name are of the class "object".

    Args:
        source: its path is a folder with `Annotations/` and `JPEGImages/`, or the VOCdevkit that holds such folders, or
            one with XML files and photos anywhere in it; annotations a list of image names to take (such as
            ImageSets/Main/test.txt), or another folder of XML files; root a folder that holds the images in the same
            layout, the path when left out.

    Raises:
        ObjcropError: a folder is missing, no image is left, or something cannot be used and the source is strict.
    """
    folder, annotations = folder_at(source.path, "VOC folder"), source.annotations
    base = folder if source.root is None else folder_at(source.root, "root folder")
    report = IndexReport(strict=source.strict)
    listed = None
    xml_folder = None
    if annotations is not None and os.path.isdir(annotations):
        xml_folder = folder_at(annotations, "annotation folder")
    elif annotations is not None:
        listed = lines_of(os.fspath(annotations), "list of image names")
    years = [folder] if os.path.isdir(os.path.join(folder, "Annotations")) else _years(folder)

    files: list[_File] = []
    photos: dict[str, ImageNames] = {}
    for year in years or [folder]:
        has_folder = os.path.isdir(os.path.join(year, "Annotations"))
        xmls = xml_folder or (os.path.join(year, "Annotations") if has_folder else year)
        names = visible_files(xmls, xmls, report, ending=".xml")
        if not names and not has_folder and xml_folder is None:
            raise ObjcropError(
                f"{folder} holds no Annotations folder, nor one a level below, nor XML files; check --format."
            )
        place, found_photos = _photos_of(
            os.path.normpath(os.path.join(base, os.path.relpath(year, folder))), base, report
        )
        photos[place] = found_photos
        files += [_File(place, os.path.join(xmls, name), name[:-4]) for name in names]
    wanted = files if listed is None else _wanted(files, listed, report)
    if not wanted:
        raise ObjcropError(f"{folder} has no XML file to index; check the path or --annotations.")
    images = _images(wanted, photos, base, source.limit, report)
    if listed is None:
        _list_unannotated(photos, files, {image.key for image in images}, report)

    found = {thing.label for image in images for thing in image.xml.objects}
    if listed is not None:  # the classes are those of the whole set, so that all of its lists have the same
        others = sorted(set(files) - {image.file for image in images})
        found |= {name for file in tracked(others, len(others), "reading classes") for name in names_in(file.path)}
    classes, boxes = _boxes(images, found, base, report)
    keys, sizes = [image.key for image in images], [image.xml.size for image in images]
    return catalog_of(
        base, keys, report, verify=source.verify, classes=classes, boxes=boxes, stated_sizes=sizes
    ), report


def _years(folder: str) -> list[str]:
    inner = (os.path.join(folder, name) for name in sorted(patiently(folder, lambda: os.listdir(folder))))
    return [year for year in inner if os.path.isdir(os.path.join(year, "Annotations"))]


def _photos_of(year: str, base: str, report: IndexReport) -> tuple[str, ImageNames]:
    """Return a year's image folder, as a key, and the photos in it; without JPEGImages, those of the whole year."""
    folder = os.path.join(year, "JPEGImages")
    there = visible_files(folder, base, report)
    if not os.path.isdir(folder):
        folder = year
        there = [key for key in visible_files(year, base, report) if is_image_name(key)]
    place = os.path.relpath(folder, base).replace(os.sep, "/")
    names = there if place == "." else [key[len(place) + 1 :] for key in there]
    return place, ImageNames(names, folder, anywhere=True)


def _wanted(files: list[_File], lines: list[str], report: IndexReport) -> list[_File]:
    """Return the files that a list of ImageSets names; a second column (VOC's -1, 0, 1) is not used."""
    by_name: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        for name in {file.stem, posixpath.basename(file.stem)}:
            by_name[name].append(file)
    wanted = set()
    for line in lines:
        slashed = line.replace("\\", "/").removeprefix("./")
        for name in (slashed, re.sub(r"\s+-?[0-9]+$", "", slashed), slashed.split()[0]):
            # With an ending, or with folders in front that are not those of the XML file.
            spelled = (name, posixpath.splitext(name)[0], posixpath.splitext(posixpath.basename(name))[0])
            found = next((by_name[one] for one in spelled if one in by_name), None)
            if found:
                wanted.update(found)
                break
        else:
            report.miss(line.split()[0])
    return sorted(wanted)


def _images(
    files: list[_File], photos: dict[str, ImageNames], base: str, limit: int | None, report: IndexReport
) -> list[_Image]:
    """Return what the files say of which image, in key order; each image once."""
    claims: dict[str, list[_Image]] = defaultdict(list)
    for file in tracked(files, len(files), "reading annotations"):
        if limit is not None and len(claims) == limit:
            break
        try:
            xml = read_voc_xml(file.path)
            name, own_name, remarks = _photo(file, xml, photos[file.place])
        except BadValue as error:
            report.leave_out_entry(_shown_path(file, base), str(error))
            continue
        for i, reason in xml.bad:
            report.leave_out_entry(f"{_shown_path(file, base)} object {i}", reason)
        for remark in xml.remarks + remarks:
            report.remark(_shown_path(file, base), remark)
        image = _Image(posixpath.normpath(f"{file.place}/{name}"), file, own_name, xml)
        claims[image.key].append(image)

    images = []
    for key in sorted(claims):
        same = claims[key]
        first = [image for image in same if image.own_name] if len(same) > 1 else same
        if len(first) == 1:
            images += first
        for image in same:
            if len(first) != 1 or image is not first[0]:
                other = next(each for each in first or same if each is not image)
                place, taken = _shown_path(image.file, base), _shown_path(other.file, base)
                report.leave_out_entry(place, f"it annotates {shown(key)}, which {taken} annotates too")
    return images


def _photo(file: _File, xml: VocXml, photos: ImageNames) -> tuple[str, bool, list[str]]:
    """Return which photo of its year a file annotates, whether it has the file's own name, and remarks."""
    named = None
    with suppress(AmbiguousName):
        named = photos.find(xml.filename) if xml.filename else None
    if named is not None and posixpath.splitext(named)[0] == file.stem:  # one of several photos of its name, too
        return named, True, []
    own = photos.find(file.stem) or photos.find(posixpath.basename(file.stem))
    if own is None:
        return (named, False, []) if named else (f"{file.stem}.jpg", True, [])
    remarks = []
    if named is not None and posixpath.splitext(posixpath.basename(named))[0] != posixpath.basename(file.stem):
        remarks.append(f"its <filename> is {shown(xml.filename)}, but it counts for {shown(own)}, of its own name")
    return own, file.stem in (own, posixpath.splitext(own)[0]), remarks


def _list_unannotated(photos: dict[str, ImageNames], files: list[_File], taken: set[str], report: IndexReport) -> None:
    stems = {(file.place, file.stem) for file in files}
    for place, names in photos.items():
        for name in sorted(names.keys):
            key = posixpath.normpath(f"{place}/{name}")
            if key not in taken and (place, posixpath.splitext(name)[0]) not in stems:
                report.left_out.append((printable(key), "no XML file of that name"))


def _boxes(images: list[_Image], found: set[str], base: str, report: IndexReport) -> tuple[list[str], FlatBoxes]:
    nameless = found == {""}
    found = {ONE_CLASS} if nameless else found - {""}
    classes = VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found)
    class_of = {name: c for c, name in enumerate(classes)}
    if nameless:
        report.remark(base, f"no object has a name; all are of the class {shown(ONE_CLASS)}")
    boxes = FlatBoxes([], [], [], [], [], [], lambda at: f"{_shown_path(at[0], base)} object {at[1]}")
    for i, image in enumerate(images):
        for thing in image.xml.objects:
            label = class_of.get(ONE_CLASS if nameless else thing.label)
            if label is None:
                report.leave_out_entry(boxes.place_of((image.file, thing.number)), "the object has no name")
                continue
            boxes.image.append(i)
            boxes.corners.append(thing.corners)
            boxes.classes.append(label)
            boxes.difficult.append(thing.difficult)
            boxes.crowd.append(False)
            boxes.place.append((image.file, thing.number))
    return classes, boxes


def _shown_path(file: _File, base: str) -> str:
    inside = os.path.relpath(file.path, base)
    return file.path if inside.startswith("..") else inside.replace(os.sep, "/")
