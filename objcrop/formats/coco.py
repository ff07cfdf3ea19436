"""COCO instances: one JSON with images, annotations and categories (Lin et al. 2014, cocodataset.org/#format-data)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, printable, shown
from objcrop.formats import FlatBoxes, IndexReport, catalog_of, folder_at
from objcrop.formats.coco_masks import box_of
from objcrop.formats.image_names import key_finder
from objcrop.formats.json_file import read_json
from objcrop.formats.plain_values import (
    ONE_CLASS,
    AmbiguousId,
    BadValue,
    Id,
    id_table,
    number,
    pixels,
    plain_id,
    yes_or_no,
)
from objcrop.formats.source import Source


class _Image(NamedTuple):
    number: int
    id: Any
    name: str
    key: str
    size: tuple[int, int]


def read_coco(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the images that a COCO instances file names.

    Category ids become 0..C-1 in their order; two ids of one name are one class, and annotations that all lack a class
    are of the class "object". `iscrowd` and an optional `difficult` are kept; polygons and RLE become masks, and stand
    in for a missing bbox. A file without `annotations` is one of images without boxes. Files that the JSON does not
    name are no part of the data set. How file names are understood is said in `ImageNames`. Ids and numbers may be
    text. An image that is listed twice with one size is one image.

    Args:
        source: its path is the JSON, or a folder with `instances.json` in it; annotations the JSON, when path is a
            folder and the JSON is elsewhere; root, left out, is `images/` beside the JSON (or in path), or else that
            folder itself.

    Raises:
        ObjcropError: a file or folder is missing, the JSON is broken (with line and column) or none of COCO's, an id
            stands for two images or two categories, an image is listed with two sizes, or no image is left.
    """
    is_folder = os.path.isdir(source.path)
    folder = str(source.path) if is_folder else os.path.dirname(os.path.abspath(source.path))
    beside = os.path.join(folder, "instances.json") if is_folder else source.path
    file = os.fspath(source.annotations or beside)
    report = IndexReport(strict=source.strict)
    images, notes, categories = _parts(file, report)
    root = source.root
    if root is None:
        inner = os.path.join(folder, "images")
        root = inner if os.path.isdir(inner) else folder
    base = folder_at(root, "image folder")
    short = os.path.basename(file)

    named = _images(images, base, short, report)
    sizes: dict[str, tuple[int, int]] = {}
    for image in named:
        known = sizes.setdefault(image.key, image.size)
        if known != image.size and known[0] and image.size[0]:
            raise ObjcropError(
                f"{file} lists the image {shown(image.key)} with two sizes, {known[0]}x{known[1]} and "
                f"{image.size[0]}x{image.size[1]}; correct one."
            )
        sizes[image.key] = max(known, image.size)
    keys = sorted(sizes)[: source.limit]
    position = {key: i for i, key in enumerate(keys)}
    try:
        key_of, image_id = id_table([(image.id, image.key) for image in named])
        left_out = {image_id(entry["id"]) for entry in images if _has_id(entry)} - key_of.keys()
    except AmbiguousId as error:
        raise ObjcropError(f"{file} gives two images the same id: {error}; every image needs its own.") from None
    row_of = {number: position.get(key, -1) for number, key in key_of.items()}

    classes, class_of, category_id = _classes(categories, notes, file, short, report)
    flat = FlatBoxes([], [], [], [], [], [], lambda i: f"{short} annotations[{i}]")
    shapes: list[Any] = []
    follows: set[int] = set()
    unknown: Counter[Id] = Counter()
    for i, note in enumerate(notes):
        try:
            raw = note.get("image_id") if isinstance(note, dict) else None
            row = row_of.get(raw) if type(raw) is int else None
            if row is None:
                raw = _entry_id(note, "image_id", image_id)
                row = row_of.get(raw)
                if row is None and raw not in left_out:
                    unknown[raw] += 1
            if row is None or row < 0:
                continue
            raw = note.get("category_id")
            label = class_of.get(raw) if type(raw) is int else None
            if label is None:
                label = _class(raw, class_of, category_id)
            shape = note.get("segmentation")
            corners = corners_of_bbox(note.get("bbox"))
            if corners is None:
                corners = box_of(shape)
                if corners is None:
                    raise BadValue(f"bbox is {shown(note.get('bbox'))}, and there is no mask that it follows from")
                follows.add(len(shapes))
            hard, crowd = note.get("difficult"), note.get("iscrowd")
            difficult = not (hard is None or hard == 0) and yes_or_no(hard)
            crowd = not (crowd is None or crowd == 0) and yes_or_no(crowd)
        except BadValue as error:
            report.leave_out_entry(flat.place_of(i), str(error))
            continue
        flat.image.append(row)
        flat.corners.append(corners)
        flat.classes.append(label)
        flat.difficult.append(difficult)
        flat.crowd.append(crowd)
        flat.place.append(i)
        shapes.append(shape)
    for raw, count in sorted(unknown.items(), key=lambda pair: str(pair[0])):
        report.miss(f"image id {raw}" + (f" ({count} annotations)" if count > 1 else ""))

    catalog = catalog_of(
        base,
        keys,
        report,
        verify=source.verify,
        classes=classes,
        boxes=flat._replace(segmentations=shapes if any(shapes) else None, follows=frozenset(follows)),
        stated_sizes=[sizes[key] for key in keys],
    )
    return catalog, report


def _parts(file: str, report: IndexReport) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the lists of images, annotations and categories; the last two may be missing."""
    content = read_json(file, "annotations", "say with --annotations", once=("images", "annotations", "categories"))
    lists = []
    for part in ("images", "annotations", "categories"):
        found = content.get(part) if isinstance(content, dict) else None
        if found is None and part != "images" and isinstance(content, dict):
            report.remark(os.path.basename(file), f"there is no list '{part}'")
            found = []
        if not isinstance(found, list):
            raise ObjcropError(f"{file} has no list '{part}', so it is not a COCO instances file; check --format.")
        lists.append(found)
    return lists[0], lists[1], lists[2]


def _images(entries: list[Any], base: str, short: str, report: IndexReport) -> list[_Image]:
    """Return the images that can be used, with the keys that their names mean."""
    found: list[_Image] = []
    for i, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise BadValue(f"the entry is {shown(entry)}")
            plain_id(entry.get("id"))
            name = entry.get("file_name")
            if type(name) is int:
                name = str(name)
            if not isinstance(name, str) or not name.strip():
                raise BadValue(f"file_name is {shown(name)}")
        except BadValue as error:
            report.leave_out_entry(f"{short} images[{i}]", str(error))
            continue
        try:
            size = pixels(entry.get("width")), pixels(entry.get("height"))
        except BadValue as error:
            report.remark(f"{short} images[{i}]", f"a size is not used: {error}")
            size = (0, 0)
        found.append(_Image(i, entry["id"], name, "", size if all(size) else (0, 0)))

    key_of = key_finder([image.name for image in found], base)
    images = []
    for image in found:
        try:
            images.append(image._replace(key=key_of(image.name)))
        except BadValue as error:
            report.leave_out_entry(f"{short} images[{image.number}]", str(error))
    return images


def _classes(
    entries: list[Any], notes: list[Any], file: str, short: str, report: IndexReport
) -> tuple[list[str], dict[Id | None, int], Callable[[Any], Id]]:
    """Return the class names, the class of each category id (and of None, no id), and what makes a key of an id."""
    pairs: list[tuple[Any, str]] = []
    for i, entry in enumerate(entries):
        try:
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, (str, int, float)) or isinstance(name, bool) or not str(name).strip():
                raise BadValue(f"the category is {shown(entry)}, without a name")
            plain_id(entry.get("id"))
            pairs.append((entry["id"], printable(str(name).strip())))
        except BadValue as error:
            report.leave_out_entry(f"{short} categories[{i}]", str(error))
    used = (note.get("category_id") for note in notes if isinstance(note, dict))
    classless = any(isinstance(note, dict) for note in notes) and all(raw is None for raw in used)
    if not pairs and not classless:
        for raw in (note.get("category_id") for note in notes if isinstance(note, dict)):
            if type(raw) is int or (isinstance(raw, str) and raw.strip()):
                pairs.append((raw, str(raw).strip()))
        if pairs:
            report.remark(short, "no category has a name; classes are named by their ids")
    try:
        names, key_of = id_table(pairs)
    except AmbiguousId as error:
        raise ObjcropError(f"{file} has a category id twice: {error}; every category needs its own.") from None
    ids = sorted(names, key=lambda key: (isinstance(key, str), key))
    classes = list(dict.fromkeys(names[key] for key in ids))
    for name, count in Counter(names.values()).items():
        if count > 1:
            same = ", ".join(str(key) for key in ids if names[key] == name)
            report.remark(short, f"the categories {same} are all named {shown(name)}: one class")
    class_of: dict[Id | None, int] = {key: classes.index(names[key]) for key in ids}
    if classless:
        classes = classes if len(classes) == 1 else [ONE_CLASS]
        class_of[None] = 0
        report.remark(short, f"no annotation has a category_id; all are of the class {shown(classes[0])}")
    return classes, class_of, key_of


def _class(raw: Any, class_of: dict[Id | None, int], category_id: Callable[[Any], Id]) -> int:
    try:
        label = class_of.get(None if raw is None else category_id(raw))
    except BadValue:
        raise BadValue(f"category_id is {shown(raw)}") from None
    if label is None:
        raise BadValue(f"category_id is {shown(raw)}, which is not listed")
    return label


def _entry_id(note: Any, name: str, key_of: Callable[[Any], Id]) -> Id:
    if not isinstance(note, dict):
        raise BadValue(f"the entry is {shown(note)}")
    try:
        return key_of(note.get(name))
    except BadValue:
        raise BadValue(f"{name} is {shown(note.get(name))}") from None


def _has_id(entry: Any) -> bool:
    try:
        plain_id(entry.get("id"))
    except (AttributeError, BadValue):
        return False
    return True


def corners_of_bbox(bbox: Any) -> tuple[float, float, float, float] | None:
    """Return x0,y0,x1,y1 of a bbox, None where there is none; a null among four numbers is NaN."""
    if bbox is None or bbox == []:
        return None
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise BadValue(f"bbox is {shown(bbox)}, not four numbers")
    try:
        x, y, width, height = bbox
        if not type(x) is type(y) is type(width) is type(height) is float:
            x, y, width, height = map(number, bbox)
    except BadValue as error:
        raise BadValue(f"bbox: {error}") from None
    return x, y, x + width, y + height
