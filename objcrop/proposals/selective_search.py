"""Selective Search (Uijlings et al. 2013), its fast mode, through OpenCV: segments merged step by step.

An image's boxes do not depend on the images beside it, on threads or workers. OpenCV itself compares floats, so that
another processor or version of it may merge in another order.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import partial

import numpy as np

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import UsageError, one_of
from objcrop.extras import from_extra
from objcrop.proposals.edge_boxes import shrunk, ximgproc
from objcrop.proposals.from_images import Found, Image, propose_from_images
from objcrop.proposals.soco_filter import kept_by_soco

LONGEST = 500  # pixels; time grows with the square


def selective_search(
    catalog: Catalog,
    *,
    count: int = 10,
    keep: str = "all",
    workers: int | None = None,
    parts: str | os.PathLike[str] | None = None,
) -> BoxTable:
    """Return the first boxes in OpenCV's order (late merges first, shuffled by chance as published).

    The order says little: of ten boxes few hold an object, of a thousand nearly all do. Scores fall evenly from 1 to 0.

    Args:
        catalog: the images.
        count: boxes an image, at most.
        keep: "all", or "soco": the first of those that SoCo compares views by (`kept_by_soco`).
        workers: processes; None is the number of cores, 0 works in this one.
        parts: see `propose_from_images`.
    """
    if count < 1:
        raise UsageError(f"--count is {count}, but it must be 1 or more.")
    one_of(keep, ("all", "soco"), "--keep")
    ximgproc()  # what is missing is said before workers start
    workers = (os.cpu_count() or 1) if workers is None else workers
    make = partial(SelectiveSearchProposer, count, keep)
    parameters = {"count": count, "mode": "fast", "longest": LONGEST} | ({} if keep == "all" else {"keep": keep})
    return propose_from_images(catalog, "selective-search", parameters, make, parts=parts, rows=16, workers=workers)


class SelectiveSearchProposer:
    """One instance of OpenCV's segmentation, used by one process only.

    Args:
        count: boxes an image.
        keep: "all" or "soco".
    """

    def __init__(self, count: int, keep: str = "all") -> None:
        from_extra("cv2").setNumThreads(1)
        self.search = ximgproc().segmentation.createSelectiveSearchSegmentation()
        self.count, self.keep, self.c = count, keep, ctypes.CDLL(None)

    def __call__(self, images: Sequence[Image]) -> list[Found]:
        """Return each image's boxes and scores."""
        return [self._of(image) for image in images]

    def _of(self, image: Image) -> Found:
        small, scale = shrunk(image, LONGEST)
        if min(small.shape[:2]) < 8:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        self.c.srand(1)  # OpenCV draws from C's generator; begun anew, an image's boxes do not depend on those before
        self.search.setBaseImage(np.ascontiguousarray(small[..., ::-1]))
        self.search.switchToSelectiveSearchFast()
        found = np.asarray(self.search.process(), np.float32).reshape(-1, 4)
        found[:, 2:] += found[:, :2]
        found *= np.tile(scale, 2).astype(np.float32)
        if self.keep == "soco":
            found = found[kept_by_soco(found, *image.shape[1::-1])]
        found = found[: self.count]
        return found, np.linspace(1, 0, len(found), dtype=np.float32)
