"""Claim: every box source of the two papers, its recall, its objectness and its price, on the same images in one run.

    objcrop bench proposals voc.arrow -o bench/results/proposals_voc07.json [--opencv-bing FOLDER]

Each method proposes on one processor core, images decoded and ready, and is timed by processor seconds; then `stats`
measures its boxes. BING is measured three times: with few boxes and suppression, and with a hundred and a thousand as
its paper reports recall. OpenCV's own BING is put beside it where its model's folder is given. Discovery compares all
images of the catalog, EdgeBoxes and decoding in its price. `--rate` measures how fast `propose` runs: bench/proposing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from objcrop.bench.rivals.opencv_bing import OpenCVBing
from objcrop.box_stats import measured_rows, stats
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.read_image import BadImage, open_upright
from objcrop.errors import one_of
from objcrop.extras import from_extra
from objcrop.progress import tracked
from objcrop.proposals import propose
from objcrop.proposals.anchors import AnchorProposer
from objcrop.proposals.bing import WEIGHTS, BingProposer
from objcrop.proposals.edge_boxes import EdgeBoxesProposer
from objcrop.proposals.from_images import Image, Proposer
from objcrop.proposals.selective_search import SelectiveSearchProposer
from objcrop.recall import BUDGETS

# Name to what makes the proposer; slow ones look at fewer images.
LOOKING: dict[str, tuple[Callable[[], Proposer], int]] = {
    "bing, 10": (lambda: BingProposer(WEIGHTS, 10, 0.6, "cpu", True), 10_000),
    "bing, 100": (lambda: BingProposer(WEIGHTS, 100, 1.0, "cpu", True), 10_000),
    "bing, 1000": (lambda: BingProposer(WEIGHTS, 1000, 1.0, "cpu", True), 10_000),
    "anchors, mean-sqrt-area": (
        lambda: AnchorProposer("untrained:resnet50", "mean-sqrt-area", 5, 0.5, "cpu", True),
        100,
    ),
    "anchors, mean": (lambda: AnchorProposer("untrained:resnet50", "mean", 5, 0.5, "cpu", True), 100),
    "anchors, per-size": (lambda: AnchorProposer("untrained:resnet50", "per-size", 5, 0.5, "cpu", True), 100),
    "centre-prior": (lambda: AnchorProposer(None, "mean-sqrt-area", 5, 0.5, "cpu", True), 10_000),
    "edge-boxes, 1000": (lambda: EdgeBoxesProposer(None, 1000), 100),
    "selective-search, 1000": (lambda: SelectiveSearchProposer(1000), 30),
}
DISCOVERY = "discovery"
FROM_THE_CATALOG: dict[str, dict[str, Any]] = {
    "gt": {"method": "gt"},
    "gt-pad, .5": {"method": "gt-pad", "padding": 0.5},
    "grid": {"method": "grid"},
    "image": {"method": "image"},
    "random": {"method": "random"},
    "poor": {"method": "poor"},
}


def bench_proposals(
    catalog: Catalog,
    *,
    images: int | None = None,
    opencv_bing: Path | None = None,
    only: Sequence[str] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure every method.

    Args:
        catalog: images with ground truth.
        images: look at the first so many only; slow methods look at fewer still, which their row says.
        opencv_bing: folder of OpenCV's BING model, to measure that beside ours.
        only: names to measure; None for all.
        console: where to print the table.

    Returns:
        `methods`: for each name the images looked at, images per processor second (None for boxes that look at no
        image), recall at IoU .5 at 1, 10, 100 and 1000 boxes, mean object share, the shares of poor, coarse and precise
        boxes, and the mean area.

    Raises:
        UsageError: no method of a name in `only`.
        ObjcropError: the catalog has no ground truth.
    """
    cv2 = from_extra("cv2")
    import torch

    looking: dict[str, tuple[Callable[[], Proposer], int]] = dict(LOOKING)
    if opencv_bing is not None:
        looking["OpenCV's bing"] = (lambda: OpenCVBing(opencv_bing), 10_000)
    for name in only or ():
        one_of(name, [*looking, DISCOVERY, *FROM_THE_CATALOG], "--only")
    limit = len(measured_rows(catalog, images))
    before, threads = torch.get_num_threads(), cv2.getNumThreads()
    rows: dict[str, dict[str, Any]] = {}
    try:
        for name, (make, most) in tracked(looking.items(), len(looking), "proposals"):
            if only is None or name in only:
                rows[name] = _looked(catalog, name, make, min(limit, most))
    finally:
        torch.set_num_threads(before)
        cv2.setNumThreads(threads)
    if only is None or DISCOVERY in only:
        rows[DISCOVERY] = _discovered(catalog, limit)
    for name, options in FROM_THE_CATALOG.items():
        if only is None or name in only:
            rows[name] = {
                "images": limit,
                "images_per_cpu_s": None,
                **_measured(propose(catalog, **options), catalog, limit),
            }
    if console is not None:
        _print(rows, console)
    return {"what": "boxes of every method against ground truth, one core", "methods": rows}


def _looked(catalog: Catalog, name: str, make: Callable[[], Proposer], count: int) -> dict[str, Any]:
    pictures: list[Image] = []
    rows = []
    for row in measured_rows(catalog, count).tolist():  # as `stats` will
        with contextlib.suppress(BadImage):
            pictures.append(np.asarray(open_upright(catalog, row)))
            rows.append(row)
    proposer = make()
    proposer(pictures[:2])  # warm
    began = time.process_time()
    found = proposer(pictures)
    spent = time.process_time() - began
    boxes: list[Any] = [np.zeros((0, 4), np.float32)] * len(catalog)
    for row, (corners, _) in zip(rows, found):
        boxes[row] = corners
    table = BoxTable.from_arrays(catalog, boxes, method=name)
    return {"images": count, "images_per_cpu_s": round(len(rows) / spent, 2), **_measured(table, catalog, count)}


def _discovered(catalog: Catalog, count: int) -> dict[str, Any]:
    began = time.process_time()
    table = propose(catalog, "discovery", workers=0)
    spent = time.process_time() - began
    rate = round(len(catalog) / spent, 2)
    return {"images": count, "images_per_cpu_s": rate, **_measured(table, catalog, count)}


def _measured(table: BoxTable, catalog: Catalog, count: int) -> dict[str, Any]:
    figures = stats(catalog, table, images=count)
    of = figures["objectness"]["boxes"]
    measured = {int(k): v for k, v in figures["recall"].items()}
    # With fewer boxes than a budget, what all of them find is what the budget finds.
    at = {budget: measured[max(k for k in measured if k <= budget)] for budget in BUDGETS if min(measured) <= budget}
    return {
        "recall": {str(k): round(v["recall"]["mean"], 4) for k, v in at.items()},
        "best_overlap": {str(k): round(v["best_overlap"]["mean"], 4) for k, v in at.items()},
        **{name: round(of[name]["mean"], 4) for name in ("object_share", "poor", "coarse", "precise", "area")},
    }


def _print(rows: dict[str, dict[str, Any]], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    heads = (
        "boxes",
        "images",
        "images/CPU-s",
        "recall@10",
        "@100",
        "@1000",
        "object",
        "poor",
        "coarse",
        "precise",
        "area",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "boxes" else "right", no_wrap=True)
    for name, row in rows.items():
        speed = "" if row["images_per_cpu_s"] is None else f"{row['images_per_cpu_s']:,.1f}"
        recall = [f"{row['recall'][k]:.3f}" if k in row["recall"] else "" for k in ("10", "100", "1000")]
        shares = [f"{row[k]:.3f}" for k in ("object_share", "poor", "coarse", "precise", "area")]
        table.add_row(name, str(row["images"]), speed, *recall, *shares)
    console.print(table)
