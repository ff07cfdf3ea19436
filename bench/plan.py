"""Claim: planning alone makes 50,000 images per processor second or more, whatever the policy.

    objcrop bench plan

Plans batches of 256 images of two views with the whole moco-v2 recipe, boxes and all, on a made-up catalog of images
of 500×375 with ten boxes each; no file is touched. One thread, median of the repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from objcrop.bench.stopwatch import Stopwatch
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import augment_recipe
from objcrop.dali_pipes.crop_policy import POLICIES
from objcrop.dali_pipes.epoch_order import batch_samples
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner


def bench_plan(*, images: int = 20_000, batch_size: int = 256, repeats: int = 5) -> dict[str, Any]:
    """Return images per processor second for every policy."""
    catalog, boxes = made_up(images)
    result: dict[str, Any] = {"batch_size": batch_size, "catalog_images": images, "policies": {}}
    for name, policy in POLICIES.items():
        planner = ViewPlanner(catalog, boxes, policy, augment_recipe("moco-v2", len(policy.views)), size=224, seed=0)

        def batches(planner: ViewPlanner = planner) -> Iterator[ViewPlan]:
            for b in range(min(images // batch_size, planner.samples // batch_size)):
                yield planner.plan(batch_samples(planner.samples, b, batch_size, 0, 0), 0)

        watch = Stopwatch()
        for _ in range(repeats):
            watch.lap(batches())
        result["policies"][name] = watch.summary()
    return result


def made_up(images: int) -> tuple[Catalog, BoxTable]:
    """Return a catalog of files that do not exist, and ten boxes on each."""
    rng = np.random.default_rng(0)
    sizes = np.tile(np.array([500, 375], np.int32), (images, 1))
    catalog = Catalog.build("/", [f"{i:08d}.jpg" for i in range(images)], sizes)
    low = rng.uniform(0, 0.6, (images, 10, 2)) * sizes[:, None]
    high = low + rng.uniform(0.1, 0.4, (images, 10, 2)) * sizes[:, None]
    boxes = np.concatenate([low, high], axis=2).astype(np.float32)
    return catalog, BoxTable.from_arrays(catalog, list(boxes))
