"""Claim: whole images come at 2 times the rate a processor second of torchvision's reference transforms, or more.

    objcrop bench scenes CATALOG

Detectron2's scales (shorter side 480 to 800 px, at most 1333), mirror images, boxes and, where the catalog has them,
masks; in one thread and one process, alternately, median of the repeats. Beside us stand the `multiscale` transforms of
torchvision's references/detection on its v2 uint8 tensors: PIL decodes, masks are decoded by pycocotools on both sides.
What is fed are bytes in a common frame here, float32 images there; "normalised" goes on to what a backbone takes,
float32 in a common frame, which both leave to where the network computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from objcrop.bench.stopwatch import Stopwatch
from objcrop.catalog import Catalog, catalog_at
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD
from objcrop.dali_pipes.epoch_order import permute
from objcrop.dali_pipes.scene_loader import load_scenes
from objcrop.dali_pipes.scene_plan import ScenePlanner
from objcrop.dali_pipes.scenes import normalised
from objcrop.progress import tracked

SIDES, LONGEST = (480, 800), 1333


def bench_scenes(
    catalog: Catalog | str | os.PathLike[str], *, batches: int = 8, batch_size: int = 4, repeats: int = 3
) -> dict[str, Any]:
    """Return images per second and per processor second of both."""
    images = catalog_at(catalog)
    masks = any(images.masks(row) for row in range(min(len(images), 20)) if any(images.masks(row)))
    ours, theirs = "objcrop", "torchvision references"
    watches = {name + how: Stopwatch() for how in ("", ", normalised") for name in (ours, theirs)}
    how: dict[str, Any] = {"sides": SIDES, "longest": LONGEST, "batch_size": batch_size, "masks": masks, "threads": 1}
    with load_scenes(images, **how, prefetch=1, rank=0, world_size=1) as loader:
        fed: dict[str, Iterator[Any]] = {ours: _ours(loader), theirs: _theirs(images, batch_size, masks)}
        finish = {ours: lambda batch: normalised(batch.images, batch.sizes), theirs: _framed}
        for batch in fed.values():
            next(batch)
        for _ in tracked(range(repeats), repeats, "turns"):
            for name, coming in fed.items():
                watches[name].lap(next(coming) for _ in range(batches))
                watches[f"{name}, normalised"].lap(finish[name](next(coming)) for _ in range(batches))
    return {"batch_size": batch_size, "masks": masks, "rows": {name: w.summary() for name, w in watches.items()}}


def _ours(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _framed(images: list[torch.Tensor]) -> torch.Tensor:
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    finish = GeneralizedRCNNTransform(min(SIDES), LONGEST, IMAGENET_MEAN, IMAGENET_STD)
    return finish.batch_images([finish.normalize(image) for image in images])


def _theirs(catalog: Catalog, batch_size: int, masks: bool) -> Iterator[list[torch.Tensor]]:
    from pycocotools import mask as coco_mask
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    sides = ScenePlanner(catalog, SIDES, LONGEST, 0.5).sides.tolist()
    chain = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomShortestSize(min_size=sides, max_size=LONGEST),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.SanitizeBoundingBoxes(labels_getter=lambda sample: sample[1]["labels"]),
            v2.ToPureTensor(),
        ]
    )
    epoch = 0
    while True:
        order = permute(np.arange(len(catalog)), len(catalog), 0, epoch)
        for begin in range(0, len(catalog) - batch_size + 1, batch_size):
            whole = []
            for row in order[begin : begin + batch_size].tolist():
                image = Image.open(catalog.path(row)).convert("RGB")
                truth, size = catalog.annotations(row), (image.height, image.width)
                kept = np.flatnonzero(~truth.crowd)
                target: dict[str, Any] = {"labels": torch.from_numpy(truth.classes[kept].astype(np.int64))}
                boxes: Any = tv_tensors.BoundingBoxes(truth.boxes[kept], format="XYXY", canvas_size=size)  # type: ignore[call-overload]
                target["boxes"] = boxes
                if masks:
                    held: Any = [catalog.masks(row)[k] for k in kept]
                    rles = [{"size": m["size"], "counts": m["counts"].encode()} for m in held]
                    decoded = coco_mask.decode(rles).transpose(2, 0, 1) if rles else np.zeros((0, *size), np.uint8)
                    target["masks"] = tv_tensors.Mask(np.ascontiguousarray(decoded))
                whole.append(chain(image, target)[0])
            yield whole
        epoch += 1
