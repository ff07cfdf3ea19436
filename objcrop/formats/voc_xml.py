"""One XML file of PASCAL VOC's annotations, as labelling tools write it."""

from __future__ import annotations

from typing import NamedTuple
from xml.etree import ElementTree

from objcrop.errors import printable, shown
from objcrop.exif import why_unreadable
from objcrop.formats.plain_values import BadValue, number, pixels, yes_or_no
from objcrop.formats.text_file import decoded
from objcrop.read_file import read_file


class VocObject(NamedTuple):
    """An object of an image.

    number counts from 1; label is "" where the file names none; corners are x0,y0,x1,y1, half-open pixels.
    """

    number: int
    label: str
    corners: tuple[float, float, float, float]
    difficult: bool


class VocXml(NamedTuple):
    """What a file says.

    filename, "" for none; size: width and height that it states, 0 for none; objects; bad: number and reason of each
    object that cannot be used; remarks on the whole.
    """

    filename: str
    size: tuple[int, int]
    objects: list[VocObject]
    bad: list[tuple[int, str]]
    remarks: list[str]


def read_voc_xml(path: str) -> VocXml:
    """Read one file; VOC's boxes are 1-based and hold their last pixel: they become xmin-1, ymin-1, xmax, ymax.

    Raises:
        BadValue: the file cannot be read, is broken (with line and column) or no annotation of VOC.
        ObjcropError: the file system fails for long.
    """
    tree = _tree(path)
    read = VocXml((tree.findtext("filename") or "").strip(), (0, 0), [], [], [])
    try:
        frame = tree.find("size")
        sides = ("", "") if frame is None else (frame.findtext("width") or "", frame.findtext("height") or "")
        width, height = (pixels(side.strip()) for side in sides)
        read = read._replace(size=(width, height) if width and height else (0, 0))
    except BadValue as error:
        read.remarks.append(f"its size is not used: {error}")
    swapped = 0
    for i, thing in enumerate(tree.findall("object"), 1):
        try:
            label = printable((thing.findtext("name") or "").strip())
            box = thing.find("bndbox")
            x0, y0, x1, y1 = (_edge(box, side) for side in ("xmin", "ymin", "xmax", "ymax"))
            swapped += x0 > x1 or y0 > y1
            x0, x1 = (x1, x0) if x0 > x1 else (x0, x1)
            y0, y1 = (y1, y0) if y0 > y1 else (y0, y1)
            difficult = yes_or_no(thing.findtext("difficult"))
            read.objects.append(VocObject(i, label, (x0 - 1, y0 - 1, x1, y1), difficult))
        except BadValue as error:
            read.bad.append((i, str(error)))
    if swapped:
        read.remarks.append(f"{swapped} of its boxes have xmin and xmax or ymin and ymax swapped")
    return read


def names_in(path: str) -> set[str]:
    """Return the class names in a file; none where it cannot be read."""
    try:
        return {thing.label for thing in read_voc_xml(path).objects}
    except BadValue:
        return set()


def _tree(path: str) -> ElementTree.Element:
    try:
        text = decoded(read_file(path)).strip("\ufeff\0 \t\r\n")
    except OSError as error:
        raise BadValue(f"it cannot be read: {why_unreadable(error)}") from None
    if not text:
        raise BadValue("it is empty")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        line, column = error.position
        raise BadValue(f"it is broken XML at line {line}, column {column + 1}") from None
    except ValueError:
        raise BadValue("it holds bytes that are no text in its encoding") from None
    name = tree.tag.rpartition("}")[2]
    if name.lower() != "annotation":
        raise BadValue(f"it is no annotation of VOC: its outermost element is <{printable(name)}>")
    return tree


def _edge(box: ElementTree.Element | None, side: str) -> float:
    text = None if box is None else box.findtext(side)
    if text is None or not text.strip():
        raise BadValue(f"there is no bndbox of four numbers: {side} is missing")
    try:
        return number(text.strip())
    except BadValue:
        raise BadValue(f"there is no bndbox of four numbers: {side} is {shown(text.strip())}") from None
