"""COCO segmentations (polygons, RLE, compressed RLE) checked number by number, then made upright, compressed RLE.

pycocotools trusts what it is given: a coordinate that is NaN or far away, a count that is negative, a string that ends
in the middle of a number make it write past its memory, or take all there is. So nothing reaches it unchecked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from objcrop.errors import shown
from objcrop.exif import upright_array
from objcrop.formats.plain_values import BadValue, number, pixels

Frame = tuple[int, int]  # width, height
_CHUNK = 256  # masks checked together


def upright_masks(
    segmentations: Sequence[Any],
    frames: Sequence[Frame],
    orientations: Sequence[int],
    drop: Callable[[int, str], None],
) -> Iterator[str | None]:
    """Yield each segmentation as `upright_rle` returns it; None and a call of `drop` for one that is broken.

    Args:
        segmentations: any of COCO's kinds.
        frames: width and height of the frame that each is in.
        orientations: EXIF orientation that turns each frame upright.
        drop: gets the position of a broken one, and why.
    """
    for begin in range(0, len(segmentations), _CHUNK):
        part = range(begin, min(begin + _CHUNK, len(segmentations)))
        reasons = why_broken([segmentations[i] for i in part], [frames[i] for i in part])
        for i in part:
            try:
                if i - begin in reasons:
                    raise BadValue(reasons[i - begin])
                yield upright_rle(segmentations[i], frames[i], orientations[i])
            except BadValue as error:
                drop(i, str(error))
                yield None


def upright_rle(segmentation: Any, frame: Frame, orientation: int) -> str | None:
    """Return a COCO segmentation as upright, compressed RLE: JSON of {"size": [height, width], "counts": str}.

    Args:
        segmentation: polygons (list of x,y lists, pixels; a single one may come without the outer list), or an RLE
            dict, compressed (and checked by `why_broken`) or not; may be empty or None.
        frame: width and height of the frame the segmentation is in.
        orientation: EXIF orientation that turns this frame upright.

    Returns:
        The JSON, or None where there is no mask.

    Raises:
        BadValue: the mask is broken, or does not fit its image.
    """
    from pycocotools import mask as coco_mask

    width, height = frame
    rle: Any
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            _refuse_other_size(segmentation, frame)
            rle = {"size": [height, width], "counts": counts.encode("ascii")}
        else:
            rle = coco_mask.frPyObjects(
                {"size": [height, width], "counts": _counts(segmentation, frame)}, height, width
            )
    else:
        polygons = polygons_of(segmentation)
        if not polygons:
            return None
        _refuse_far(polygons, frame)
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if orientation != 1:
        rle = coco_mask.encode(np.asfortranarray(upright_array(coco_mask.decode(rle), orientation)))
    height, width = rle["size"]
    return f'{{"size":[{height},{width}],"counts":{json.dumps(rle["counts"].decode())}}}'


def why_broken(segmentations: Sequence[Any], frames: Sequence[Frame]) -> dict[int, str]:
    """Return for each compressed RLE that is broken, by its position, why; the others are not looked at.

    Args:
        segmentations: any of COCO's kinds.
        frames: width and height of each one's image.
    """
    at = [i for i, s in enumerate(segmentations) if isinstance(s, dict) and isinstance(s.get("counts"), str)]
    texts = [segmentations[i]["counts"] for i in at]
    reasons = _why_broken_counts(texts, [frames[i][0] * frames[i][1] for i in at])
    return {i: reason for i, reason in zip(at, reasons, strict=True) if reason is not None}


def box_of(segmentation: Any) -> tuple[float, float, float, float] | None:
    """Return the box that a segmentation fills, x0,y0,x1,y1 in pixels of its own frame; None where there is none.

    Raises:
        BadValue: the mask is broken.
    """
    if not isinstance(segmentation, dict):
        polygons = polygons_of(segmentation)
        if not polygons:
            return None
        xs, ys = ([v for flat in polygons for v in flat[axis::2]] for axis in (0, 1))
        return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))
    size = _size(segmentation)
    if size is None:
        raise BadValue("there is neither a bbox nor a mask that states its size")
    height = size[1]
    if isinstance(segmentation.get("counts"), str):
        reason = why_broken([segmentation], [size]).get(0)
        if reason is not None:
            raise BadValue(reason)
        counts, _ = _decoded([segmentation["counts"]])
    else:
        counts = np.array(_counts(segmentation, size), np.int64)
    ends = np.cumsum(counts)
    begin, end = ends[:-1:2][: len(counts) // 2], ends[1::2]
    begin, end = begin[begin < end], end[begin < end]
    if not len(begin):
        return None
    # Runs go down the columns; one that goes over a column's end fills the image's height.
    first, last = begin // height, (end - 1) // height
    over = (first != last).any()
    y0, y1 = (0, height) if over else (int((begin % height).min()), int(((end - 1) % height).max()) + 1)
    return float(first.min()), float(y0), float(last.max() + 1), float(y1)


def polygons_of(segmentation: Any) -> list[list[float]]:
    """Return the polygons of a segmentation, each x, y, x, y, …; those of fewer than three points are no mask.

    Raises:
        BadValue: something other than finite x, y pairs.
    """
    if segmentation is None or segmentation == "":
        return []
    if not isinstance(segmentation, list):
        raise BadValue(f"the segmentation is {shown(segmentation)}")
    if segmentation and not isinstance(segmentation[0], list):
        segmentation = [segmentation]
    return [flat for polygon in segmentation if len(flat := _flat(polygon)) >= 6]


def _flat(polygon: Any) -> list[float]:
    if not isinstance(polygon, list):
        raise BadValue(f"a polygon is {shown(polygon)}")
    if polygon and isinstance(polygon[0], list):  # a list of x, y pairs
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in polygon):
            raise BadValue("a polygon's points are no x, y pairs")
        polygon = [value for pair in polygon for value in pair]
    if not set(map(type, polygon)) <= {int, float}:
        polygon = [number(value) for value in polygon]
    if len(polygon) % 2:
        raise BadValue(f"a polygon has {len(polygon)} coordinates, which are no pairs")
    try:
        finite = math.isfinite(sum(polygon))  # NaN and infinity stay in a sum
    except OverflowError:
        finite = False
    if not finite:
        raise BadValue("a coordinate of the polygon is not finite")
    return polygon


def _refuse_far(polygons: list[list[float]], frame: Frame) -> None:
    """A polygon may reach over its image's edge, but not by more than the image, nor cross it hundreds of times.

    pycocotools takes memory for every fifth of a pixel along the outline.
    """
    longest = 10_000 + 200 * sum(frame)
    near = min(frame)
    for flat in polygons:
        if min(flat) < -near or max(flat) > 2 * near:
            for axis, side in enumerate(frame):
                for value in (min(flat[axis::2]), max(flat[axis::2])):
                    if not -side <= value <= 2 * side:
                        where = f"the image of {frame[0]}x{frame[1]}"
                        raise BadValue(f"the polygon's coordinate {shown(value)} is far outside {where}")
    if sum(map(len, polygons)) // 2 * 3 * max(frame) > longest:
        edges = [np.diff(np.reshape(flat + flat[:2], (-1, 2)), axis=0) for flat in polygons]
        outline = sum(float(np.abs(edge).max(1).sum()) for edge in edges)
        if outline > longest:
            raise BadValue(f"the polygon's outline of {outline:.0f} pixels is too long for {frame[0]}x{frame[1]}")


def _counts(segmentation: dict[str, Any], frame: Frame) -> list[int]:
    """Return the counts of an uncompressed RLE, which fill the frame."""
    _refuse_other_size(segmentation, frame)
    counts = segmentation.get("counts")
    if not isinstance(counts, list) or not counts:
        raise BadValue(f"the mask's counts are {shown(counts)}")
    if not all(type(count) is int for count in counts):
        floats = [number(count) for count in counts]
        if not all(0 <= count < 2**53 and count == int(count) for count in floats):
            raise BadValue("a count of the mask is no whole number from 0")
        counts = [int(count) for count in floats]
    if min(counts) < 0:
        raise BadValue(f"the mask's count {shown(min(counts))} is negative")
    if sum(counts) != frame[0] * frame[1]:
        raise BadValue(f"the mask's counts fill {shown(sum(counts))} pixels, the image has {frame[0] * frame[1]}")
    return counts


def _size(segmentation: dict[str, Any]) -> Frame | None:
    """Return the width and height that an RLE states, None where it states none."""
    size = segmentation.get("size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2:
        raise BadValue(f"the mask's size is {shown(size)}")
    height, width = (pixels(side) for side in size)
    return width, height


def _refuse_other_size(segmentation: dict[str, Any], frame: Frame) -> None:
    if segmentation.get("size") == [frame[1], frame[0]]:
        return
    size = _size(segmentation)
    if size is not None and size != frame:
        stated = shown(segmentation["size"])
        raise BadValue(f"the mask's size, [height, width], is {stated}, the image's [{frame[1]}, {frame[0]}]")


def _why_broken_counts(texts: list[str], areas: list[int]) -> list[str | None]:
    """Return for each compressed RLE why it is not one that fills `areas` pixels, None where it is."""
    reasons: list[str | None] = [None] * len(texts)
    well: list[int] = []
    together = "".join(texts)
    all_allowed = together.isascii() and not together.encode().translate(None, _ALLOWED)
    for i, text in enumerate(texts):
        if not text or not (all_allowed or (text.isascii() and not text.encode().translate(None, _ALLOWED))):
            reasons[i] = "the mask's counts are no compressed RLE"
        elif text[-1] >= "P":
            reasons[i] = "the mask's counts end in the middle of a number"
        else:
            well.append(i)
    if not well:
        return reasons
    counts, lengths = _decoded([texts[i] for i in well])
    first = np.cumsum(lengths) - lengths
    totals = np.add.reduceat(counts, first)
    lows = np.minimum.reduceat(counts, first)
    highs = np.maximum.reduceat(counts, first)
    for i, total, low, high in zip(well, totals.tolist(), lows.tolist(), highs.tolist(), strict=True):
        if low < 0 or high > areas[i]:
            reasons[i] = f"the mask's count {low if low < 0 else high} cannot be"
        elif total != areas[i]:
            reasons[i] = f"the mask's counts fill {total} pixels, the image has {areas[i]}"
    return reasons


# The 64 characters of compressed RLE, "0" to "o": five bits each, and one that says that the number goes on.
_ALLOWED = bytes(range(48, 112))
_TOO_MUCH = 2**40


def _decoded(texts: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the counts of well-formed compressed RLEs one after the other, and how many each has.

    The format is pycocotools' (`rleToString` in maskApi.c): numbers of five bits a character, the lowest first, the
    last one's highest bit the sign; from the fourth on the difference to the last but one.
    """
    code = np.frombuffer("".join(texts).encode(), np.uint8) - np.uint8(48)
    ends = np.flatnonzero(code < 32)  # the last character of each number
    width = np.diff(ends, prepend=-1)
    # Two's complement in as many characters as there are; no count of an image has more than eight.
    value = (code[ends] & 31).astype(np.int64)
    value -= (value & 16) << 1
    for place in range(1, min(8, int(width.max()))):
        has = np.flatnonzero(width > place)
        value[has] = (value[has] << 5) | (code[ends[has] - place] & 31)
    value[width > 8] = _TOO_MUCH

    lengths = np.diff(np.searchsorted(ends, np.cumsum([len(text) for text in texts]) - 1) + 1, prepend=0)
    # Differences are added up along the odd counts of each mask, and along the even ones after the first: two columns,
    # in which every mask begins a row.
    rows = (lengths + 1) // 2
    first_row = np.cumsum(rows) - rows
    at = np.arange(len(value)) + np.repeat(2 * first_row - (np.cumsum(lengths) - lengths), lengths)
    columns = np.zeros((int(rows.sum()), 2), np.int64)
    flat = columns.reshape(-1)
    flat[at] = value
    first = columns[first_row, 0]
    columns[first_row, 0] = 0
    sums = np.cumsum(columns, 0)
    before = sums[first_row] - columns[first_row]
    sums -= np.repeat(before, rows, axis=0)
    sums[first_row, 0] = first
    return sums.reshape(-1)[at], lengths
