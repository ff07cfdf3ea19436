"""EdgeBoxes (Zitnick and Dollár 2014) through OpenCV: windows that hold whole contours, few that cross the border.

An image's boxes do not depend on the images beside it, on threads or workers. OpenCV itself adds up floats, so that
another processor or version of it may settle a close call another way.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.extras import from_extra
from objcrop.proposals.from_images import Found, Image, propose_from_images

EQUAL = 2**-6  # strengths closer than this are equal, of at most 1443
LONGEST = 640  # longer sides are shrunk to this, pixels: photos of 12 megapixels would take a minute each


def edge_boxes(
    catalog: Catalog,
    *,
    model: str | os.PathLike[str] | None = None,
    count: int = 10,
    workers: int | None = None,
    parts: str | os.PathLike[str] | None = None,
) -> BoxTable:
    """Return EdgeBoxes' boxes, the best first, with its scores.

    Args:
        catalog: the images.
        model: OpenCV's structured-edge model (model.yml.gz) for the edges the paper uses; None takes gradients, which
            need no model and come close (recall at 10 boxes .355 on VOC2007).
        count: boxes an image, at most.
        workers: processes; None is the number of cores, 0 works in this one.
        parts: see `propose_from_images`.

    Raises:
        UsageError: `count` is below 1, or there is no OpenCV with `ximgproc`.
        ObjcropError: the model cannot be used.
    """
    if count < 1:
        raise UsageError(f"--count is {count}, but it must be 1 or more.")
    ximgproc()  # what is missing or wrong is said before workers start
    path = None if model is None else str(model)
    if path is not None:
        _structured(path)
    parameters = {"count": count, "edges": "gradient" if path is None else os.path.basename(path), "longest": LONGEST}
    make = partial(EdgeBoxesProposer, path, count)
    workers = (os.cpu_count() or 1) if workers is None else workers
    return propose_from_images(catalog, "edge-boxes", parameters, make, parts=parts, rows=32, workers=workers)


class EdgeBoxesProposer:
    """OpenCV's detector in one thread.

    Args:
        model: of structured edges; None for gradients.
        count: boxes an image.
    """

    def __init__(self, model: str | None, count: int) -> None:
        cv2 = from_extra("cv2")

        cv2.setNumThreads(1)
        self.edges = None if model is None else _structured(model)
        self.count = count

    def __call__(self, images: Sequence[Image]) -> list[Found]:
        """Return each image's boxes and scores."""
        return [self._of(image) for image in images]

    def _of(self, image: Image) -> Found:
        small, scale = shrunk(image, LONGEST)
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        if min(small.shape[:2]) < 16:  # OpenCV reads past the ends of narrower ones
            return nothing
        if self.edges is None:
            strength, normal = gradient_edges(small)
        else:
            strength = self.edges.detectEdges(small.astype(np.float32) / 255)
            normal = self.edges.computeOrientation(strength)
            strength = self.edges.edgesNms(strength, normal)
        if not strength.any():
            return nothing
        search = ximgproc().createEdgeBoxes()  # anew: an instance carries something over from the image before
        search.setMaxBoxes(self.count)
        found, scores = search.getBoundingBoxes(strength, normal)
        if not len(found):
            return nothing
        corners = np.array(found, np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        return corners * np.tile(scale, 2), np.asarray(scores, np.float32).reshape(-1)


def ximgproc() -> Any:
    """Return OpenCV's module of that name, which its builds with contrib have.

    Raises:
        UsageError: there is no OpenCV, or one without.
    """
    cv2 = from_extra("cv2")
    if not hasattr(cv2, "ximgproc"):
        raise UsageError(
            "the OpenCV here (opencv-python or opencv-python-headless) has no ximgproc, and shares its folder with the "
            "one that has: pip uninstall opencv-python opencv-python-headless opencv-contrib-python-headless, then "
            "pip install 'objcrop[proposals]'."
        )
    return cv2.ximgproc


def shrunk(image: Image, longest: int) -> tuple[Image, npt.NDArray[np.float32]]:
    """Return the image with its longer side at most `longest`, and what to multiply x and y by to come back."""
    cv2 = from_extra("cv2")

    height, width = image.shape[:2]
    factor = min(1.0, longest / max(height, width))
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    if factor < 1:
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.ascontiguousarray(image), np.array([width / size[0], height / size[1]], np.float32)


def gradient_edges(image: Image) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return thinned edge strength 0..1 and the angle of the edge's normal, 0..π, both float32 (H, W).

    Of the three channels the one that changes most, lightly blurred; a pixel stays where its strength is the greatest
    along the normal, by whole numbers and margins that no last digit decides.
    """
    cv2 = from_extra("cv2")

    soft = cv2.GaussianBlur(image, (0, 0), 1.2).astype(np.float32)
    gx, gy = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    strongest = (gx**2 + gy**2).argmax(2)[..., None]
    x, y = (np.take_along_axis(g, strongest, 2)[..., 0] for g in (gx, gy))
    strength = np.sqrt(x**2 + y**2)  # of a whole number
    normal = np.mod(np.arctan2(y.astype(np.float64), x), np.pi).astype(np.float32)
    # Compare with the strength one pixel along the normal on either side, interpolated; of equal ones both stay.
    at_y, at_x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]].astype(np.float32)
    along_x, along_y = (part / np.maximum(strength, 1) for part in (x, y))
    thin = strength > 0
    for side in (1, -1):
        beside = cv2.remap(
            strength, at_x + side * along_x, at_y + side * along_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        thin &= strength >= beside - EQUAL
    strongest_edge = np.percentile(strength, 99.5)
    return np.where(thin, np.minimum(strength / max(strongest_edge, 1e-6), 1), 0).astype(np.float32), normal


def _structured(path: str) -> Any:
    cv2 = from_extra("cv2")

    if not os.path.isfile(path):
        raise ObjcropError(f"the structured-edge model {path} is not there; leave --model out to take gradients.")
    try:
        return ximgproc().createStructuredEdgeDetection(path)
    except cv2.error as error:
        raise ObjcropError(f"{path} is no structured-edge model of OpenCV ({error.err}).") from None
