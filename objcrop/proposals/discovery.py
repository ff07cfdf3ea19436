"""Unsupervised object discovery (Vo et al. 2019): what the images of a catalog have in common.

Boxes of two images match where they look alike and lie alike (`whitened_hog`, `hough_matching`); an object is what
matches across many images and stands out from its surroundings (`block_ascent`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.read_image import BadImage, open_upright
from objcrop.errors import UsageError
from objcrop.option_value import seed_of
from objcrop.progress import tracked
from objcrop.proposals.block_ascent import Matches, solutions
from objcrop.proposals.edge_boxes import edge_boxes, shrunk
from objcrop.proposals.hough_matching import confidence, listed, parents, standout
from objcrop.proposals.whitened_hog import NO_WINDOWS, STEPS, Whitening, Windows, hog, whiten, whitening
from objcrop.ranks import rank_and_world_size

LONGEST = 500  # pixels; larger images are shrunk to see what their boxes look like
PROPOSALS = 150  # boxes an image that are matched, the first ones
SMALLER = 0.5  # a box below half the area of one around it is its part (Vo et al. for VOC)
MATCHES = 1000  # of a pair of images that the optimisation looks at
STARTS = 5  # solutions, each from another random order
APART = 0.5  # greatest overlap of two boxes of the result
LEARN_IMAGES, LEARN_WINDOWS = 200, 20  # whose windows the whitening is learned from, and how many of each

Floats = npt.NDArray[np.float32]


class View(NamedTuple):
    """What is matched of an image.

    size (2,) width and height; boxes float32 (k, 4); looks int16 (k, KEPT) of the boxes; frame int16 (KEPT,) of the
    whole image; around: the boxes' parents, see `listed`; bad: why it cannot be read, or "".
    """

    size: npt.NDArray[np.int32]
    boxes: Floats
    looks: npt.NDArray[np.int16]
    frame: npt.NDArray[np.int16]
    around: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
    bad: str


def discovery(
    catalog: Catalog,
    *,
    proposals: BoxTable | str | os.PathLike[str] | None = None,
    count: int = 5,
    neighbours: int = 50,
    seed: int = 0,
    workers: int | None = None,
) -> BoxTable:
    """Return the boxes that an image has in common with others, the best first.

    For hundreds to thousands of images. An image costs 80 kB, and each pair of neighbours 8 kB and some milliseconds of
    a core: 5000 images with 50 neighbours, about 2 GB. A score is a sum of match confidences: the higher, the more of
    the other images back the box; where nothing matches it is 0, and the proposals' order stands.

    Differs from the paper in that it starts at all boxes and neighbours, without the continuous relaxation, and in the
    ranking after the optimisation, see `discovered`.

    Args:
        catalog: the images.
        proposals: boxes to choose from, or the file of them; the first 150 of an image are looked at. None makes
            EdgeBoxes.
        count: boxes an image, at most; two overlap (intersection over union) by a half at most.
        neighbours: images that each is matched with, those that look most like it as a whole.
        seed: of the random orders and samples.
        workers: processes and threads; None is the number of cores. The boxes do not depend on it. Processors differ
            in OpenCV's gradients, by a float's last digit, and may then differ in a box.

    Raises:
        UsageError: an option is out of range, or this process is one of several ranks.
        ObjcropError: the proposals cannot be read, or were made for another catalog.
    """
    for name, value in (("count", count), ("neighbours", neighbours)):
        if value < 1:
            raise UsageError(f"--{name} is {value}, but it must be 1 or more.")
    seed = seed_of(seed)
    if rank_and_world_size()[1] > 1:
        raise UsageError("discovery compares all images in one process; run it without torchrun.")
    workers = (os.cpu_count() or 1) if workers is None else workers
    if proposals is None:
        proposals = edge_boxes(catalog, count=PROPOSALS, workers=workers)
    table = proposals if isinstance(proposals, BoxTable) else BoxTable.load(proposals, catalog)
    if table.catalog_fingerprint != catalog.fingerprint:
        raise UsageError("the proposals were made for another catalog; make them for this one with `objcrop propose`.")

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        views = describe(catalog, table, seed, pool)
        pairs = nearest(views, neighbours)
        matches = match(views, pairs, pool)
        kept, linked = solutions(matches, np.array([len(view.boxes) for view in views]), STARTS, seed)
        backing = backed(views, pairs, kept, linked, pool)
    found = [discovered(view.boxes, support, count) for view, support in zip(views, backing)]
    boxes, scores = ([image[part] for image in found] for part in (0, 1))
    parameters = {"proposals": table.method, "count": count, "neighbours": neighbours, "seed": seed}
    return BoxTable.from_arrays(catalog, boxes, scores, method="discovery", parameters=parameters)


def describe(catalog: Catalog, table: BoxTable, seed: int, pool: ThreadPoolExecutor) -> list[View]:
    """Look at every image and its boxes; those that cannot be read lose theirs, and are warned of."""
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(len(catalog))[:LEARN_IMAGES]).tolist()
    some = [table[row][:PROPOSALS] for row in sample]
    some = [boxes[np.sort(rng.permutation(len(boxes))[:LEARN_WINDOWS])] for boxes in some]
    seen = list(tracked(pool.map(partial(_windows, catalog), sample, some), len(sample), "whitening"))
    learned = whitening(np.concatenate([windows for windows in seen if not isinstance(windows, str)] or [NO_WINDOWS]))
    look = partial(_view, catalog, table, learned)
    views = list(tracked(pool.map(look, range(len(catalog))), len(catalog), "describing"))
    bad = [row for row, view in enumerate(views) if view.bad and len(table[row])]  # the others have none to lose
    if bad:
        logging.getLogger("objcrop").warning(
            "%d images cannot be read and have no boxes (the first: %s %s).",
            len(bad),
            catalog.key(bad[0]),
            views[bad[0]].bad,
        )
    return views


def _windows(catalog: Catalog, row: int, boxes: Floats) -> Windows | str:
    """Return the gradients of an image's boxes and, last, of its frame, or why it cannot be read."""
    try:
        image = np.asarray(open_upright(catalog, row))
    except BadImage as error:
        return str(error)
    small, scale = shrunk(image, LONGEST)
    frame = np.array([[0, 0, small.shape[1], small.shape[0]]], np.float32)
    return hog(small, np.concatenate([boxes / np.tile(scale, 2), frame]))


def _view(catalog: Catalog, table: BoxTable, learned: Whitening, row: int) -> View:
    boxes = table[row][:PROPOSALS]
    windows = _windows(catalog, row, boxes)
    bad = windows if isinstance(windows, str) else ""
    if isinstance(windows, str):
        boxes, windows = boxes[:0], np.zeros((1, *NO_WINDOWS.shape[1:]), np.float32)
    looks = whiten(windows, learned)
    return View(catalog.sizes_of([row])[0], boxes, looks[:-1], looks[-1], listed(parents(boxes, SMALLER)), bad)


def nearest(views: Sequence[View], neighbours: int) -> npt.NDArray[np.int32]:
    """Return the pairs (P, 2), i < j, of which one is among the other's neighbours in look; without boxes, none."""
    rows = np.array([row for row, view in enumerate(views) if len(view.boxes)], np.int64)
    if len(rows) < 2:
        return np.zeros((0, 2), np.int32)
    frames = np.stack([views[row].frame for row in rows]).astype(np.float64)
    length = np.sqrt(np.maximum((frames * frames).sum(1), 1))
    pairs = []
    for at, row in enumerate(rows):
        alike = frames @ frames[at] / length  # of whole numbers, hence exact; the cosine but for this frame's length
        alike[at] = -np.inf
        near = rows[np.argsort(-alike, kind="stable")[: min(neighbours, len(rows) - 1)]]
        pairs.append(np.stack([np.minimum(near, row), np.maximum(near, row)], 1))
    return np.unique(np.concatenate(pairs), axis=0).astype(np.int32)


def _confidence(views: Sequence[View], pair: npt.NDArray[np.int32]) -> Floats:
    one, two = views[pair[0]], views[pair[1]]
    likeness = one.looks.astype(np.float32) @ two.looks.astype(np.float32).T  # exact
    return confidence(likeness / np.float32(STEPS**2), (one.boxes, two.boxes), np.stack([one.size, two.size]))


def match(views: Sequence[View], pairs: npt.NDArray[np.int32], pool: ThreadPoolExecutor) -> Matches:
    """Return each pair's matches that stand out most; how likely a match is, is in `hough_matching`."""
    most = min(MATCHES, max((len(view.boxes) for view in views), default=0) ** 2)
    boxes = np.zeros((len(pairs), 2, most), np.int16)
    scores = np.zeros((len(pairs), most), np.float32)

    def one(pair: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], Floats]:
        outstanding = standout(_confidence(views, pair), views[pair[0]].around, views[pair[1]].around)
        best = np.argsort(-outstanding, axis=None, kind="stable")[:most]
        return np.stack(np.unravel_index(best, outstanding.shape)), outstanding.reshape(-1)[best]

    for at, (which, worth) in enumerate(tracked(pool.map(one, pairs), len(pairs), "matching")):
        boxes[at, :, : len(worth)], scores[at, : len(worth)] = which, worth
    return Matches(pairs, boxes, scores)


def backed(
    views: Sequence[View], pairs: npt.NDArray[np.int32], kept: Floats, linked: Floats, pool: ThreadPoolExecutor
) -> list[Floats]:
    """Return how much an image's neighbours back each of its boxes, (k,) an image.

    A neighbour backs a box by its best match with a box that the neighbour keeps; solutions are averaged over.

    Args:
        views: the images.
        pairs: (P, 2).
        kept: share of the solutions that keep a box, (n, p).
        linked: share of them in which the first image of a pair has the second as neighbour, and the reverse, (P, 2).
        pool: of threads.
    """
    used = np.flatnonzero(linked.any(1))

    def one(at: int) -> tuple[Floats, Floats]:
        (i, j), agreed = pairs[at], _confidence(views, pairs[at])
        there = (agreed * kept[j, : agreed.shape[1]]).max(1)
        back = (agreed * kept[i, : agreed.shape[0], None]).max(0)
        return there * linked[at, 0], back * linked[at, 1]

    backing = [np.zeros(len(view.boxes), np.float32) for view in views]
    for at, sides in zip(used, tracked(pool.map(one, used), len(used), "ranking")):
        for image, side in zip(pairs[at], sides):
            backing[image] += side
    return backing


def discovered(boxes: Floats, backing: Floats, count: int) -> tuple[Floats, Floats]:
    """Return an image's best boxes and their scores.

    Neighbours back parts as well as wholes, so a box is worth what it has above the best of those around it (Cho et al.
    2015, section 4, for the sum over neighbours). Single boxes are backed by chance too, but hardly many that overlap:
    each box gets a share of what the others are worth, the square of their overlap.

    Args:
        boxes: float32 (k, 4).
        backing: float32 (k,).
        count: boxes to return, at most.
    """
    import torch
    from torchvision.ops import box_iou, nms

    around = np.where(parents(boxes, SMALLER), backing, 0).max(1, initial=0)
    corners = torch.from_numpy(boxes.astype(np.float64))
    scores = (box_iou(corners, corners).numpy() ** 2 @ np.maximum(backing - around, 0)).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    apart = nms(corners[order], torch.arange(len(order), 0, -1, dtype=torch.float64), APART).numpy()
    best = order[apart[:count]]
    return boxes[best], scores[best]
