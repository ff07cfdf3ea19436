"""OpenImages V4 to V7 by its published CSVs (Kuznetsova et al. 2020; storage.googleapis.com/openimages/web)."""

from __future__ import annotations

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, printable, shown
from objcrop.formats import FlatBoxes, FlatLabels, IndexReport, catalog_of, folder_at
from objcrop.formats.csv_columns import Block, blocks
from objcrop.formats.image_names import is_image_name
from objcrop.formats.plain_values import BadValue, yes_or_no
from objcrop.formats.source import Source
from objcrop.formats.text_file import read_text
from objcrop.formats.visible_files import visible_files, visible_objects
from objcrop.place import is_address

CORNERS = ("XMin", "YMin", "XMax", "YMax")
EXIF_OF_ROTATION = {0.0: 1, 90.0: 8, 180.0: 3, 270.0: 6}  # degrees counter-clockwise


def read_openimages(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the images that OpenImages' boxes (`train-annotations-bbox.csv` and the like) name.

    An image is the file `ImageID.jpg` (or another ending), at any depth: all in one folder, or in `train_0` to
    `train_f` as the archives have them. Files that the CSVs do not name are no part of the data set.

    **Frame.** Boxes are shares of the image as it is stored. `*rotation*.csv` beside the boxes say by how many degrees
    counter-clockwise "the image and boxes should be rotated" to stand upright
    (storage.googleapis.com/openimages/web/2018-05-17-rotation-information.html). That becomes the orientation, in place
    of the file's EXIF, which is lost where images were resized. Where Rotation is empty (the photo had gone from
    Flickr), or there is no such file, EXIF rules as in all formats. Either way boxes are turned with their image.

    Boxes with IsGroupOf are crowd. The other flags and Confidence, which is 1 for published boxes, are not used.

    **Classes** are the LabelNames (MIDs) that occur, with the names that `*class-descriptions*.csv` beside the boxes
    gives, in its order; several of one name have their MID behind it. A MID that is not described is its own name.

    **Image-level labels** (`image_labels`) with a Confidence of .5 or more, which human-verified "1" and
    machine-generated scores have and verified absence, "0", has not, are labels beside the classes of the boxes.

    Args:
        source: its path is the CSV of the boxes, or a folder with the only such CSV, or, where annotations is that CSV
            or its folder, the folder of images; root is the folder of images, left out the path if that is a folder or
            else the CSV's.

    Raises:
        ObjcropError: a file or folder is missing, a CSV lacks a column, an image is there twice, a class has two names,
            no image is left, or something cannot be used and the source is strict.
    """
    is_folder = is_address(source.path) or os.path.isdir(source.path)
    file = _boxes_file(os.fspath(source.annotations or source.path))
    beside = os.path.dirname(os.path.abspath(file))
    base = folder_at(source.root or (source.path if is_folder else beside), "image folder")
    report = IndexReport(strict=source.strict)
    images = ImagesById(base, report)

    ids: dict[str, int] = {}
    mids: dict[str, int] = {}
    boxes = _boxes(file, ids, mids, report)
    labels = None
    if source.image_labels is not None:
        labels = _labels(os.fspath(source.image_labels), images, ids, mids, report)
    return catalog_by_ids(source, file, images, ids, mids, boxes, labels, report), report


def catalog_by_ids(
    source: Source,
    file: str,
    images: ImagesById,
    ids: Collection[str],
    mids: Collection[str],
    boxes: FlatBoxes | None,
    labels: FlatLabels | None,
    report: IndexReport,
) -> Catalog:
    """Return the catalog of OpenImages' annotations, once images have keys and classes names.

    Args:
        source: its limit and verify.
        file: that names the images; rotations and descriptions lie beside it.
        images: those that are there.
        ids: of the images, each once.
        mids: of the classes, each once.
        boxes: arrays; image and classes are positions in `ids` and `mids`.
        labels: the same; beside the classes of the boxes.
        report: gets what is missed and left out.
    """
    keys, position = images.keys_of(ids, os.path.basename(file), source.limit, report)
    classes, class_of = named_classes(mids, os.path.dirname(os.path.abspath(file)), report)
    if boxes is not None:
        there = position[boxes.image] >= 0
        boxes = boxes._replace(
            image=position[boxes.image[there]],
            corners=boxes.corners[there],
            classes=class_of[boxes.classes[there]],
            difficult=boxes.difficult[there],
            crowd=boxes.crowd[there],
            place=boxes.place[there],
        )
    if labels is not None:
        there = position[labels.image] >= 0
        labels = FlatLabels(position[labels.image[there]], class_of[labels.classes[there]])
    return catalog_of(
        images.base,
        keys,
        report,
        verify=source.verify,
        classes=classes,
        boxes=boxes,
        labels=labels,
        turns=turns_beside(file, keys, report),
    )


def _boxes_file(path: str) -> str:
    """Return the CSV of boxes that a path means: itself, or the only one in a folder."""
    if not os.path.isdir(path):
        return path
    found = sorted(name for name in os.listdir(path) if name.lower().endswith("bbox.csv"))
    if len(found) == 1:
        return os.path.join(path, found[0])
    what = f"holds {', '.join(found)}" if found else "holds no CSV of boxes (*bbox.csv)"
    raise ObjcropError(f"{path} {what}; name the file, such as train-annotations-bbox.csv, with --annotations.")


class ImagesById:
    """The images below a folder or an address, by their names without folder and ending."""

    def __init__(self, base: str, report: IndexReport) -> None:
        self.base = base
        self._key_of: dict[str, str] = {}
        self._second: dict[str, str] = {}  # another key of the same name
        for key in visible_objects(base, "") if is_address(base) else visible_files(base, base, report):
            if is_image_name(key):
                name = posixpath.splitext(posixpath.basename(key))[0]
                if self._key_of.setdefault(name, key) != key:
                    self._second[name] = key

    def __contains__(self, name: str) -> bool:
        return name in self._key_of

    def keys_of(
        self, ids: Collection[str], short: str, limit: int | None, report: IndexReport
    ) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Return the keys of the images of these ids, sorted, and of each id the position of its key.

        Args:
            ids: each once; those without a file are missed in the report.
            short: the file that names them.
            limit: the first so many keys only.
            report: gets what is missed.

        Returns:
            the keys; int64 (number of ids,), -1 where there is no file or it is beyond the limit.

        Raises:
            ObjcropError: an id has two files, or none has one.
        """
        found = []
        for name in ids:
            if name in self._second:
                one, two = shown(self._key_of[name]), shown(self._second[name])
                raise ObjcropError(f"{self.base} has the image {shown(name)} twice, {one} and {two}; take one away.")
            found.append(self._key_of.get(name))
            if found[-1] is None:
                report.miss(name)
        keys = sorted(key for key in found if key is not None)[:limit]
        if not keys:
            first = f", such as {printable(report.missing_annotated[0])}" if report.missing_annotated else ""
            raise ObjcropError(f"{self.base} has no image that {short} names{first}; say with --root where they are.")
        at = {key: i for i, key in enumerate(keys)}
        return keys, np.array([at.get(key or "", -1) for key in found], np.int64)


def _boxes(file: str, ids: dict[str, int], mids: dict[str, int], report: IndexReport) -> FlatBoxes:
    """Return the boxes of a CSV; images and classes are numbers in `ids` and `mids`, which learn new ones."""
    parts: list[tuple[npt.NDArray, ...]] = []
    for block in blocks(file, "CSV of boxes", report, ("ImageID", "LabelName", *CORNERS), ("IsGroupOf",)):
        wrong: dict[int, str] = {}
        image, label = (_numbered(block, name, known, wrong) for name, known in (("ImageID", ids), ("LabelName", mids)))
        corners = np.stack([block.numbers(name, wrong) for name in CORNERS], 1).astype(np.float32)
        if len(corners) and np.median(corners) > 2:  # else millions of boxes are listed, all for one reason
            at = f"{os.path.basename(file)} line {block.lines[0]}"
            raise ObjcropError(
                f"{at} has the box {corners[0].tolist()}, in pixels, not shares of 1; try --format list."
            )
        crowd = _groups(block, wrong)
        good = block.good(wrong, report)
        parts.append((image[good], corners[good], label[good], crowd[good], block.lines[good]))
    empty = (np.zeros(0, np.int32), np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))
    image, corners, label, crowd, line = map(np.concatenate, zip((*empty, np.zeros(0, np.int64)), *parts))
    short = os.path.basename(file)
    return FlatBoxes(
        image, corners, label, np.zeros(len(image), bool), crowd, line, lambda at: f"{short} line {at}", shares=True
    )


def _labels(
    file: str, images: ImagesById, ids: dict[str, int], mids: dict[str, int], report: IndexReport
) -> FlatLabels:
    """Return the labels of a CSV that say that a class is there, of the images that are: numbers in `ids` and `mids`.

    The published files label millions of images more than have boxes; those are counted in a remark and not missed.
    """
    parts = [(np.zeros(0, np.int32), np.zeros(0, np.int32))]
    elsewhere = 0
    for block in blocks(file, "CSV of image-level labels", report, ("ImageID", "LabelName", "Confidence")):
        wrong: dict[int, str] = {}
        sure = block.numbers("Confidence", wrong) >= 0.5
        texts, which = block.texts("ImageID")
        of_texts = [ids.setdefault(text, len(ids)) if text in images else -1 for text in texts]
        image = np.array(of_texts, np.int32)[which]
        label = _numbered(block, "LabelName", mids, wrong)
        good = block.good(wrong, report) & sure
        elsewhere += int((good & (image < 0)).sum())
        good &= image >= 0
        parts.append((image[good], label[good]))
    if elsewhere:
        report.remark(os.path.basename(file), f"{elsewhere} labels are of images that are not there")
    return FlatLabels(*map(np.concatenate, zip(*parts)))


def _numbered(block: Block, name: str, known: dict[str, int], wrong: dict[int, str]) -> npt.NDArray[np.int32]:
    """Return the numbers of a column's texts in `known`, which learns new ones; empty cells are -1, and `wrong`."""
    texts, which = block.texts(name)
    numbers = np.array([known.setdefault(text, len(known)) if text else -1 for text in texts], np.int32)
    of_rows = numbers[which]
    for row in np.flatnonzero(of_rows < 0):
        wrong.setdefault(int(row), f"{name} is empty")
    return of_rows


def _groups(block: Block, wrong: dict[int, str]) -> npt.NDArray[np.bool_]:
    """Return which boxes are of groups; -1 is unknown, and counts as no."""
    if not block.has("IsGroupOf"):
        return np.zeros(len(block.lines), bool)
    texts, which = block.texts("IsGroupOf")
    flags = np.zeros(len(texts), bool)
    for i, text in enumerate(texts):
        try:
            flags[i] = text != "-1" and yes_or_no(text)
        except BadValue as error:
            wrong.update((int(row), f"IsGroupOf: {error}") for row in np.flatnonzero(which == i))
    return flags[which]


def named_classes(mids: Collection[str], beside: str, report: IndexReport) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the names of classes, in the order of their descriptions, and the class of each MID.

    Args:
        mids: as they occur.
        beside: folder of the descriptions.
        report: gets a remark for MIDs without one.

    Raises:
        ObjcropError: a description file names a MID twice.
    """
    names: dict[str, str] = {}
    found = (name for name in os.listdir(beside) if "class-descriptions" in name.lower() and name.endswith(".csv"))
    for name in sorted(found, key=lambda name: ("boxable" not in name, name)):
        for mid, called in _descriptions(os.path.join(beside, name), report).items():
            names.setdefault(mid, called)
    unnamed = sorted(mid for mid in mids if mid not in names)
    if names and unnamed:
        some = ", ".join(map(printable, unnamed[:3])) + (", …" if len(unnamed) > 3 else "")
        report.remark(beside, f"{len(unnamed)} classes have no description and are named by their id: {some}")
    ordered = [mid for mid in names if mid in mids] + unnamed
    count = Counter(names.get(mid, mid) for mid in ordered)
    classes = []
    for mid in ordered:
        name = names.get(mid, printable(mid))
        classes.append(f"{name} ({mid})" if count[name] > 1 and name != mid else name)
    at = {mid: i for i, mid in enumerate(ordered)}
    return classes, np.array([at[mid] for mid in mids], np.int64)


def _descriptions(file: str, report: IndexReport) -> dict[str, str]:
    """Return the names of the MIDs in a file of class descriptions; a first line of column names is none of them."""
    short = os.path.basename(file)
    names: dict[str, str] = {}
    for number, line in enumerate(read_text(file, "class descriptions").splitlines(), 1):
        try:
            cells = [cell.strip() for cell in next(csv.reader([line.replace("\0", "\ufffd")], strict=True), [])]
            if not any(cells) or (number == 1 and cells[0].lower() in ("labelname", "id", "mid")):
                continue
            if len(cells) < 2 or not all(cells[:2]):
                raise BadValue(f"it is {shown(line)}, not a MID and a name")
        except (BadValue, csv.Error) as error:
            report.leave_out_entry(f"{short} line {number}", str(error))
            continue
        mid, name = cells[0], printable(cells[1])
        if names.setdefault(mid, name) != name:
            raise ObjcropError(
                f"{file} names the class {shown(mid)} twice, {shown(names[mid])} and {shown(name)}; take one line out."
            )
    return names


def turns_beside(file: str, keys: Sequence[str], report: IndexReport) -> npt.NDArray[np.int8]:
    """Return the EXIF orientation of each image by the Rotation that files beside a CSV state, 0 where they state none.

    Args:
        file: `*rotation*.csv` in its folder are read.
        keys: (N,) of the images.
        report: gets rows that cannot be used.
    """
    at = {posixpath.splitext(posixpath.basename(key))[0]: i for i, key in enumerate(keys)}
    turns = np.zeros(len(keys), np.int8)
    folder = os.path.dirname(os.path.abspath(file))
    for name in sorted(os.listdir(folder)):
        if "rotation" not in name.lower() or not name.lower().endswith(".csv"):
            continue
        for block in blocks(os.path.join(folder, name), "CSV of rotations", report, ("ImageID", "Rotation")):
            wrong: dict[int, str] = {}
            texts, which = block.texts("ImageID")
            row_of = np.array([at.get(text, -1) for text in texts], np.int64)[which]
            degrees = block.numbers("Rotation", wrong)
            turn = np.zeros(len(degrees), np.int8)
            for angle, orientation in EXIF_OF_ROTATION.items():
                turn[degrees == angle] = orientation
            for row in np.flatnonzero((turn == 0) & ~np.isnan(degrees) & (row_of >= 0)):
                wrong.setdefault(int(row), f"Rotation is {degrees[row]:g}, not 0, 90, 180 or 270")
            states = (turn > 0) & (row_of >= 0)
            first = np.flatnonzero(states & (turns[row_of] == 0))[::-1]  # of two rows for an image the first
            turns[row_of[first]] = turn[first]
            for row in np.flatnonzero(states & (turns[row_of] != turn)):
                wrong[int(row)] = f"Rotation is {degrees[row]:g}, but was another before"
            block.good(wrong, report)
    return turns
