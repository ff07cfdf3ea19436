"""What every loader of a bench is asked for, and the batch that the outside ones hand out.

A rival is a generator: called with a `Wanted` it yields batches without end, and its `close()` stops what it started.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.crop_policy import crop_policy
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.errors import ObjcropError
from objcrop.place import is_address


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        catalog: the images.
        boxes: for our own loaders; rivals know none.
        crops: policy, likewise.
        size: side of the views, pixels.
        batch_size: images in a batch.
        device: "cpu" or "cuda": where the views must lie in the end.
        workers: processes, for loaders that work in processes.
        threads: for those that work in threads.
        folder: for files that a rival must write before it can begin.
        data: what the catalog is of, for the result.
    """

    catalog: Catalog
    boxes: BoxTable | None
    crops: str
    size: int
    batch_size: int
    device: str
    workers: int
    threads: int
    folder: Path
    data: str = ""

    def told(self) -> dict[str, Any]:
        """Return what a result says of what was measured."""
        by_name = {
            name: getattr(self, name) for name in ("crops", "size", "batch_size", "device", "threads", "workers")
        }
        return {**by_name, "catalog_images": len(self.catalog), "data": self.data}

    def paths(self) -> list[str]:
        """Return the images' paths.

        Raises:
            ObjcropError: they are no files of this machine, which is what rivals read.
        """
        if self.catalog.sources or is_address(self.catalog.root):
            raise ObjcropError(f"rivals are measured on files, and {self.catalog.path(0)} is none; index a folder.")
        return [self.catalog.path(row) for row in range(len(self.catalog))]

    def loader(self, **options: Any) -> ViewLoader:
        """Return one of our own loaders, on the device that is wanted unless told; options as in `load_views`."""
        options = {"device": self.device, **options}
        by_processes = options.get("backend") == "torch"
        return load_views(
            self.catalog,
            boxes=self.boxes if crop_policy(self.crops).needs_boxes else None,
            crops=self.crops,
            size=self.size,
            batch_size=self.batch_size,
            rank=0,
            world_size=1,
            workers=self.workers if by_processes else None,
            threads=None if by_processes else self.threads,
            **options,
        )


@dataclass
class TwoViews:
    """A rival's batch.

    Attributes:
        views: two tensors (N, 3, S, S), float32, normalised.
    """

    views: tuple[torch.Tensor, torch.Tensor]

    def __len__(self) -> int:
        return len(self.views[0])


def shuffled(n: int) -> Iterator[int]:
    """Yield 0 to n - 1 in a new order each epoch, without end."""
    rng = np.random.default_rng(0)
    while True:
        yield from rng.permutation(n).tolist()
