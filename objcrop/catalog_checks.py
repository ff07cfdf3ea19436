"""What a catalog's rows must be: keys once, boxes inside their images, classes known, masks of COCO's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from objcrop.errors import ObjcropError


def refuse_twice(sorted_keys: pa.Array) -> None:
    """Raise an `ObjcropError` that names the first key that comes twice."""
    same = pc.equal(sorted_keys[1:], sorted_keys[:-1]).to_numpy(zero_copy_only=False)
    if same.any():
        raise ObjcropError(f"The image '{sorted_keys[int(same.argmax())]}' comes twice; every key must be there once.")


def refuse_outside(
    keys: pa.Array, rows: npt.NDArray[np.int64], boxes: npt.NDArray[np.float32], sizes: npt.NDArray[np.int32]
) -> None:
    """Raise an `ObjcropError` that names the first of the boxes (M, 4) of these rows that is not inside its image."""
    good = inside(boxes, sizes[rows])
    if not good.all():
        bad = int(good.argmin())
        size = sizes[rows[bad]].tolist()
        raise ObjcropError(
            f"{keys[int(rows[bad])]} of size {size} has the box {boxes[bad].tolist()}; clip boxes and drop empty ones."
        )


def inside(boxes: npt.NDArray[np.float32], sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Return which boxes (M, 4) have area and lie inside their images, whose sizes are (M, 2); NaN lies nowhere."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.all((low >= 0) & (low < high) & (high <= sizes), axis=1)


def known_classes(ids: npt.NDArray[np.int64], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return class ids, which must be positions in `classes`."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(classes):
        raise ObjcropError(f"Class ids run from {ids.min()} to {ids.max()}, but there are {len(classes)} classes.")
    return ids


def is_rle(mask: Any) -> bool:
    """Whether a mask has the form of a compressed COCO RLE; its counts are looked at by `object_mask`."""
    size = mask.get("size") if isinstance(mask, dict) else None
    sides = isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side < 2**31 for side in size)
    return sides and isinstance(mask.get("counts"), str)
