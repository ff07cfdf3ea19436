"""What a detector found: boxes, classes and scores, with masks where it makes some; a file of COCO's results.

Source of the file's format: cocodataset.org/#format-results.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, shown
from objcrop.formats.coco import corners_of_bbox
from objcrop.formats.coco_masks import box_of, upright_rle, why_broken
from objcrop.formats.json_file import read_json
from objcrop.formats.plain_values import BadValue, number
from objcrop.whole_file import StrPath, whole_file

# COCO's 80 classes have ids from 1 to 90.
_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_COCO_NAME = re.compile(r"(?:COCO_[A-Za-z0-9]+_)?([0-9]{1,18})")


@dataclass(frozen=True, eq=False)
class Detections:
    """N detections on the images of a catalog, in the order of its rows.

    Attributes:
        row: int64 (N,) catalog rows, never falling.
        boxes: float64 (N, 4) x0, y0, x1, y1, half-open, pixels of the upright image as it is; they may reach over its
            edge.
        scores: float32 (N,), the higher the surer.
        labels: int64 (N,) positions in `catalog.classes`.
        masks: N COCO RLE, {"size": [height, width], "counts": str}, of the whole image; None where there are none.

    Raises:
        ObjcropError: a number that is none, or parts that do not fit together.
    """

    row: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        for name, kind, shape in (
            ("row", np.int64, (-1,)),
            ("boxes", np.float64, (-1, 4)),
            ("scores", np.float32, (-1,)),
            ("labels", np.int64, (-1,)),
        ):
            object.__setattr__(self, name, np.asarray(getattr(self, name), kind).reshape(shape))
        if self.masks is not None:
            object.__setattr__(self, "masks", [_as_text(mask) for mask in self.masks])
        lengths = {name: len(column) for name, column in vars(self).items() if column is not None}
        if len(set(lengths.values())) > 1:
            raise ObjcropError(f"detections are of different numbers: {lengths}.")
        finite = np.isfinite(self.boxes).all(1) & np.isfinite(self.scores)
        sound = finite & (self.boxes[:, :2] <= self.boxes[:, 2:]).all(1) & (self.row >= 0) & (self.labels >= 0)
        if not sound.all():
            at = int(sound.argmin())
            raise ObjcropError(
                f"detection {at} is none: row {self.row[at]}, box {self.boxes[at].tolist()}, score {self.scores[at]}, "
                f"class {self.labels[at]}."
            )
        if (np.diff(self.row) < 0).any():
            raise ObjcropError("detections do not come in the order of the catalog's rows; join them by `joined`.")

    def __len__(self) -> int:
        return len(self.row)

    @staticmethod
    def joined(parts: Sequence[Detections]) -> Detections:
        """Return the detections of all parts, by row; those of a row stay in the order that they have.

        Args:
            parts: of different rows, such as those of ranks; all with masks or all without, an empty one as it likes.
        """
        some = [part for part in parts if len(part)] or list(parts[:1])
        columns = [np.concatenate([getattr(part, name) for part in some]) for name in ("row", "boxes", "scores")]
        labels = np.concatenate([part.labels for part in some])
        order = np.argsort(columns[0], kind="stable")
        masks: list[dict[str, Any]] | None = None
        if all(part.masks is not None for part in some):
            together = [mask for part in some for mask in part.masks or ()]
            masks = [together[i] for i in order]
        elif any(part.masks is not None for part in some):
            raise ObjcropError("some of the detections have masks, others have none.")
        row, boxes, scores = (column[order] for column in columns)
        return Detections(row, boxes, scores, labels[order], masks)

    def refuse_misfits(self, catalog: Catalog) -> None:
        """Raise an `ObjcropError` where these cannot be detections on a catalog's images."""
        if len(self) and (self.row[-1] >= len(catalog) or self.labels.max() >= len(catalog.classes)):
            raise ObjcropError(
                f"there are detections of row {self.row[-1]} and class {self.labels.max()}, but the catalog of "
                f"{catalog.root} has {len(catalog)} images and {len(catalog.classes)} classes; take its own."
            )
        if self.masks is not None:
            sizes = [(mask["size"][1], mask["size"][0]) for mask in self.masks]
            reasons = why_broken(self.masks, sizes)  # pycocotools would write past its memory
            for at, (size, image) in enumerate(zip(sizes, catalog.sizes_of(self.row).tolist(), strict=True)):
                if list(size) != image:
                    reasons[at] = f"it is of {size[0]}×{size[1]} pixels, the image of {image[0]}×{image[1]}"
                if at in reasons:
                    key = catalog.key(int(self.row[at]))
                    raise ObjcropError(f"the mask of detection {at}, on {key}, cannot be used: {reasons[at]}.")

    def save(self, path: StrPath, catalog: Catalog) -> None:
        """Write COCO's results: a list of {image_id, category_id, bbox, score} and, of masks, segmentation.

        `image_id` is the number that is each image's name, as COCO's are named, or where that is not so of all, the
        key in the catalog. `category_id` is the class's position from 1, of COCO's 80 classes the id that they have.

        Args:
            path: JSON to write.
            catalog: the images.
        """
        image, category = _image_ids(catalog), _category_ids(catalog.classes)
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
            for i, (row, label) in enumerate(zip(self.row.tolist(), self.labels.tolist(), strict=True)):
                entry: dict[str, Any] = {"image_id": image[row], "category_id": category[label]}
                entry |= {"bbox": [*self.boxes[i, :2].tolist(), *sides[i].tolist()], "score": float(self.scores[i])}
                if self.masks is not None:
                    entry["segmentation"] = self.masks[i]
                file.write(f"{',' if i else '['}\n{json.dumps(entry)}")
            file.write("\n]\n" if len(self) else "[]\n")

    @staticmethod
    def read(path: StrPath, catalog: Catalog) -> Detections:
        """Return what `save` wrote; results of another program too, where their ids are of the same kind.

        Args:
            path: JSON of COCO's results; a mask may stand in for a bbox.
            catalog: the images.

        Raises:
            ObjcropError: the file cannot be read, or an entry cannot be used; it is named.
        """
        name = os.fspath(path)
        entries = read_json(name, "detections", "name COCO results")
        if not isinstance(entries, list):
            raise ObjcropError(f"{name} is not COCO results: it must be a list of {{image_id, bbox, score}}.")
        rows = {image: row for row, image in enumerate(_image_ids(catalog))}
        labels = {category: label for label, category in enumerate(_category_ids(catalog.classes))}
        parts: list[tuple[Any, ...]] = []
        for i, entry in enumerate(entries):
            try:
                parts.append(_one(entry, rows, labels, catalog))
            except BadValue as error:
                raise ObjcropError(f"entry {i} of {name}: {error}; give results of this catalog's images.") from None
        parts.sort(key=lambda part: part[0])
        row, boxes, scores, classes = (np.array([part[column] for part in parts]) for column in range(4))
        masks = [part[4] for part in parts]
        return Detections(row, boxes, scores, classes, masks if parts and None not in masks else None)


def _one(
    entry: Any, rows: dict[Any, int], labels: dict[int, int], catalog: Catalog
) -> tuple[int, tuple[float, ...], float, int, dict[str, Any] | None]:
    """Return row, corners, score, label and mask of an entry of COCO's results."""
    if not isinstance(entry, dict):
        raise BadValue(f"it is {shown(entry)}, not {{image_id, category_id, bbox, score}}")
    for name, known in (("image_id", rows), ("category_id", labels)):
        if not isinstance(entry.get(name), (int, str)) or entry[name] not in known:
            raise BadValue(f"{name} is {shown(entry.get(name))}, which is not in the catalog")
    row, shape = rows[entry["image_id"]], entry.get("segmentation")
    mask = None
    if shape is not None:
        width, height = catalog.sizes_of([row])[0].tolist()
        if reason := why_broken([shape], [(width, height)]).get(0):
            raise BadValue(reason)
        text = upright_rle(shape, (width, height), 1)
        mask = None if text is None else json.loads(text)
    corners, score = corners_of_bbox(entry.get("bbox")) or box_of(shape), number(entry.get("score"))
    if corners is None or not np.isfinite([*corners, score]).all():
        raise BadValue(f"bbox and score are {shown(entry.get('bbox'))} and {shown(entry.get('score'))}, no numbers")
    return row, corners, score, labels[entry["category_id"]], mask


def _as_text(mask: dict[str, Any]) -> dict[str, Any]:
    """Return an RLE as JSON holds it; pycocotools makes bytes."""
    counts = mask["counts"]
    return {
        "size": [int(side) for side in mask["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def _image_ids(catalog: Catalog) -> list[int] | list[str]:
    keys = catalog.keys()
    named = [_COCO_NAME.fullmatch(PurePosixPath(key).stem) for key in keys]
    numbers = [int(match[1]) for match in named if match]
    return numbers if len(set(numbers)) == len(keys) else keys


def _category_ids(classes: Sequence[str]) -> list[int]:
    coco = len(classes) == 80 and (classes[0], classes[-1]) == ("person", "toothbrush")
    return [i for i in range(1, 91) if i not in _GAPS] if coco else list(range(1, len(classes) + 1))
