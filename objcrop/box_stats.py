"""What boxes and crop policies look at: objectness, coverage, the boxes themselves, recall, each with its uncertainty.

    result = stats(catalog, boxes, "obj-obj+dilate")
    objcrop.stats_table.stats_table(result, Console())

Means are over crops, pairs or objects; the interval beside each comes from resampling whole images, since the crops of
one image are alike (the bootstrap of a ratio: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", 8.3).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from objcrop.boxes import BoxTable, boxes_at
from objcrop.catalog import Catalog, catalog_at
from objcrop.coverage import COVERED, HELD_PART, PairCoverage, pair_coverage
from objcrop.dali_pipes.crop_policy import enlarge_small, outward, resolve_min_side
from objcrop.dali_pipes.crops import Crops
from objcrop.dali_pipes.view_plan import ViewPlanner
from objcrop.errors import ObjcropError, UsageError
from objcrop.objectness import area, box_union, object_mask, object_share, summed_area, zones
from objcrop.option import cannot_act
from objcrop.parts import run_parts
from objcrop.progress import tracked
from objcrop.recall import FOUND, best_overlaps, budgets

HISTOGRAM_BINS = 20  # of 5 % object share each
AREA_EDGES = (np.arange(11) / 10) ** 2  # shares of the image's area: steps of a tenth of its side
IOU_EDGES = np.arange(11) / 10
_PLANNED = 1 << 16  # samples planned at a time: a plan holds colour decisions too, which are dropped here
_MEASURED = 64  # images measured at a time
_RESAMPLED = 1 << 22  # draws of images held at a time

# What the screen calls each mean, and what it is.
MEANINGS = {
    "object_share": ("object share", "object pixels / crop pixels (CIB Table 2: objectness)"),
    "poor": ("poor", "crops below 20 % object (CIB 5.2)"),
    "coarse": ("coarse", "crops from 20 to 80 % object"),
    "precise": ("precise", "crops above 80 % object"),
    "area": ("area", "crop pixels / image pixels"),
    "covered": (f"≥ {100 * COVERED:.0f} % object", "pairs whose intersection is object box to so much or more"),
    "covered_of_meeting": ("… where they meet", "the same among pairs that meet: nearest to OAC D's 99 and 92.1 %"),
    "any_object": ("any object", "pairs whose intersection holds a pixel of an object box"),
    "intersection_share": ("object share", "pixels of object boxes in the intersection (OAC D to the letter)"),
    "same_object": ("same object", f"pairs that both hold {100 * HELD_PART:.0f} % of one object's box or more"),
    "meet": ("meet", "pairs whose windows intersect"),
    "iou": ("window IoU", "intersection / union of the two windows"),
    "of_first": ("window overlap", "intersection / first window (OAC Fig. 7: 66 % for scene-scene)"),
    "per_image": ("boxes per image", ""),
    "without_boxes": ("without boxes", "images that have none; their whole frame stands in"),
    "box_area": ("box area", "box / image"),
    "aspect": ("aspect", "width / height"),
    "enlarged": ("enlarged", "boxes that the small-box rule makes larger"),
}


class ImageMeans:
    """Means over crops, pairs or objects, with intervals that resample the images these come from."""

    def __init__(self, images: int) -> None:
        self.images = images
        self._columns: list[NDArray[np.float64]] = []  # sum and count an image, (images, 2) each
        self._entries: list[dict[str, float | None]] = []

    def mean(self, values: ArrayLike, image: NDArray[np.int64]) -> dict[str, float | None]:
        """Return {"mean", "low", "high"}; the ends of the interval are None until `resample` fills them in.

        Args:
            values: numbers or bool (M,).
            image: int64 (M,) the image each belongs to, 0 .. images - 1.
        """
        sums = np.bincount(image, np.asarray(values, np.float64), self.images)
        counts = np.bincount(image, minlength=self.images)
        total = float(sums.sum()) / int(counts.sum()) if len(image) else None
        entry: dict[str, float | None] = {"mean": total, "low": None, "high": None}
        if len(image):
            self._columns.append(np.stack([sums, counts], axis=1))
            self._entries.append(entry)
        return entry

    def resample(self, times: int, seed: int) -> None:
        """Fill in 95 % intervals: the middle of the means over `times` draws of as many images, with replacement.

        All means share the draws. One image, or `times` of 0, leaves the intervals empty.
        """
        if times < 1 or self.images < 2 or not self._entries:
            return
        columns = np.concatenate(self._columns, axis=1)
        generator = np.random.default_rng(seed)
        step = max(_RESAMPLED // self.images, 1)
        totals = []
        for begin in range(0, times, step):
            some = min(step, times - begin)
            drawn = generator.integers(self.images, size=(some, self.images)) + np.arange(some)[:, None] * self.images
            often = np.bincount(drawn.ravel(), minlength=some * self.images).reshape(some, -1)
            totals.append(often.astype(np.float64) @ columns)
        sums, counts = np.moveaxis(np.concatenate(totals).reshape(times, -1, 2), 2, 0)
        with np.errstate(invalid="ignore"):  # a draw may hold no crop of a rare kind; it says nothing of their mean
            ends = np.nanpercentile(sums / counts, (2.5, 97.5), axis=0)
        for entry, low, high in zip(self._entries, *ends.tolist()):
            entry["low"], entry["high"] = low, high


def measured_rows(catalog: Catalog, images: int | None = None) -> NDArray[np.int64]:
    """Return the rows that so many images are measured on, evenly spaced; all for None.

    Raises:
        ObjcropError: none of them has an annotation.
    """
    rows = np.linspace(0, max(len(catalog) - 1, 0), min(len(catalog), images or len(catalog))).round().astype(np.int64)
    if not np.diff(catalog.box_offsets)[rows].any():
        raise ObjcropError(
            f"the catalog of {catalog.root} has no ground truth to measure against; index it with its annotations "
            "(`objcrop index --annotations`)."
        )
    return rows


def stats(
    catalog: Catalog | str | os.PathLike[str],
    boxes: BoxTable | str | os.PathLike[str] | None = None,
    crops: str | None = None,
    *,
    seed: int = 0,
    images: int | None = None,
    draws: int = 1,
    bootstrap: int = 1000,
    **options: Any,
) -> dict[str, Any]:
    """Measure boxes, and the windows that a crop policy draws from them, against the catalog's ground truth.

    Images without ground truth count in the facts about boxes and nowhere else. Object pixels are those of
    `object_mask`: difficult objects and crowd regions included. Single objects, which `coverage` and `recall` ask for,
    leave crowd regions out, and `recall` difficult objects too.

    Args:
        catalog: the images with their ground truth, a `Catalog` or its file.
        boxes: made for this catalog, a `BoxTable` or its file; None measures the policy alone, where it needs none.
        crops: a crop policy; None measures the boxes alone.
        seed: of the policy's draws and of the resampling.
        images: measure so many, evenly spaced over the catalog.
        draws: epochs of windows to measure.
        bootstrap: resamplings behind each interval; 0 leaves them out.
        **options: of the crops, as `load_views` takes them: size (which decides what boxes are small), scale, dilate, …

    Returns:
        A dict that JSON takes. Every mean in it is {"mean", "low", "high"}, shares run from 0 to 1. `ground_truth`
        says how many images were measured by masks, by boxes, and not at all. `objectness` has an entry for "boxes" and
        one a view: means (see `MEANINGS`), a histogram, and the mean by crop area. `coverage`: means over the pairs of
        a policy of two views, and by IoU of the pair, else None. `boxes`: means and quartiles, None without boxes.
        `recall`: at each number of boxes, None without boxes or single objects.

    Raises:
        UsageError: nothing to measure, an option out of range, an unknown policy, boxes missing or of another catalog.
        ObjcropError: no image measured has ground truth, or a file that cannot be used.
    """
    if boxes is None and crops is None:
        raise UsageError("stats has nothing to measure: pass --boxes, made by `objcrop propose`, or --crops, or both.")
    catalog = catalog_at(catalog)
    boxes = None if boxes is None else boxes_at(boxes, catalog)
    for name, value, least in (
        ("images", images, 1),
        ("draws", draws, 1),
        ("bootstrap", bootstrap, 0),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}, but it must be at least {least}.")
    if crops is None and options:
        name, value = next(iter(options.items()))
        raise cannot_act(name, value, "no crops are measured")
    rows = measured_rows(catalog, images)
    count = len(rows)

    planner = None
    windows, begin = np.zeros((0, 0, 4), np.int32), np.zeros(count + 1, np.int64)
    if crops is not None:
        chosen = Crops.read({"crops": crops, **options})
        planner = ViewPlanner(catalog, boxes, chosen, seed=seed)
        windows, begin = _windows(planner, rows, draws)
    at = [] if boxes is None else budgets(int(boxes.counts(rows).max()))
    found, truth = _measure(catalog, boxes, rows, windows, begin, at)

    means = ImageMeans(count)
    result: dict[str, Any] = {
        "catalog": {"fingerprint": catalog.fingerprint, "images": len(catalog), "measured": count},
        "made_by": None
        if boxes is None
        else {"method": boxes.method, "parameters": boxes.parameters, "fingerprint": boxes.fingerprint},
        "crops": None
        if planner is None
        else {
            "policy": crops,
            **{name: getattr(planner.crops, name) for name in ("size", *options)},
            "seed": seed,
            "draws": draws,
            "scale_min": planner.scale_min,
        },
        "bootstrap": bootstrap,
        "ground_truth": truth,
        "objectness": {},
        "coverage": None,
        "boxes": None if boxes is None else _box_facts(catalog, boxes, rows, planner, means),
        "recall": None,
    }
    if boxes is not None:
        share, part = found["box_share"], found["box_area"]
        result["objectness"]["boxes"] = _objectness(share, part, found["box_image"], means)
    for v in range(windows.shape[1]):
        share, part = found["view_share"][:, v], found["view_area"][:, v]
        result["objectness"][f"view {v + 1}"] = _objectness(share, part, found["view_image"], means)
    if windows.shape[1] == 2:
        pairs = PairCoverage(*(found[name] for name in PairCoverage._fields))
        result["coverage"] = _coverage(pairs, found["view_image"], means)
    if at and truth["recall_objects"]:
        result["recall"] = {
            str(budget): {
                "recall": means.mean(found["best"][:, i] >= FOUND, found["object_image"]),
                "best_overlap": means.mean(found["best"][:, i], found["object_image"]),
            }
            for i, budget in enumerate(at)
        }
    means.resample(bootstrap, seed)
    return result


def _windows(planner: ViewPlanner, rows: NDArray[np.int64], draws: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the windows (S, V, 4) of these rows over `draws` epochs, row after row, and where each row's begin."""
    every = np.arange(planner.samples)
    samples = every[np.isin(planner.locate(every, 0)[0], rows)]
    plans = [
        planner.plan(samples[i : i + _PLANNED], epoch)
        for epoch in range(draws)
        for i in range(0, len(samples), _PLANNED)
    ]
    row = np.concatenate([plan.row for plan in plans])
    by_row = np.argsort(row, kind="stable")
    windows = np.concatenate([plan.windows for plan in plans])[by_row]
    return windows, np.searchsorted(row[by_row], np.append(rows, len(planner.catalog)))


def _measure(
    catalog: Catalog,
    boxes: BoxTable | None,
    rows: NDArray[np.int64],
    windows: NDArray[np.int32],
    begin: NDArray[np.int64],
    at: list[int],
) -> tuple[dict[str, NDArray], dict[str, int]]:
    """Walk the images once: one value a box, a window, a pair, an object, and what the ground truth is made of."""
    parts = {}
    for first in range(0, len(rows), _MEASURED):
        of_part = begin[first : first + _MEASURED + 1]
        parts[first] = first, rows[first : first + _MEASURED], windows[of_part[0] : of_part[-1]], of_part - of_part[0]
    made = dict(tracked(run_parts(partial(_measurer, catalog, boxes, at), parts), len(parts), "measuring"))
    found: dict[str, list[NDArray]] = defaultdict(list)
    truth = Counter(
        {"by_masks": 0, "by_boxes": 0, "without": 0, "crowd_regions": 0, "recall_objects": 0, "difficult": 0}
    )
    for first in parts:
        for name, values in made[first][0].items():
            found[name] += values
        truth.update(made[first][1])
    return {name: np.concatenate(values) for name, values in found.items()}, dict(truth)


def _measurer(catalog: Catalog, boxes: BoxTable | None, at: list[int]) -> Callable[[tuple], tuple]:
    """Return what measures a part of the images: see `_measured`."""
    return lambda part: _measured(catalog, boxes, at, *part)


def _measured(
    catalog: Catalog,
    boxes: BoxTable | None,
    at: list[int],
    first: int,
    rows: NDArray[np.int64],
    windows: NDArray[np.int32],
    begin: NDArray[np.int64],
) -> tuple[dict[str, list[NDArray]], Counter[str]]:
    """Measure some images, numbered from `first` on."""
    parts: dict[str, list[NDArray]] = defaultdict(list)
    truth: Counter[str] = Counter()
    for i, row in enumerate(rows.tolist()):
        masked = object_mask(catalog, row)
        if masked is None:
            truth["without"] += 1
            continue
        mask, source = masked
        truth[f"by_{source}"] += 1
        size, known = catalog.sizes_of([row])[0], catalog.annotations(row)
        table, pixels = summed_area(mask), int(size.prod(dtype=np.int64))
        if boxes is not None:
            drawn = outward(boxes[row], size[None])
            parts["box_share"].append(object_share(table, drawn))
            parts["box_area"].append(area(drawn) / pixels)
            parts["box_image"].append(np.full(len(drawn), first + i))
            single = known.boxes[~known.crowd & ~known.difficult]
            parts["best"].append(best_overlaps(single, boxes[row], at) if at else np.zeros((len(single), 0)))
            parts["object_image"].append(np.full(len(single), first + i))
            truth["recall_objects"] += len(single)
        truth["crowd_regions"] += int(known.crowd.sum())
        truth["difficult"] += int((known.difficult & ~known.crowd).sum())
        views = windows[begin[i] : begin[i + 1]]
        parts["view_share"].append(object_share(table, views))
        parts["view_area"].append(area(views) / pixels)
        parts["view_image"].append(np.full(len(views), first + i))
        if windows.shape[1] == 2:
            by_boxes = table if source == "boxes" else summed_area(box_union(known.boxes, size))
            objects = outward(known.boxes[~known.crowd], size[None])
            for name, values in pair_coverage(by_boxes, views, objects)._asdict().items():
                parts[name].append(values)
    return parts, truth


def _objectness(share: NDArray, part: NDArray, image: NDArray, means: ImageMeans) -> dict[str, Any]:
    """Summarise object shares (n,) of crops that cover `part` (n,) of their image."""
    return {
        "crops": len(share),
        "object_share": means.mean(share, image),
        **{zone: means.mean(inside, image) for zone, inside in zones(share).items()},
        "area": means.mean(part, image),
        "histogram": np.histogram(share, HISTOGRAM_BINS, (0, 1))[0].tolist(),
        "by_area": _by_bins(AREA_EDGES, part, object_share=share),
    }


def _coverage(pairs: PairCoverage, image: NDArray, means: ImageMeans) -> dict[str, Any]:
    """Summarise pairs of windows: each reading of OAC's appendix D by its own name."""
    meet = pairs.iou > 0
    return {
        "pairs": len(image),
        "covered": means.mean(pairs.share >= COVERED, image),
        "covered_of_meeting": means.mean(pairs.share[meet] >= COVERED, image[meet]),
        "any_object": means.mean(pairs.share > 0, image),
        "intersection_share": means.mean(pairs.share[meet], image[meet]),
        "same_object": means.mean(pairs.same_object, image),
        "meet": means.mean(meet, image),
        "iou": means.mean(pairs.iou, image),
        "of_first": means.mean(pairs.of_first, image),
        "by_iou": _by_bins(IOU_EDGES, pairs.iou, share=pairs.share, same_object=pairs.same_object),
    }


def _by_bins(edges: NDArray, place: NDArray, **values: NDArray) -> dict[str, list]:
    """Return the mean of each of `values` (n,) in each bin of `place` (n,), None where a bin is empty."""
    which = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(which, minlength=len(edges) - 1)
    binned: dict[str, list] = {"edges": edges.tolist(), "count": counts.tolist()}
    for name, of in values.items():
        sums = np.bincount(which, of, len(edges) - 1)
        binned[name] = [float(s) / int(c) if c else None for s, c in zip(sums, counts)]
    return binned


def _box_facts(
    catalog: Catalog, boxes: BoxTable, rows: NDArray[np.int64], planner: ViewPlanner | None, means: ImageMeans
) -> dict[str, Any]:
    """Describe the boxes themselves, on all images measured, with or without ground truth."""
    counts = boxes.counts(rows)
    flat = np.concatenate([boxes[row] for row in rows.tolist()])
    image = np.repeat(np.arange(len(rows)), counts)
    sizes = catalog.sizes[rows][image]
    width, height = (flat[:, 2:] - flat[:, :2]).astype(np.float64).T
    part, aspect = width * height / sizes.astype(np.int64).prod(axis=1), width / height
    facts = {
        "boxes": len(flat),
        "per_image": means.mean(counts, np.arange(len(rows))),
        "without_boxes": means.mean(counts == 0, np.arange(len(rows))),
        "box_area": means.mean(part, image),
        "aspect": means.mean(aspect, image),
        "quartiles": {"box_area": _quartiles(part), "aspect": _quartiles(aspect)} if len(flat) else None,
        "enlarged": None,
    }
    if planner is not None and planner.policy.needs_boxes and planner.policy.small_box_rule:
        # The policy draws among the first boxes of each image; the others are never enlarged.
        rank = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
        most = planner.crops.boxes_drawn
        some = rank < (len(flat) if most is None else most)
        whole = outward(flat[some], sizes[some])
        larger = enlarge_small(whole, sizes[some], resolve_min_side(sizes[some], planner.crops.min_side, planner.size))
        facts["enlarged"] = means.mean((larger != whole).any(axis=1), image[some])
    return facts


def _quartiles(values: NDArray) -> list[float]:
    return np.percentile(values, (25, 50, 75)).tolist()
