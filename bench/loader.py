"""Claim: on a CPU, `dali` yields at least 2 times the images per processor second of `torch` with colour="pil".

    objcrop bench loader --catalog voc.arrow --boxes gt.arrow

Every loader makes the same two moco-v2 views of the same images, from the same plan. Each is warmed up by one batch
of each worker, then measured `repeats` times in turn with the others, so that a busy minute hits all alike; medians are
reported, and processor time counts worker processes. Ratios within one run are what to trust.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from objcrop.bench.stopwatch import Stopwatch
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.views import Views

CONTENDERS: dict[str, dict[str, Any]] = {
    "torch, colour=pil": {"backend": "torch", "colour": "pil"},
    "torch, colour=float": {"backend": "torch", "colour": "float"},
    "dali, cpu": {"backend": "dali"},
}


def bench_loader(
    catalog: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    *,
    crops: str = "obj-obj+dilate",
    size: int = 224,
    batch_size: int = 32,
    repeats: int = 3,
    images: int = 256,
) -> dict[str, Any]:
    """Measure every contender; without a catalog, on scenes drawn for the purpose."""
    table: BoxTable | None
    with ExitStack() as stack:
        if catalog is None:
            photos, table = drawn_scenes(Path(stack.enter_context(tempfile.TemporaryDirectory())), images)
        else:
            photos = Catalog.load(catalog)
            table = None if boxes is None else BoxTable.load(boxes, photos)
        batches = max(min(images, len(photos)) // batch_size, 1)
        watches = {name: Stopwatch() for name in CONTENDERS}
        for _ in range(repeats):
            for name, options in CONTENDERS.items():
                loader = load_views(photos, boxes=table, crops=crops, size=size, batch_size=batch_size, **options)
                with loader:
                    endless = endless_views(loader)
                    for _ in islice(endless, 4):  # warm: workers started, code compiled, queues full
                        pass
                    watches[name].lap(islice(endless, batches))
        summaries = {name: watch.summary() for name, watch in watches.items()}
        pil, dali = (summaries[name]["images_per_cpu_s"] for name in ("torch, colour=pil", "dali, cpu"))
        return {
            "crops": crops,
            "size": size,
            "batch_size": batch_size,
            "catalog_images": len(photos),
            "data": "drawn scenes, 500×375" if catalog is None else Path(catalog).name,
            "loaders": summaries,
            "dali_over_pil_per_cpu_s": round(dali / pil, 2),
            "verdict": [f"dali on the CPU: {dali / pil:.1f} times the images per processor second of the PIL chain."],
        }


def endless_views(loader: ViewLoader) -> Iterator[Views]:
    """Yield batches epoch after epoch."""
    while True:
        yield from loader


def drawn_scenes(folder: Path, n: int) -> tuple[Catalog, BoxTable]:
    """Draw n sample scenes; return their catalog and ground-truth boxes."""
    from objcrop.formats import index_source
    from objcrop.proposals import propose
    from objcrop.sample_scenes import draw_scenes

    draw_scenes(folder, n)
    catalog, _ = index_source(folder, "scenes")
    return catalog, propose(catalog, "gt")
