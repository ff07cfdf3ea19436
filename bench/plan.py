"""Claim: planning alone makes 50,000 images per processor second or more; with DALI fed by it, 40,000.

    objcrop bench plan

The first whatever the policy, the second (25 µs an image) whatever the number of DALI's threads.

Plans batches of 256 images of two views with the whole moco-v2 recipe, boxes and all, on a made-up catalog of images
of 500×375 with ten boxes each; no file is touched. One thread, median of the repeats. To feed is to hand over bytes and
where decoding begins and ends, through the graph's own inputs and no decoder. The bytes are few: DALI copies them, and
for the 80 kB of a photo that takes what the memory takes, 7 to 15 µs more.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np

from objcrop.bench.stopwatch import Stopwatch
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.crop_policy import POLICIES
from objcrop.dali_pipes.crops import Crops
from objcrop.dali_pipes.decode_crop_resize import fed, feed_of
from objcrop.dali_pipes.read_image import Encoded
from objcrop.dali_pipes.view_loader import GlobalBatches
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner

FED = "obj-obj+dilate"
THREADS = (1, 2, 4, 8)


def bench_plan(*, images: int = 20_000, batch_size: int = 256, repeats: int = 5) -> dict[str, Any]:
    """Return images per processor second for every policy, and of one with feeding for numbers of threads."""
    catalog, boxes = made_up(images)
    result: dict[str, Any] = {"batch_size": batch_size, "catalog_images": images, "policies": {}, "feeding": {}}

    def batches(planner: ViewPlanner) -> Iterator[ViewPlan]:
        batches = GlobalBatches(planner, batch_size, shuffle=True)
        for b in range(min(images // batch_size, planner.samples // batch_size)):
            yield batches.plan((0, b))

    planners = {}
    for name in POLICIES:
        planner = planners[name] = ViewPlanner(catalog, boxes, Crops(crops=name))
        watch = Stopwatch()
        for _ in range(repeats):
            watch.lap(batches(planner))
        result["policies"][name] = watch.summary()
    for threads in THREADS:
        endless = chain.from_iterable(batches(planners[FED]) for _ in repeat(None))
        feeding = _fed(catalog, endless, batch_size, threads)
        next(feeding)  # which builds the graph and fills it
        watch = Stopwatch()
        for _ in range(repeats):
            watch.lap(next(feeding) for _ in range(max(images // batch_size, 1)))
        result["feeding"][f"{threads} threads"] = watch.summary()
    return result


def _fed(catalog: Catalog, coming: Iterator[ViewPlan], batch_size: int, threads: int) -> Iterator[Any]:
    """Yield what DALI was fed of plans, as it comes out of its inputs."""
    from nvidia.dali import pipeline_def

    images = [Encoded(np.zeros(100, np.uint8), 1) for _ in range(batch_size)]

    def feed() -> list[Any]:
        plan = next(coming)
        return feed_of(images, plan.windows, catalog.sizes_of(plan.row), "union")[0]

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=None, prefetch_queue_depth=2)
    def graph() -> Any:
        return tuple(fed(feed, "union"))

    pipe = graph()
    pipe.build()
    while True:
        yield pipe.run()[0]


def made_up(images: int) -> tuple[Catalog, BoxTable]:
    """Return a catalog of files that do not exist, and ten boxes on each."""
    rng = np.random.default_rng(0)
    sizes = np.tile(np.array([500, 375], np.int32), (images, 1))
    catalog = Catalog.build("/", [f"{i:08d}.jpg" for i in range(images)], sizes)
    low = rng.uniform(0, 0.6, (images, 10, 2)) * sizes[:, None]
    high = low + rng.uniform(0.1, 0.4, (images, 10, 2)) * sizes[:, None]
    boxes = np.concatenate([low, high], axis=2).astype(np.float32)
    return catalog, BoxTable.from_arrays(catalog, list(boxes))
