"""From a folder of images, with or without annotations, to a `Catalog`: one module a format, all with one signature.

    read_<format>(source: Source) -> (Catalog, IndexReport)

What the readers share is here: headers read in parallel, annotations turned upright, clipped and counted. What one bad
entry of an annotation file costs is that entry: it is left out and listed in the report, or, if `strict`, ends it all.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from objcrop.catalog import Catalog
from objcrop.catalog_table import Ranges
from objcrop.errors import ObjcropError, UsageError, printable, way_out
from objcrop.exif import MISSING, Header, upright_boxes, upright_sizes
from objcrop.formats.coco_masks import upright_masks
from objcrop.formats.headers import read_headers
from objcrop.formats.index_report import IndexReport
from objcrop.formats.source import Source, StrPath
from objcrop.formats_by_name import FORMATS
from objcrop.place import Place, is_address, root_of, under
from objcrop.progress import tracked


def index(
    source: StrPath,
    format: str = "folder",
    *,
    limit: int | None = None,
    verify: bool = False,
    strict: bool = False,
    **options: Any,
) -> tuple[Catalog, IndexReport]:
    """Make the catalog of `source`.

    Args:
        source: folder of images, or what the format says (a COCO JSON, a VOCdevkit).
        format: one of `FORMATS`.
        limit: take the first so many images, in the order of their keys.
        verify: decode every image, and leave out what does not decode.
        strict: end at the first file, entry or mask that cannot be used, instead of leaving it out.
        **options: what `FORMATS` says that the format takes; `Source` says what each is.

    Raises:
        UsageError: unknown format, an option that it does not take, or a limit below 1.
        ObjcropError: a folder or file is missing or none of its format, an id or name may mean two things, no image is
            left, or something cannot be used and `strict`.
    """
    name, _, argument = format.partition(":")
    takes = FORMATS.get(f"{name}:NAME" if argument else name)
    if takes is None:
        raise UsageError(f"--format is '{printable(format)}', but it must be one of: {', '.join(FORMATS)}.")
    given = {option: value for option, value in options.items() if value is not None and value is not False}
    for option in given:
        if option not in takes:
            others = " or ".join(other for other in FORMATS if option in FORMATS[other])
            way = f"leave it out, or use {others}" if others else "leave it out"
            raise UsageError(f"The format '{name}' does not take --{option.replace('_', '-')}; {way}.")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}, but it must be at least 1.")
    module = module_of(name)
    read = getattr(importlib.import_module(f"objcrop.formats.{module}"), f"read_{module}")
    return read(Source(source, argument, limit=limit, verify=verify, strict=strict, **given))


def module_of(name: str) -> str:
    """Return the module of a format; its reader is read_ and this name."""
    return {"list": "image_list"}.get(name, name.replace("-", "_"))  # a module `list` here would hide Python's own


class FlatBoxes(NamedTuple):
    """Boxes of many images as the annotations state them, before any check; lists, or arrays where there are millions.

    image (M,) position in the reader's list of keys; corners (M, 4) x0,y0,x1,y1 half-open pixels, or where `shares`
    shares of the image's width and height, of the stored image or, where `upright`, of the upright one; classes (M,);
    difficult (M,); crowd (M,); place (M,) where each stands, for the report, made by `place_of`; segmentations (M,) as
    COCO has them, in the frame of the boxes, or None for none at all; follows, those whose corners are of their mask.
    """

    image: Any
    corners: Any
    classes: Any
    difficult: Any
    crowd: Any
    place: Any
    place_of: Callable[[Any], str]
    segmentations: list[Any] | None = None
    follows: frozenset[int] = frozenset()
    shares: bool = False
    upright: bool = False


class FlatLabels(NamedTuple):
    """Classes of whole images: image (L,) position in the reader's list of keys; classes (L,)."""

    image: Any
    classes: Any


def catalog_of(
    root: str,
    keys: Sequence[str],
    report: IndexReport,
    *,
    verify: bool,
    classes: Sequence[str] = (),
    boxes: FlatBoxes | None = None,
    labels: FlatLabels | None = None,
    stated_sizes: npt.ArrayLike | None = None,
    turns: npt.ArrayLike | None = None,
    ranges: Ranges | None = None,
    headers: Sequence[Header | str] | None = None,
) -> Catalog:
    """Read the headers of `keys` and fit the boxes to them: upright, clipped, without empty ones.

    Boxes are in the stored frame, unless the annotation states the upright size and that differs from the stored one.

    Args:
        root: image folder, or an address.
        keys: (N,) paths relative to `root`.
        report: filled in as files and boxes are met.
        verify: decode every image too.
        classes: class names.
        boxes: annotations, None for none.
        labels: classes of the images, beside those of their boxes.
        stated_sizes: (N, 2) width and height that the annotations state, 0 where they state none.
        turns: (N,) EXIF orientation 1..8 that the annotations state, in place of the file's, 0 where they state none.
        ranges: where the images lie that are not files of their own; None where all are.
        headers: (N,) as `read_headers` returns them, where they are read already.

    Raises:
        ObjcropError: no image is left, or a key comes twice.
    """
    if headers is None:
        headers = read_headers(places_of(root, keys, ranges), verify)
    for key, header in zip(keys, headers):
        if header == MISSING:
            report.miss(key)
        elif isinstance(header, str):
            report.leave_out_file(key, header)
    good = np.array([isinstance(header, Header) for header in headers], bool)
    if not good.any():
        first = f"; the first is {printable(keys[0])}: {headers[0]}" if len(keys) else ""
        if not len(keys) and report.bad_entries:
            first = "; the first left out is {}: {}".format(*report.bad_entries[0])
        way = way_out("check the folder, or --root", "check the folder")
        raise ObjcropError(f"{root} has no image to index ({len(keys)} tried{first}); {way}.")
    facts = np.array([header if isinstance(header, Header) else (0, 0, 1) for header in headers], np.int32)
    stored, orientations = facts[:, :2], facts[:, 2]
    if turns is not None:
        orientations = np.where(np.asarray(turns) > 0, turns, orientations)
    upright = upright_sizes(stored, orientations)
    row = np.cumsum(good) - 1
    good_keys = [key for key, taken in zip(keys, good) if taken]
    if ranges is not None:
        ranges = Ranges(ranges.sources, *(np.asarray(column)[good] for column in ranges[1:]))
    catalog_rows = (root, good_keys, upright[good], orientations[good])
    report.images = len(good_keys)
    label_images, label_classes = (np.asarray(column, np.int64) for column in labels or ((), ()))
    label_rows, label_classes = row[label_images[good[label_images]]], label_classes[good[label_images]]
    if boxes is None:
        labelled = {"label_rows": label_rows, "label_classes": label_classes}
        return Catalog.build(*catalog_rows, classes=classes, ranges=ranges, **labelled)

    stated = np.zeros((len(keys), 2)) if stated_sizes is None else np.asarray(stated_sizes).reshape(-1, 2)
    is_stored, is_upright = np.all(stated == stored, 1), np.all(stated == upright, 1)
    frame_turn = np.where((is_upright & ~is_stored) | boxes.upright, 1, orientations)
    unlike = good & np.all(stated > 0, 1) & ~is_stored & ~is_upright
    report.other_size += [printable(keys[int(i)]) for i in np.flatnonzero(unlike)]

    image = np.asarray(boxes.image, np.int64)
    inside, finite, over = _fitted(boxes, image, stored, upright, frame_turn)
    area = np.all(inside[:, :2] < inside[:, 2:], 1)
    kept = good[image] & finite & area
    report.clipped += int((kept & over).sum())
    report.dropped_not_finite += int((good[image] & ~finite).sum())
    report.dropped_empty += int((good[image] & finite & ~area).sum())
    for i in np.flatnonzero(good[image] & ~kept):
        reason = "has no area inside its image" if finite[i] else "is not finite"
        report.leave_out_entry(boxes.place_of(boxes.place[i]), f"the box {_rounded(boxes.corners[i])} {reason}")

    masks: list[str | None] | None = None
    if boxes.segmentations is not None:
        at = np.flatnonzero(kept)

        def drop(number: int, reason: str) -> None:
            i = int(at[number])
            place = boxes.place_of(boxes.place[i])
            if i in boxes.follows:
                kept[i] = False
                report.leave_out_entry(place, f"its box follows from its mask: {reason}")
            else:
                report.drop_mask(place, reason)

        frames = np.where((frame_turn == 1)[:, None], upright, stored)[image[at]]
        made = upright_masks(
            [boxes.segmentations[i] for i in at],
            [(width, height) for width, height in frames.tolist()],
            frame_turn[image[at]].tolist(),
            drop,
        )
        masks = list(tracked(made, len(at), "masks"))
        masks = [mask for mask, stays in zip(masks, kept[at], strict=True) if stays]
    report.boxes += int(kept.sum())
    box_rows, box_classes = row[image[kept]], np.asarray(boxes.classes, np.int64)[kept]
    return Catalog.build(
        *catalog_rows,
        classes=classes,
        boxes=inside[kept],
        box_rows=box_rows,
        box_classes=box_classes,
        difficult=np.asarray(boxes.difficult, bool)[kept],
        crowd=np.asarray(boxes.crowd, bool)[kept],
        masks=masks,
        ranges=ranges,
        label_rows=np.append(box_rows, label_rows),
        label_classes=np.append(box_classes, label_classes),
    )


def _fitted(
    boxes: FlatBoxes,
    image: npt.NDArray[np.int64],
    stored: npt.NDArray[np.int32],
    upright: npt.NDArray[np.int32],
    frame_turn: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the corners upright and clipped, float32 (M, 4), and which boxes are finite, and reached over an edge."""
    inside = np.empty((len(image), 4), np.float32)
    finite, over = np.empty(len(image), bool), np.empty(len(image), bool)
    for begin in range(0, len(image), 1 << 20):  # in parts: the steps between take several times the memory
        part = slice(begin, begin + (1 << 20))
        of = image[part]
        corners = np.asarray(boxes.corners[part], np.float64).reshape(-1, 4)
        if boxes.shares:
            corners = corners * np.tile(stored[of], 2)
        corners = upright_boxes(corners, stored[of], frame_turn[of])
        finite[part] = np.all(np.isfinite(corners), 1)
        corners = np.where(finite[part, None], corners, 0)
        inside[part] = np.clip(corners, 0, np.tile(upright[of], 2))
        # A hundredth of a pixel over the edge is the annotation file's rounding, not a box outside its image.
        over[part] = np.any(np.abs(inside[part] - corners) > 0.01, 1)
    return inside, finite, over


def places_of(root: str, keys: Sequence[str], ranges: Ranges | None) -> list[Place]:
    """Return where the images of these keys lie; arguments as of `catalog_of`."""
    if ranges is None:
        return [Place(under(root, key), key) for key in keys]
    parts = zip(keys, *(np.asarray(column).tolist() for column in ranges[1:]))
    return [
        Place(under(root, key), key)
        if number < 0
        else Place(under(root, ranges.sources[number].name), key, ranges.sources[number], offset, length)
        for key, number, offset, length in parts
    ]


def folder_at(path: StrPath, what: str) -> str:
    """Return the absolute path of a folder that must be there, or an address; `what` names it in the error."""
    if is_address(path):
        from objcrop.object_storage import refuse_credentials

        refuse_credentials(os.fspath(path))
        return root_of(path)
    if not os.path.isdir(path):
        there = "is not a folder" if os.path.exists(path) else "is not there"
        raise ObjcropError(f"The {what} '{printable(os.fspath(path))}' {there}; check the path.")
    return os.path.abspath(path)


def inside_of(base: str, folder: str) -> str:
    """Return the path of a folder below another, "" for the same; both absolute paths or addresses.

    Raises:
        UsageError: it does not lie there.
    """
    if folder != base and not folder.startswith(f"{base.rstrip('/')}/"):
        raise UsageError(f"--root {base} does not hold the source {folder}; leave it out, or give a folder above.")
    return folder[len(base) :].strip("/")


def _rounded(corners: Sequence[float]) -> list[float]:
    return [round(float(corner), 2) if np.isfinite(corner) else float(corner) for corner in corners]
